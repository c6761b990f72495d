"""A window against the reference of a release: every check with its size, its p-value, and whether it is drift.

Two questions, both must be answered with yes. Is the difference more than chance (p-value, adjusted for all checks)? Is
it large enough to matter (stability index, change of a rate, discrepancy, each against its threshold)?
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.monitor.records import DriftCheck, Histogram, Reference
from halo_forge.monitor.significance import (
    benjamini_yekutieli,
    beta_binomial_sf,
    fisher_p,
    homogeneity_p,
    pool_rare,
    smallest_reported,
    weighted_chi_square_sf,
)
from halo_forge.monitor.window import Window
from halo_forge.traits.answers import RULES_VERSION
from halo_forge.traits.prompt_space import FIXED_POINT, PromptSpace

ROWS_PER_BIN = 20
MAX_BINS = 10
SMOOTHING = 0.5  # added to every count, so that an empty bin has a finite logarithm (Jeffreys prior)
MAX_CHECKS = 12
"""As many as there are, for the bound that a check is told to have missed."""
RATES = (
    ("JSON-valid answers", "json", "json_valid_rate"),
    ("empty answers", "empty", "empty_rate"),
    ("refusing answers", "refusal", "refusal_rate"),
    ("repeating answers", "repetition", "repetition_rate"),
    ("answers that end by themselves", "stopped", "stop_rate"),
)


def drift_checks(
    reference: Reference, window: Window, limits: MonitorSection
) -> tuple[tuple[DriftCheck, ...], dict[str, str]]:
    """(every comparison that both sides allow, name -> why of those that they do not)."""
    if not window.num_rows or not reference.num_rows:
        return (), {}
    checks = [
        length_check("prompt length", reference.prompt_chars, window.prompt_chars, limits),
        length_check("answer length", reference.answer_chars, window.answer_chars, limits),
    ]
    missing: dict[str, str] = {}
    for name, flag, field in RATES:
        rate = getattr(reference, field)
        total = window.flags["stop_known"] if flag == "stopped" else window.num_rows
        why = _why_no_rate(flag, rate, total, reference)
        if why:
            missing[name] = why
        else:
            yes = round(rate * reference.num_rows)
            checks.append(rate_check(name, yes, reference.num_rows, window.flags[flag], total, limits))
    for name, before, now in (
        ("prompt language", reference.prompt_languages, window.prompt_languages),
        ("answer language", reference.answer_languages, window.answer_languages),
    ):
        if before is None or not now:
            missing[name] = "the release did not store it" if before is None else "install the extra `language`"
        else:
            checks.append(category_check(name, before, now, limits))
    if reference.prompt_space is None or not window.num_placed:
        why = "the release stored no vectors" if reference.prompt_space is None else "its vectors cannot be made here"
        missing |= dict.fromkeys(("prompt vectors", "prompt topics", "new topics"), why)
    else:
        checks += vector_checks(reference.prompt_space, window, limits)
    return judged(checks, limits), missing


def _why_no_rate(flag: str, rate: float | None, total: int, reference: Reference) -> str | None:
    if rate is None:
        return "the release did not store it"
    if flag in ("refusal", "repetition") and reference.rules_version != RULES_VERSION:
        return "the release counted it by other rules"
    return "the log has no finish_reason" if not total else None


def judged(checks: Sequence[DriftCheck], limits: MonitorSection) -> tuple[DriftCheck, ...]:
    """The checks with their adjusted p-values and verdicts."""
    found = []
    for check, adjusted in zip(checks, benjamini_yekutieli([c.p_value for c in checks]), strict=True):
        significant = adjusted <= limits.false_alarm_rate
        drifted = significant and check.statistic > check.threshold
        words = f"{check.words}, {_against(check, significant, drifted)}"
        fields = {"adjusted_p": adjusted, "significant": significant, "drifted": drifted, "words": words}
        found.append(check.model_copy(update=fields))
    return tuple(found)


def _against(check: DriftCheck, significant: bool, drifted: bool) -> str:
    if drifted:
        return f"above {check.threshold:g}"
    if not significant and max(check.noise, check.statistic) > check.threshold:
        return f"not above what chance gives with so few rows ({check.noise:.3f}; the threshold is {check.threshold:g})"
    return f"within {check.threshold:g}"


# ---------------------------------------------------------------------------------------------- one check each


def length_check(name: str, reference: Histogram, lengths: Mapping[int, int], limits: MonitorSection) -> DriftCheck:
    """`lengths`: characters -> rows, at least one; `reference` holds at least one row."""
    num_before, num_now = sum(reference.counts), sum(lengths.values())
    observed = [0] * len(reference.counts)
    for length, rows in lengths.items():
        observed[bisect_left(reference.edges, length)] += rows
    num_bins = min(MAX_BINS, max(2, min(num_before, num_now) // ROWS_PER_BIN))
    groups = merged_bins(reference.counts, num_bins)
    before = [sum(reference.counts[start:stop]) for start, stop in groups]
    now = [sum(observed[start:stop]) for start, stop in groups]
    statistic = population_stability_index(before, now)
    medians = histogram_median(reference), _median(lengths)
    return DriftCheck(
        name=name,
        kind="length",
        reference=medians[0],
        observed=medians[1],
        statistic=statistic,
        threshold=limits.max_psi,
        noise=_chi_square_noise(len(groups) - 1, num_before, num_now, limits),
        p_value=homogeneity_p(before, now),
        words=f"{name}: stability index {statistic:.3f}; median {medians[0]:,.0f} characters at release, "
        f"{medians[1]:,.0f} in the log",
    )


def rate_check(
    name: str, yes_before: int, num_before: int, yes_now: int, num_now: int, limits: MonitorSection
) -> DriftCheck:
    before, now = yes_before / num_before, yes_now / num_now
    pooled = (yes_before + yes_now) / (num_before + num_now)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / num_before + 1 / num_now))
    return DriftCheck(
        name=name,
        kind="rate",
        reference=before,
        observed=now,
        statistic=abs(now - before),
        threshold=limits.max_rate_change,
        noise=_z(limits) * spread,
        p_value=fisher_p(yes_before, num_before, yes_now, num_now),
        words=f"{name}: {before:.1%} at release, {now:.1%} in the log, a change of {abs(now - before):.3f}",
    )


def category_check(name: str, before: Mapping[str, int], now: Mapping[str, int], limits: MonitorSection) -> DriftCheck:
    names = sorted({*before, *now})
    counts = [before.get(key, 0) for key in names], [now.get(key, 0) for key in names]
    num_before, num_now = sum(counts[0]), sum(counts[1])
    pooled = pool_rare(np.array(counts, np.int64))
    statistic = population_stability_index(pooled[0].tolist(), pooled[1].tolist())
    common = max(names, key=lambda key: (before.get(key, 0), key))
    shares = before.get(common, 0) / num_before, now.get(common, 0) / num_now
    return DriftCheck(
        name=name,
        kind="category",
        reference=shares[0],
        observed=shares[1],
        statistic=statistic,
        threshold=limits.max_psi,
        noise=_chi_square_noise(max(pooled.shape[1] - 1, 1), num_before, num_now, limits),
        p_value=homogeneity_p(*counts),
        words=f"{name}: stability index {statistic:.3f}; {common} {shares[0]:.1%} at release, "
        f"{shares[1]:.1%} in the log",
    )


def vector_checks(space: PromptSpace, window: Window, limits: MonitorSection) -> list[DriftCheck]:
    """Three views: any change of the distribution, other shares of the known topics, prompts far from all of them."""
    num = window.num_placed
    gap = np.array(window.features) / (num * FIXED_POINT) - np.array(space.feature_sums) / (
        space.num_rows * FIXED_POINT
    )
    scale = 1 / num + 1 / space.num_rows
    distance = float(gap @ gap)
    discrepancy = max(0.0, distance - space.traces[0] * scale)
    spread = math.sqrt(2 * space.traces[1])
    vectors = DriftCheck(
        name="prompt vectors",
        kind="vector",
        reference=None,
        observed=None,
        statistic=discrepancy,
        threshold=limits.max_mmd,
        noise=_z(limits) * spread * scale,
        p_value=weighted_chi_square_sf(distance / scale, space.traces),
        words=f"prompt vectors: squared discrepancy {discrepancy:.4f} ({space.kind})",
    )
    known = {f"topic {at + 1}": count for at, count in enumerate(space.topic_counts)}
    logged = Counter({f"topic {at + 1}": count for at, count in window.topics.items()})
    expected = (space.far_held + 1) / (space.num_held + 1)
    share = window.num_far / num
    far = DriftCheck(
        name="new topics",
        kind="rate",
        reference=expected,
        observed=share,
        statistic=max(0.0, share - expected),
        threshold=limits.max_rate_change,
        noise=_z(limits) * math.sqrt(expected * (1 - expected) * (1 / num + 1 / space.num_held)),
        p_value=beta_binomial_sf(window.num_far, num, space.far_held, space.num_held),
        words=f"new topics: {share:.1%} of the prompts are far from all of the release's, {expected:.1%} would be",
    )
    return [vectors, category_check("prompt topics", known, logged, limits), far]


def _chi_square_noise(degrees: int, num_before: int, num_now: int, limits: MonitorSection) -> float:
    return (1 / num_before + 1 / num_now) * chi_square_quantile(degrees, _z(limits))


def _z(limits: MonitorSection) -> float:
    """Normal quantile at which a single check is reported."""
    return NormalDist().inv_cdf(1 - smallest_reported(MAX_CHECKS, limits.false_alarm_rate))


# ---------------------------------------------------------------------------------------------- figures


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


def chi_square_quantile(degrees: int, z: float) -> float:
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


def _median(counts: Mapping[int, int]) -> float:
    middle, seen = (sum(counts.values()) + 1) // 2, 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= middle:
            return float(value)
    return 0.0
