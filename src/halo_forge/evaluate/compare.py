"""Two measured models -> one Comparison per metric, and the scores of every item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jsonschema.protocols import Validator

from halo_forge.artifacts import Comparison, Measurement, Status
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.measure import Measured
from halo_forge.evaluate.retention import Retention
from halo_forge.evaluate.scorers import METRICS, Answer, Metric
from halo_forge.evaluate.statistics import (
    FloatArray,
    Interval,
    PairedEstimate,
    Resampling,
    compare_means,
    compare_per_token,
    compare_perplexities,
    compare_rates,
)

Scores = dict[str, FloatArray]
"""metric -> score per item [N]; nan where an item says nothing about the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """All items under all metrics. inapplicable: metric -> why it is not measured on this holdout."""

    base: Scores
    tuned: Scores
    inapplicable: dict[str, str]


def score_items(items: Sequence[Item], base: Measured, tuned: Measured, validator: Validator | None) -> Scored:
    """Every metric of the table on every item that has an answer (likelihoods are in Measured)."""
    references = [item.reference for item in items if item.prompt is not None]
    inapplicable = {}
    scores: tuple[Scores, Scores] = ({}, {})
    for name, metric in METRICS.items():
        reason = metric.inapplicable(references, validator is not None)
        if reason is not None:
            inapplicable[name] = reason
            continue
        if metric.score is None:
            continue
        for into, measured in zip(scores, (base, tuned), strict=True):
            into[name] = np.array(
                [
                    _score(metric, answer, item.reference, validator)
                    for item, answer in zip(items, measured.answers, strict=True)
                ],
                dtype=np.float64,
            )
    return Scored(base=scores[0], tuned=scores[1], inapplicable=inapplicable)


def _score(metric: Metric, answer: Answer | None, reference: str, validator: Validator | None) -> float:
    if answer is None or metric.score is None:
        return float("nan")
    score = metric.score(answer, reference, validator)
    return float("nan") if score is None else score


def compare_metrics(
    scored: Scored,
    base: Measured,
    tuned: Measured,
    general: Retention | None,
    resampling: Resampling,
    *,
    wanted: frozenset[str],
) -> tuple[Comparison, ...]:
    """Metrics in the order of the table. One that does not apply is left out, unless it is `wanted` (a gate rule
    reads it): then it is there as not measured, with the reason."""
    comparisons = []
    for name, metric in METRICS.items():
        if name in scored.inapplicable:
            if name in wanted:
                comparisons.append(not_compared(name, "not_measured", scored.inapplicable[name]))
        elif metric.kind == "perplexity":
            usable = base.num_tokens > 0
            sums = base.nll_sums[usable], tuned.nll_sums[usable], base.num_tokens[usable]
            comparisons.append(_compare_sums(name, *sums, resampling))
        elif metric.kind != "general":
            comparisons.append(_compare_scores(name, scored.base[name], scored.tuned[name], resampling))
    return (*comparisons, *compare_retention(general, resampling))


def compare_retention(general: Retention | None, resampling: Resampling) -> tuple[Comparison, ...]:
    """general_perplexity and general_kl; the base is no distance from itself."""
    names = [name for name, metric in METRICS.items() if metric.kind == "general"]
    if general is None:
        reason = "no general text can be written with this tokenizer"
        return tuple(not_compared(name, "not_measured", reason) for name in names)
    sums = (general.base_nll, general.tuned_nll), (np.zeros_like(general.kl), general.kl)
    return tuple(
        _compare_sums(name, *pair, general.num_tokens, resampling) for name, pair in zip(names, sums, strict=True)
    )


def _compare_sums(
    name: str, base: FloatArray, tuned: FloatArray, num_tokens: npt.NDArray[np.int64], resampling: Resampling
) -> Comparison:
    """Sums of nats over the tokens of each text [N]."""
    n = len(num_tokens)
    if not n:
        return not_compared(name, "not_measured", "no holdout row has an answer to measure")
    bad = int((~(np.isfinite(base) & np.isfinite(tuned))).sum())
    if bad:
        reason = f"the likelihood of {bad} of {n} answers is not a finite number"
        return not_compared(name, "failed", reason, n=n)
    compare = compare_per_token if name == "general_kl" else compare_perplexities
    estimate = compare(base, tuned, num_tokens, resampling)
    if not np.isfinite([estimate.base, estimate.tuned]).all():
        return not_compared(name, "failed", "the perplexity is too large for a number", n=n)
    if METRICS[name].direction == "none":
        return _comparison(name, estimate, n, 0, 0)
    return _comparison(name, estimate, n, int((tuned < base).sum()), int((tuned > base).sum()))


def _compare_scores(name: str, base: FloatArray, tuned: FloatArray, resampling: Resampling) -> Comparison:
    metric = METRICS[name]
    usable = ~(np.isnan(base) | np.isnan(tuned))
    base, tuned = base[usable], tuned[usable]
    if not len(base):
        return not_compared(name, "not_measured", "no answer was generated that this metric applies to")
    if metric.kind == "rate":
        estimate = compare_rates(base, tuned, resampling.confidence)
    else:
        estimate = compare_means(base, tuned, resampling, bounded=metric.kind == "fraction")
    better: npt.NDArray[np.bool_] = tuned > base if metric.direction == "higher" else tuned < base
    changed = int((tuned != base).sum())
    wins = int(better.sum()) if metric.direction != "none" else 0
    losses = changed - wins if metric.direction != "none" else 0
    return _comparison(name, estimate, len(base), wins, losses)


def _comparison(name: str, estimate: PairedEstimate, n: int, wins: int, losses: int) -> Comparison:
    note = "one item gives no interval" if n == 1 and estimate.delta_interval is None else None

    def measurement(value: float, interval: Interval | None) -> Measurement:
        return Measurement(
            metric=name,
            value=value,
            n=n,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            direction=METRICS[name].direction,
            note=note,
        )

    return Comparison(
        metric=name,
        base=measurement(estimate.base, estimate.base_interval),
        tuned=measurement(estimate.tuned, estimate.tuned_interval),
        delta=measurement(estimate.delta, estimate.delta_interval),
        wins=wins,
        losses=losses,
    )


def not_compared(name: str, status: Status, reason: str, *, n: int = 0) -> Comparison:
    """A metric that keeps its place without a number."""
    empty = Measurement(
        metric=name, value=None, n=n, status=status, direction=METRICS[name].direction, note=reason
    )  # fmt: skip
    return Comparison(metric=name, base=empty, tuned=empty, delta=empty)
