"""Two distributions against each other: population stability index for lengths, difference for rates. Pure functions.

A raw index grows with few rows even where nothing drifted: for B bins its expected value under "no drift" is about
(B - 1)(1/n + 1/m). So bins are merged until each holds enough rows, and a check drifts only above its noise.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from halo_forge.monitor.records import DriftCheck, Histogram

ROWS_PER_BIN = 20
MAX_BINS = 10
SIGNIFICANCE_Z = 3.09  # one-sided 0.1 % of the normal distribution
SMOOTHING = 0.5  # added to every count, so that an empty bin has a finite logarithm (Jeffreys prior)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    yes: float
    total: int

    @property
    def value(self) -> float:
        return self.yes / self.total


def length_check(name: str, reference: Histogram, lengths: Sequence[int], threshold: float) -> DriftCheck:
    """`lengths` in characters, at least one; `reference` holds at least one row."""
    num_reference = sum(reference.counts)
    observed_counts = [0] * len(reference.counts)
    for length in lengths:
        observed_counts[bisect_left(reference.edges, length)] += 1
    num_bins = min(MAX_BINS, max(2, min(num_reference, len(lengths)) // ROWS_PER_BIN))
    groups = merged_bins(reference.counts, num_bins)
    statistic = population_stability_index(
        [sum(reference.counts[start:stop]) for start, stop in groups],
        [sum(observed_counts[start:stop]) for start, stop in groups],
    )
    noise = (1 / num_reference + 1 / len(lengths)) * chi_square_quantile(len(groups) - 1)
    before, now = histogram_median(reference), float(sorted(lengths)[(len(lengths) - 1) // 2])
    drifted = statistic > max(threshold, noise)
    return DriftCheck(
        name=name,
        kind="length",
        reference=before,
        observed=now,
        statistic=statistic,
        threshold=threshold,
        noise=noise,
        drifted=drifted,
        words=f"{name}: stability index {statistic:.3f}, {_against(threshold, noise, drifted)}; "
        f"median {before:,.0f} characters at release, {now:,.0f} in the log",
    )


def rate_check(name: str, reference: Rate, observed: Rate, threshold: float) -> DriftCheck:
    change = abs(observed.value - reference.value)
    pooled = (reference.yes + observed.yes) / (reference.total + observed.total)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / reference.total + 1 / observed.total))
    noise = SIGNIFICANCE_Z * spread
    drifted = change > max(threshold, noise)
    return DriftCheck(
        name=name,
        kind="rate",
        reference=reference.value,
        observed=observed.value,
        statistic=change,
        threshold=threshold,
        noise=noise,
        drifted=drifted,
        words=f"{name}: {reference.value:.1%} at release, {observed.value:.1%} in the log, "
        f"a change of {change:.3f}, {_against(threshold, noise, drifted)}",
    )


def _against(threshold: float, noise: float, drifted: bool) -> str:
    if drifted:
        return f"above {threshold:g}"
    if noise > threshold:
        return f"not above what chance gives with so few rows ({noise:.3f}; the threshold is {threshold:g})"
    return f"within {threshold:g}"


def merged_bins(counts: Sequence[int], num_bins: int) -> list[tuple[int, int]]:
    """Neighbouring bins joined to about `num_bins` of equal mass, as (start, stop) ranges that cover all of `counts`.
    The first and last bin lie outside the reference and stay alone: values out there are the clearest drift."""
    inner_stop = len(counts) - 1
    target = sum(counts) / num_bins
    groups, start, mass = [(0, 1)], 1, 0
    for index in range(1, inner_stop):
        mass += counts[index]
        if mass >= target:
            groups.append((start, index + 1))
            start, mass = index + 1, 0
    if start < inner_stop:
        groups.append((start, inner_stop))
    return [*groups, (inner_stop, len(counts))]


def population_stability_index(reference: Sequence[int], observed: Sequence[int]) -> float:
    """Sum over bins of (q - p) ln(q / p), with smoothed shares p of the reference and q of the observation."""
    p_total = sum(reference) + SMOOTHING * len(reference)
    q_total = sum(observed) + SMOOTHING * len(observed)
    index = 0.0
    for p_count, q_count in zip(reference, observed, strict=True):
        p, q = (p_count + SMOOTHING) / p_total, (q_count + SMOOTHING) / q_total
        index += (q - p) * math.log(q / p)
    return index


def chi_square_quantile(degrees: int, z: float = SIGNIFICANCE_Z) -> float:
    """Quantile of the chi-square distribution at the normal quantile z (Wilson and Hilferty 1931); 0 for 0 degrees."""
    if degrees < 1:
        return 0.0
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + z * math.sqrt(part)) ** 3)


def histogram_median(histogram: Histogram) -> float:
    """Upper edge of the bin that holds the middle value."""
    middle, seen = sum(histogram.counts) / 2, 0
    for edge, count in zip(histogram.edges, histogram.counts, strict=False):
        seen += count
        if seen >= middle:
            return float(edge)
    return float(histogram.edges[-1])
