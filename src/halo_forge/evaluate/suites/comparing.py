"""Judged answers of two models -> one Comparison per metric. numpy only.

Axes: N items that both models were judged on under a metric.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halo_forge.artifacts import Comparison, Measurement
from halo_forge.evaluate.compare import compare_items, comparison_of, marked, not_compared
from halo_forge.evaluate.statistics import Interval, Resampling, wilson_interval
from halo_forge.evaluate.suites.calibration import FloatArray, compare_calibration, compare_precisions
from halo_forge.evaluate.suites.scoring import Judged
from halo_forge.metrics import SUITE_METRICS

Pairs = Sequence[tuple[Judged, Judged]]
"""(base, tuned) of the same items."""


def compare_judged(pairs: Pairs, resampling: Resampling, slice_name: str = "all") -> list[Comparison]:
    """Every metric that some item says something about, in the order of the table."""
    compared = [compare_metric(metric, pairs, resampling, slice_name) for metric in SUITE_METRICS]
    return [row for row in compared if row is not None]


def compare_metric(metric: str, pairs: Pairs, resampling: Resampling, slice_name: str = "all") -> Comparison | None:
    """One metric, or None where no item says anything about it."""
    if metric == "abstention_precision":
        return _compare_abstention(pairs, resampling, slice_name)
    fact = SUITE_METRICS[metric]
    base, tuned = _scores(pairs, "confidence" if metric == "ece" else metric)
    if not len(base):
        return None
    if metric == "ece":
        right = _scores(pairs, "choice_accuracy")
        estimate = compare_calibration((base, right[0]), (tuned, right[1]), resampling)
        row = comparison_of(metric, fact.direction, estimate, len(base), (0, 0))
    else:
        (row,) = compare_items(metric, fact.direction, fact.kind, base, tuned, {}, resampling)  # type: ignore[arg-type]
    return marked(row, slice_name, is_subsampled=False)


def _scores(pairs: Pairs, key: str) -> tuple[FloatArray, FloatArray]:
    found = [(base.scores[key], tuned.scores[key]) for base, tuned in pairs if key in base.scores]
    values = np.array(found, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _compare_abstention(pairs: Pairs, resampling: Resampling, slice_name: str) -> Comparison | None:
    """Of the answers that abstain, the share to unanswerable prompts. Each model abstains on items of its own, so each
    has its own n; a model that never abstains has no precision."""
    metric = "abstention_precision"
    asked = [pair for pair in pairs if "abstained" in pair[0].scores]
    if not asked:
        return None
    unanswerable = np.array(["abstention_recall" in base.scores for base, _ in asked], dtype=np.float64)
    picked = _scores(asked, "abstained")
    counts = (int(picked[0].sum()), int(picked[1].sum()))
    wilson: list[Interval] = [
        wilson_interval(float((chosen * unanswerable).sum()), count, resampling.confidence)
        for chosen, count in zip(picked, counts, strict=True)
        if count
    ]
    if len(wilson) == 2:
        estimate = compare_precisions(picked, unanswerable, (wilson[0], wilson[1]), resampling)
        row = comparison_of(metric, "higher", estimate, min(counts), (0, 0))
        base, tuned = (row.base.model_copy(update={"n": counts[0]}), row.tuned.model_copy(update={"n": counts[1]}))
        return marked(row.model_copy(update={"base": base, "tuned": tuned}), slice_name, is_subsampled=False)
    row = not_compared(metric, "not_measured", "a model that never abstains has no precision")
    sides = {}
    for name, chosen, count in zip(("base", "tuned"), picked, counts, strict=True):
        empty = getattr(row, name).model_copy(update={"note": f"none of {len(asked)} answers abstains"})
        share = float((chosen * unanswerable).sum() / count) if count else None
        sides[name] = empty if share is None else Measurement(
            metric=metric, value=share, n=count, low=wilson[0].low, high=wilson[0].high
        )  # fmt: skip
    return marked(row.model_copy(update=sides), slice_name, is_subsampled=False)
