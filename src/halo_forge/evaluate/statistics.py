"""Intervals for one model's numbers and for the difference of two models on the same items. numpy only.

Two kinds of number, two methods:

yes/no scores   Wilson's interval for a rate and Newcombe's paired interval (method 10 of Statistics in Medicine 17,
                1998) for a difference of rates. Both are closed forms that stay honest where resampling collapses:
                60 right of 60 gives 0.94 to 1, not "exactly 1".
everything else the bootstrap over items, with the tail level widened from the normal to Student's t for n - 1 degrees
                of freedom (Hesterberg 2015), because a plain bootstrap is too narrow below some fifty items. One
                model's number is skewed and gets the bias-corrected and accelerated interval (Efron 1987); a
                difference of two is nearly symmetric and gets percentiles, which cover better there: at 20 items the
                estimated acceleration is mostly noise. The tests measure the coverage of both.

Base and tuned are always resampled with the same indices: an item brings both its values. Everything is a pure
function of its arguments; the same seed gives the same interval. Axes: N items, K models, R resamples.

Beside each interval stands a standard error (of a mean, the sample's over sqrt(N); of a ratio, the resamples' spread)
and beside each difference the p-value of a paired test (`paired_tests.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from halo_forge.evaluate.metrics.labels import macro_f1
from halo_forge.evaluate.paired_tests import BOOTSTRAP, MCNEMAR, bootstrap_p_value, mcnemar_p_value

FloatArray: TypeAlias = npt.NDArray[np.float64]

NORMAL = NormalDist()
INDICES_PER_CHUNK = 2_000_000
"""Resample indices held at once (16 MB)."""


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resampling:
    """confidence in (0, 1); num_samples bootstrap resamples drawn with `seed`."""

    confidence: float = 0.95
    num_samples: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PairedEstimate:
    """Two models on the same items. An interval, an error or a p-value is None where the evidence gives none (a single
    item). errors: standard errors of base, tuned and delta."""

    base: float
    tuned: float
    delta: float
    base_interval: Interval | None
    tuned_interval: Interval | None
    delta_interval: Interval | None
    errors: tuple[float | None, float | None, float | None] = (None, None, None)
    p_value: float | None = None
    test: str | None = None


def errors_of_means(base: FloatArray, tuned: FloatArray) -> tuple[float | None, float | None, float | None]:
    """Standard errors of the means of base, tuned and their difference, [N] each: sample deviation over sqrt(N)."""
    if len(base) < 2:
        return None, None, None
    spread = [float(values.std(ddof=1)) / math.sqrt(len(base)) for values in (base, tuned, tuned - base)]
    return spread[0], spread[1], spread[2]


# ------------------------------------------------------------------------------------------------ yes/no scores


def wilson_interval(num_yes: float, n: int, confidence: float) -> Interval:
    """Score interval of a proportion, by Wilson (1927). n >= 1; num_yes may be a fractional sum of scores in [0, 1],
    for which it is conservative: no such score varies more than a yes/no score with the same mean."""
    z = NORMAL.inv_cdf(0.5 + confidence / 2)
    share = num_yes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the formula gives 0 and 1 only up to rounding.
    low = 0.0 if num_yes <= 0 else max(0.0, centre - half)
    high = 1.0 if num_yes >= n else min(1.0, centre + half)
    return Interval(low, high)


def newcombe_paired_interval(base: FloatArray, tuned: FloatArray, confidence: float) -> Interval:
    """Interval of mean(tuned) - mean(base) for scores in {0, 1} of the same items [N], N >= 1."""
    n = len(base)
    both = float((base * tuned).sum())
    only_base, only_tuned = float(base.sum()) - both, float(tuned.sum()) - both
    neither = n - both - only_base - only_tuned
    delta = (only_tuned - only_base) / n
    phi = _phi_coefficient(both, only_base, only_tuned, neither)
    base_wilson = wilson_interval(base.sum(), n, confidence)
    tuned_wilson = wilson_interval(tuned.sum(), n, confidence)
    return _square_and_add(
        delta, (float(base.mean()), base_wilson), (float(tuned.mean()), tuned_wilson), correlation=phi
    )


def _phi_coefficient(both: float, only_base: float, only_tuned: float, neither: float) -> float:
    """Correlation of the two answers with Newcombe's continuity correction; 0 where a margin is empty."""
    margins = (both + only_base) * (only_tuned + neither) * (both + only_tuned) * (only_base + neither)
    if margins == 0:
        return 0.0
    product = both * neither - only_base * only_tuned
    if product > 0:
        product = max(product - (both + only_base + only_tuned + neither) / 2, 0.0)
    return product / math.sqrt(margins)


