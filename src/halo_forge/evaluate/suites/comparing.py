"""Judged answers of two models -> one Comparison per metric. numpy only.

Axes: N items that both models were judged on under a metric.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halo_forge.artifacts import Comparison, Measurement
from halo_forge.evaluate.statistics import (
    Interval,
    PairedEstimate,
    Resampling,
    compare_means,
    compare_rates,
    wilson_interval,
)
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
    key = "confidence" if metric == "ece" else metric
    base, tuned = _scores(pairs, key)
    if not len(base):
        return None
    if metric == "ece":
        right = _scores(pairs, "choice_accuracy")
        estimate = compare_calibration((base, right[0]), (tuned, right[1]), resampling)
        return comparison(metric, estimate, (len(base), len(base)), (0, 0), slice_name)
    estimate = compare_item_scores(SUITE_METRICS[metric].kind, base, tuned, resampling)
    return comparison(metric, estimate, (len(base), len(base)), _changes(metric, base, tuned), slice_name)


def compare_item_scores(kind: str, base: FloatArray, tuned: FloatArray, resampling: Resampling) -> PairedEstimate:
    """The one way from scores of items [N] to estimates and intervals, for every metric that is a mean."""
    if kind == "rate":
        return compare_rates(base, tuned, resampling.confidence)
    return compare_means(base, tuned, resampling, bounded=kind == "fraction")


def _scores(pairs: Pairs, key: str) -> tuple[FloatArray, FloatArray]:
    found = [(base.scores[key], tuned.scores[key]) for base, tuned in pairs if key in base.scores]
    values = np.array(found, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _changes(metric: str, base: FloatArray, tuned: FloatArray) -> tuple[int, int]:
    """(won, lost) items."""
    up, down = int((tuned > base).sum()), int((tuned < base).sum())
    return {"higher": (up, down), "lower": (down, up), "none": (0, 0)}[SUITE_METRICS[metric].direction]


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
        return comparison(metric, estimate, counts, (0, 0), slice_name)
    sides = []
    for chosen, count in zip(picked, counts, strict=True):
        if not count:
            sides.append(_measurement(metric, None, 0, None, slice_name, f"none of {len(asked)} answers abstains"))
            continue
        share = float((chosen * unanswerable).sum() / count)
        sides.append(_measurement(metric, share, count, wilson[0], slice_name))
    delta = _measurement(metric, None, 0, None, slice_name, "a model that never abstains has no precision")
    return Comparison(metric=metric, base=sides[0], tuned=sides[1], delta=delta)


def comparison(
    metric: str, estimate: PairedEstimate, counts: tuple[int, int], changes: tuple[int, int], slice_name: str
) -> Comparison:
    """counts: items behind base's and tuned's number. changes: items (won, lost)."""
    values = (estimate.base, estimate.tuned, estimate.delta)
    intervals = (estimate.base_interval, estimate.tuned_interval, estimate.delta_interval)
    sides = [
        _measurement(metric, value, n, interval, slice_name).model_copy(update={"standard_error": error})
        for value, n, interval, error in zip(values, (*counts, min(counts)), intervals, estimate.errors, strict=True)
    ]
    return Comparison(
        metric=metric,
        base=sides[0],
        tuned=sides[1],
        delta=sides[2],
        wins=changes[0],
        losses=changes[1],
        p_value=estimate.p_value,
        test=estimate.test if estimate.p_value is not None else None,
    )


def not_measured(metric: str, reason: str) -> Comparison:
    empty = _measurement(metric, None, 0, None, "all", reason)
    return Comparison(metric=metric, base=empty, tuned=empty, delta=empty)


def _measurement(
    metric: str, value: float | None, n: int, interval: Interval | None, slice_name: str, note: str | None = None
) -> Measurement:
    return Measurement(
        metric=metric,
        value=value,
        n=n,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        status="not_measured" if value is None else "measured",
        slice=slice_name,
        direction=SUITE_METRICS[metric].direction,
        note=note or ("one item gives no interval" if value is not None and interval is None else None),
    )
