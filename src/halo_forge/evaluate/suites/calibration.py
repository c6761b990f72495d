"""Probabilities of choices from their likelihoods, and how well they keep their word.

Axes: N items, K choices of one item (may differ between items), R resamples, B bins.

The probability of a choice is the softmax over the item's choices of their total log likelihood as an answer in the
chat template; nothing is divided by length, so choices of one item should be of about equal length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from halo_forge.evaluate.statistics import (
    Interval,
    PairedEstimate,
    Resampling,
    accelerated_interval,
    percentile_interval,
)

FloatArray = npt.NDArray[np.float64]
NUM_BINS = 10
"""Of equal width over (0, 1], each closed above: 0.1 belongs to the first."""


def choice_probabilities(nll_sums: Sequence[float]) -> FloatArray:
    """[K] from the nats of each choice [K]."""
    logits = -np.asarray(nll_sums, dtype=np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def brier_score(probabilities: FloatArray, answer: int) -> float:
    """sum_k (p_k - [k is right])^2, from 0 to 2 (Brier 1950)."""
    truth = np.zeros_like(probabilities)
    truth[answer] = 1.0
    return float(((probabilities - truth) ** 2).sum())


def expected_calibration_error(confidence: FloatArray, right: FloatArray) -> float:
    """sum over bins of |right - confidence| of the items in it / N (Naeini et al. 2015, Guo et al. 2017).

    confidence [N] in (0, 1], right [N] in {0, 1}, N >= 1.
    """
    return float(_errors_of_bins(confidence, right, np.ones((1, len(confidence))))[0])


def _errors_of_bins(confidence: FloatArray, right: FloatArray, counts: FloatArray) -> FloatArray:
    """ECE of each resample [R]; counts [R, N] is how often an item was drawn."""
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    membership = np.zeros((len(confidence), NUM_BINS))
    membership[np.arange(len(confidence)), bins] = right - confidence
    return np.abs(counts @ membership).sum(axis=1) / counts.sum(axis=1)


def compare_calibration(
    base: tuple[FloatArray, FloatArray], tuned: tuple[FloatArray, FloatArray], resampling: Resampling
) -> PairedEstimate:
    """ECE of two models on the same items; each (confidence [N], right [N]). Items are resampled with both values.

    The error of a resample is larger than that of the items it was drawn from, whatever the model: absolute values of
    noise do not cancel. The bias-corrected interval takes that into account for a model; the difference of two models
    is nearly free of it.
    """
    n = len(base[0])
    estimates = [expected_calibration_error(*model) for model in (base, tuned)]
    if n < 2:
        return PairedEstimate(estimates[0], estimates[1], estimates[1] - estimates[0], None, None, None)
    counts = draw_counts(n, resampling)
    replicates = [_errors_of_bins(*model, counts) for model in (base, tuned)]
    left_out = [_errors_of_bins(*model, 1.0 - np.eye(n)) for model in (base, tuned)]
    intervals = [
        accelerated_interval(estimate, replicate, jackknife, resampling.confidence)
        for estimate, replicate, jackknife in zip(estimates, replicates, left_out, strict=True)
    ]
    delta = percentile_interval(replicates[1] - replicates[0], n, resampling.confidence)
    return PairedEstimate(estimates[0], estimates[1], estimates[1] - estimates[0], *intervals, delta)


def draw_counts(n: int, resampling: Resampling) -> FloatArray:
    """How often each item is drawn in each resample: [R, N], rows sum to N."""
    generator = np.random.default_rng(resampling.seed)
    return generator.multinomial(n, np.full(n, 1 / n), size=resampling.num_samples).astype(np.float64)


def compare_precisions(
    picked: tuple[FloatArray, FloatArray], right: FloatArray, wilson: tuple[Interval, Interval], resampling: Resampling
) -> PairedEstimate:
    """Share of right items [N] among those that each model picked [N] of the same items; each picked at least one.

    wilson   each model's own interval, over the items it picked
    Each model has its own denominator, so the difference is bootstrapped over all items; resamples in which a model
    picks nothing are left out.
    """
    values = [float((chosen * right).sum() / chosen.sum()) for chosen in picked]
    counts = draw_counts(len(right), resampling)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [(counts @ (chosen * right)) / (counts @ chosen) for chosen in picked]
    differences = shares[1] - shares[0]
    differences = differences[np.isfinite(differences)]
    n = len(right)
    interval = percentile_interval(differences, n, resampling.confidence) if n > 1 and len(differences) > 1 else None
    return PairedEstimate(values[0], values[1], values[1] - values[0], wilson[0], wilson[1], interval)