def _square_and_add(
    delta: float, base: tuple[float, Interval], tuned: tuple[float, Interval], *, correlation: float
) -> Interval:
    def distance(left: float, right: float) -> float:
        return math.sqrt(max(left * left - 2 * correlation * left * right + right * right, 0.0))

    (base_rate, base_bounds), (tuned_rate, tuned_bounds) = base, tuned
    down = distance(tuned_rate - tuned_bounds.low, base_bounds.high - base_rate)
    up = distance(tuned_bounds.high - tuned_rate, base_rate - base_bounds.low)
    return Interval(max(-1.0, delta - down), min(1.0, delta + up))


def compare_rates(base: FloatArray, tuned: FloatArray, confidence: float) -> PairedEstimate:
    """Scores in {0, 1} of the same items, [N] each, N >= 1."""
    n = len(base)
    return PairedEstimate(
        base=float(base.mean()),
        tuned=float(tuned.mean()),
        delta=float(tuned.mean() - base.mean()),
        base_interval=wilson_interval(base.sum(), n, confidence),
        tuned_interval=wilson_interval(tuned.sum(), n, confidence),
        delta_interval=newcombe_paired_interval(base, tuned, confidence),
        errors=errors_of_means(base, tuned),
        p_value=mcnemar_p_value(int((tuned > base).sum()), int((tuned < base).sum())),
        test=MCNEMAR,
    )


# ------------------------------------------------------------------------------------------------ everything else


def compare_means(
    base: FloatArray, tuned: FloatArray, resampling: Resampling, *, bounded: bool = False
) -> PairedEstimate:
    """Means of real scores of the same items, [N] each, N >= 1.

    bounded: the scores lie in [0, 1]. Then a model whose scores are all the same gets Wilson's interval instead of a
    point, and so does the difference when no item's difference varies.
    """
    estimate = _compare_ratios(np.stack([base, tuned]), np.ones(len(base)), resampling, exponential=False)
    estimate = replace(estimate, errors=errors_of_means(base, tuned))
    if not bounded:
        return estimate
    n, confidence = len(base), resampling.confidence
    bounds = [
        wilson_interval(float(scores.sum()), n, confidence) if np.ptp(scores) == 0 else interval
        for scores, interval in ((base, estimate.base_interval), (tuned, estimate.tuned_interval))
    ]
    delta_interval = estimate.delta_interval
    if np.ptp(tuned - base) == 0:
        base_wilson, tuned_wilson = (wilson_interval(float(scores.sum()), n, confidence) for scores in (base, tuned))
        delta_interval = _square_and_add(
            estimate.delta, (estimate.base, base_wilson), (estimate.tuned, tuned_wilson), correlation=0.0
        )
    return replace(estimate, base_interval=bounds[0], tuned_interval=bounds[1], delta_interval=delta_interval)


def compare_perplexities(
    base_nll: FloatArray, tuned_nll: FloatArray, num_tokens: npt.NDArray[np.int64], resampling: Resampling
) -> PairedEstimate:
    """exp(total nll / total tokens) of two models on the same items; nll sums in nats and token counts, [N] each.

    Items are resampled whole, with their tokens: the tokens of one answer are not independent of each other."""
    return _compare_ratios(np.stack([base_nll, tuned_nll]), num_tokens.astype(np.float64), resampling, exponential=True)


def compare_ratios(
    base_sums: FloatArray, tuned_sums: FloatArray, weights: npt.NDArray[np.int64] | FloatArray, resampling: Resampling
) -> PairedEstimate:
    """total / total weight of two models on the same items, resampled as perplexities are: nats per token, words of
    answers per word of the references."""
    return _compare_ratios(np.stack([base_sums, tuned_sums]), weights.astype(np.float64), resampling, exponential=False)


