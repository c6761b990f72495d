"""How surprising a difference is when nothing has changed: p-values, and which of many to believe. Pure functions.

Every p-value here is a probability under "both sides are samples of one distribution". Fisher's test and the
beta-binomial are exact; the two others are approximations whose error benchmarks/monitor.py measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MIN_EXPECTED = 5.0
"""Categories with a smaller expected count are pooled (Cochran 1954); the chi-square distribution needs that many."""


def chi_square_sf(statistic: float, degrees: float) -> float:
    """P(X >= statistic) of a chi-square variable; `degrees` may be a fraction. The regularised incomplete gamma
    function Q(a, x) by its series for x < a + 1, else by its continued fraction (DLMF 8.11.4 and 8.9.2)."""
    if degrees <= 0 or statistic <= 0:
        return 1.0
    a, x = degrees / 2, statistic / 2
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        divisor = a
        while term > total * 1e-15:
            divisor += 1
            term *= x / divisor
            total += term
        return max(0.0, 1 - front * total)
    tiny = 1e-300  # Lentz's method: no part of the fraction may be 0
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    fraction = d
    for i in range(1, 10_000):
        step = -i * (i - a)
        b += 2
        d = 1 / (step * d + b or tiny)
        c = b + step / c or tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return min(1.0, front * fraction)


@lru_cache(maxsize=4)
def _log_factorials(size: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])


def _log_factorial(largest: int) -> np.ndarray:
    return _log_factorials(1 << max(10, int(largest).bit_length()))


def fisher_p(yes_a: int, num_a: int, yes_b: int, num_b: int) -> float:
    """Two-sided Fisher's exact test of two shares: the probability of all tables as likely as this one or less."""
    log = _log_factorial(num_a + num_b)
    yes = yes_a + yes_b
    k = np.arange(max(0, yes - num_b), min(num_a, yes) + 1)
    chances = (
        log[num_a] - log[k] - log[num_a - k]
        + log[num_b] - log[yes - k] - log[num_b - yes + k]
        - (log[num_a + num_b] - log[yes] - log[num_a + num_b - yes])
    )  # fmt: skip
    observed = chances[yes_a - k[0]]
    return float(min(1.0, np.exp(chances[chances <= observed + 1e-9]).sum()))


def sign_test_p(rose: int, fell: int) -> float:
    """Two-sided: how often a fair coin lands so unevenly in rose + fell throws. 1 without any."""
    num, low = rose + fell, min(rose, fell)
    return min(1.0, float(2 * sum(math.comb(num, k) for k in range(low + 1)) / 2**num))


def beta_binomial_sf(x: int, n: int, outside: int, held: int) -> float:
    """P(at least x of n new values lie beyond the order statistic that `outside` of `held` old values lie beyond), when
    old and new are exchangeable: a beta-binomial with Beta(outside + 1, held - outside). Exact without ties."""
    if x <= 0:
        return 1.0
    a, b = outside + 1, held - outside
    log = _log_factorial(n + held + 1)
    k = np.arange(x, n + 1)
    chances = (
        log[n] - log[k] - log[n - k]
        + log[k + a - 1] + log[n - k + b - 1] - log[n + a + b - 1]
        - (log[a - 1] + log[b - 1] - log[a + b - 1])
    )  # fmt: skip
    return float(min(1.0, np.exp(chances).sum()))


def homogeneity_p(before: Sequence[int], now: Sequence[int]) -> float:
    """Whether two rows of counts share one distribution: Pearson's chi-square over the categories, the rare ones
    pooled; where two are left, Fisher's exact test. 1 where everything falls into one category."""
    rows = pool_rare(np.array([before, now], np.int64))
    if rows.shape[1] < 2:
        return 1.0
    totals = rows.sum(1)
    if rows.shape[1] == 2:
        return fisher_p(int(rows[0, 0]), int(totals[0]), int(rows[1, 0]), int(totals[1]))
    expected = totals[:, None] * rows.sum(0) / totals.sum()
    statistic = float(((rows - expected) ** 2 / expected).sum())
    return chi_square_sf(statistic, rows.shape[1] - 1)


def pool_rare(rows: np.ndarray) -> np.ndarray:
    """int64 [2, categories]: columns joined, rarest first, until each is expected at least MIN_EXPECTED times in both
    rows. Which are joined depends on the column totals alone, so that the test stays one."""
    columns = [column for column in rows.T if column.sum()]
    smaller_share = rows.sum(1).min() / max(rows.sum(), 1)
    columns.sort(key=lambda column: int(column.sum()))
    while len(columns) > 2 and columns[0].sum() * smaller_share < MIN_EXPECTED:
        columns = sorted([columns[0] + columns[1], *columns[2:]], key=lambda column: int(column.sum()))
    return np.array(columns).T if columns else np.zeros((2, 0), np.int64)


def weighted_chi_square_sf(statistic: float, traces: tuple[float, float, float]) -> float:
    """P(sum of w_i X_i >= statistic), X_i independent chi-square of one degree, given the sums of w, w^2 and w^3: a
    chi-square with the same mean, variance and skewness (Hall 1983; Buckley and Eagleson 1988)."""
    first, second, third = traces
    if min(traces) <= 0:
        return 1.0
    mean, variance, skew = first, 2 * second, 8 * third
    degrees = 8 * variance**3 / skew**2
    return chi_square_sf(degrees + (statistic - mean) * math.sqrt(2 * degrees / variance), degrees)


def benjamini_yekutieli(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: those at most q are reported, and the expected share of false ones among them is at most q,
    however the checks depend on each other (Benjamini and Yekutieli 2001, theorem 1.3). Where nothing has changed every
    report is false, so q is then also the chance that there is any."""
    num = len(p_values)
    harmonic = sum(1 / k for k in range(1, num + 1))
    order = sorted(range(num), key=lambda at: p_values[at], reverse=True)
    adjusted, smallest = [1.0] * num, 1.0
    for rank, at in zip(range(num, 0, -1), order, strict=True):
        smallest = min(smallest, p_values[at] * num * harmonic / rank)
        adjusted[at] = smallest
    return adjusted


def smallest_reported(num_checks: int, rate: float) -> float:
    """A check is reported by itself when its p-value is at most this."""
    return rate / (num_checks * sum(1 / k for k in range(1, num_checks + 1)))