def compare_error_rates(
    base_edits: FloatArray, tuned_edits: FloatArray, num_units: FloatArray, resampling: Resampling
) -> PairedEstimate:
    """All edits over all words of two models on the same items [N]. A model without any edit gets, in place of a
    point, 0 to the share of items with an edit that as many faultless items leave possible (Wilson)."""
    estimate = compare_ratios(base_edits, tuned_edits, num_units, resampling)
    n, confidence = len(num_units), resampling.confidence
    sides = [
        wilson_interval(0, n, confidence) if not edits.any() else interval
        for edits, interval in ((base_edits, estimate.base_interval), (tuned_edits, estimate.tuned_interval))
    ]
    delta_interval = estimate.delta_interval
    if sides[0] is not None and sides[1] is not None and not (base_edits.any() and tuned_edits.any()):
        both = (estimate.base, sides[0]), (estimate.tuned, sides[1])
        (base, base_bounds), (tuned, tuned_bounds) = both
        down = math.hypot(tuned - tuned_bounds.low, base_bounds.high - base)
        up = math.hypot(tuned_bounds.high - tuned, base - base_bounds.low)
        delta_interval = Interval(estimate.delta - down, estimate.delta + up)
    return replace(estimate, base_interval=sides[0], tuned_interval=sides[1], delta_interval=delta_interval)


def _compare_ratios(
    sums: FloatArray, weights: FloatArray, resampling: Resampling, *, exponential: bool
) -> PairedEstimate:
    """sums [K=2, N] over weights [N]: the estimates sum(sums) / sum(weights), or their exponentials."""
    transform = np.exp if exponential else np.asarray
    with np.errstate(over="ignore", invalid="ignore"):
        base, tuned = (float(value) for value in transform(sums.sum(1) / weights.sum()))
        if len(weights) < 2:
            return PairedEstimate(base, tuned, tuned - base, None, None, None)
        replicates = transform(resampled_ratios(sums, weights, resampling))  # [R, K]
        left_out = transform((sums.sum(1)[:, None] - sums) / (weights.sum() - weights)).T  # jackknife [N, K]

    return PairedEstimate(
        base,
        tuned,
        tuned - base,
        accelerated_interval(base, replicates[:, 0], left_out[:, 0], resampling.confidence),
        accelerated_interval(tuned, replicates[:, 1], left_out[:, 1], resampling.confidence),
        percentile_interval(replicates[:, 1] - replicates[:, 0], len(weights), resampling.confidence),
        errors=_errors_of_replicates(replicates, len(weights)),
        p_value=bootstrap_p_value(replicates[:, 1] - replicates[:, 0], len(weights)),
        test=BOOTSTRAP,
    )


def compare_labels(base: FloatArray, tuned: FloatArray, expected: FloatArray, resampling: Resampling) -> PairedEstimate:
    """Macro F1 of two models on the same items, one-hot [N, L] each; percentiles of the paired bootstrap, and Wilson's
    interval where no resample varies."""
    n = len(expected)
    once = np.ones((1, n))
    values = [float(macro_f1(once, said, expected)[0]) for said in (base, tuned)]
    if n < 2:
        return PairedEstimate(values[0], values[1], values[1] - values[0], None, None, None)
    generator = np.random.default_rng(resampling.seed)
    chunk = max(1, INDICES_PER_CHUNK // n)
    parts = []
    for start in range(0, resampling.num_samples, chunk):
        size = min(chunk, resampling.num_samples - start)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        parts.append(np.stack([macro_f1(counts, said, expected) for said in (base, tuned)], axis=1))
    replicates = np.concatenate(parts)  # [R, K]
    intervals = [
        wilson_interval(value * n, n, resampling.confidence)
        if np.ptp(column) == 0
        else percentile_interval(column, n, resampling.confidence)
        for value, column in zip(values, replicates.T, strict=True)
    ]
    delta = replicates[:, 1] - replicates[:, 0]
    delta_interval = (
        _square_and_add(
            values[1] - values[0], (values[0], intervals[0]), (values[1], intervals[1]), correlation=0.0
        )
        if np.ptp(delta) == 0
        else percentile_interval(delta, n, resampling.confidence)
    )  # fmt: skip
    return PairedEstimate(
        values[0], values[1], values[1] - values[0], intervals[0], intervals[1], delta_interval,
        _errors_of_replicates(replicates, n), bootstrap_p_value(delta, n), BOOTSTRAP,
    )  # fmt: skip


def _errors_of_replicates(replicates: FloatArray, n: int) -> tuple[float | None, float | None, float | None]:
    """Standard errors of base, tuned and their difference from bootstrap replicates [R, K] of n >= 2 items."""
    widened = math.sqrt(n / (n - 1))
    with np.errstate(invalid="ignore"):
        columns = (replicates[:, 0], replicates[:, 1], replicates[:, 1] - replicates[:, 0])
        found = [float(column.std()) * widened for column in columns]
    told = [error if math.isfinite(error) else None for error in found]
    return told[0], told[1], told[2]


def resampled_ratios(sums: FloatArray, weights: FloatArray, resampling: Resampling) -> FloatArray:
    """sum(sums) / sum(weights) over items drawn with replacement: sums [K, N], weights [N] -> [R, K]."""
    generator = np.random.default_rng(resampling.seed)
    n = len(weights)
    chunk = max(1, INDICES_PER_CHUNK // n)
    parts = []
    for start in range(0, resampling.num_samples, chunk):
        picks = generator.integers(0, n, size=(min(chunk, resampling.num_samples - start), n))
        parts.append(np.stack([row[picks].sum(1) for row in sums], axis=1) / weights[picks].sum(1)[:, None])
    return np.concatenate(parts)


def percentile_interval(replicates: FloatArray, n: int, confidence: float) -> Interval:
    """Percentiles of bootstrap replicates [R] of n >= 2 items, at the t-widened level."""
    tail = NORMAL.cdf(-_reach(n, confidence))
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _reach(n: int, confidence: float) -> float:
    """Standard errors to either side, in the units of a bootstrap, whose spread is sqrt((n - 1) / n) too small."""
    return math.sqrt(n / (n - 1)) * student_quantile(0.5 + confidence / 2, n - 1)


def accelerated_interval(estimate: float, replicates: FloatArray, jackknife: FloatArray, confidence: float) -> Interval:
    """BCa interval from bootstrap replicates [R] and leave-one-out estimates [N], N >= 2, at t-widened levels."""
    n, num_replicates = len(jackknife), len(replicates)
    if np.ptp(replicates) == 0:
        return Interval(float(replicates[0]), float(replicates[0]))
    below = (replicates < estimate).sum() + 0.5 * (replicates == estimate).sum()
    share = min(max(float(below) / num_replicates, 1 / (num_replicates + 1)), num_replicates / (num_replicates + 1))
    bias = NORMAL.inv_cdf(share)
    deviations = jackknife.mean() - jackknife
    spread = float((deviations**2).sum()) ** 1.5
    acceleration = float((deviations**3).sum()) / (6 * spread) if spread > 0 else 0.0
    reach = _reach(n, confidence)
    levels = [_corrected_level(bias, acceleration, z) for z in (-reach, reach)]
    low, high = np.quantile(replicates, levels)
    return Interval(float(low), float(high))


def _corrected_level(bias: float, acceleration: float, z: float) -> float:
    shifted = bias + z
    denominator = 1 - acceleration * shifted
    # Past its pole the correction would turn the tail around: the level there is the tail's end.
    if denominator <= 0:
        return 0.0 if z < 0 else 1.0
    return NORMAL.cdf(bias + shifted / denominator)


def student_quantile(level: float, degrees: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else the Cornish-Fisher series
    (Abramowitz and Stegun 26.7.5), whose 97.5 % quantile is within 0.2 % at 3 degrees and 0.001 % from 10."""
    if degrees == 1:
        return math.tan(math.pi * (level - 0.5))
    if degrees == 2:
        return (2 * level - 1) * math.sqrt(2 / (4 * level * (1 - level)))
    z: float = NORMAL.inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
