"""Intervals against closed forms, published numbers and repeated sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from halo_forge.evaluate.statistics import (
    FloatArray,
    Interval,
    Resampling,
    compare_means,
    compare_perplexities,
    compare_rates,
    newcombe_paired_interval,
    resampled_ratios,
    student_quantile,
    wilson_interval,
)


def yes(num_yes: int, n: int) -> FloatArray:
    return np.array([1.0] * num_yes + [0.0] * (n - num_yes))


@pytest.mark.parametrize(("level", "degrees", "expected"), [
    (0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 3, 3.18245), (0.975, 9, 2.26216), (0.975, 19, 2.09302),
    (0.95, 29, 1.69913), (0.75, 100, 0.67695),
])  # fmt: skip
def test_student_quantiles_of_the_tables(level: float, degrees: int, expected: float) -> None:
    assert student_quantile(level, degrees) == pytest.approx(expected, rel=2e-3)


def test_wilson_closed_forms() -> None:
    z2 = 1.959963985**2
    assert wilson_interval(60, 60, 0.95) == Interval(pytest.approx(60 / (60 + z2)), 1.0)
    assert wilson_interval(0, 10, 0.95) == Interval(0.0, pytest.approx(z2 / (10 + z2)))
    assert wilson_interval(1, 1, 0.95).low == pytest.approx(1 / (1 + z2))
    half = wilson_interval(30, 60, 0.95)
    assert half.low + half.high == pytest.approx(1.0)


def test_newcombes_published_example() -> None:
    # Newcombe 1998, Table II, 36 / 12 / 2 / 0 by method 10: 0.20 with 0.0569 to 0.3404.
    base = np.array([1.0] * 36 + [0.0] * 12 + [1.0] * 2)
    tuned = np.array([1.0] * 36 + [1.0] * 12 + [0.0] * 2)
    interval = newcombe_paired_interval(base, tuned, 0.95)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.0569, 0.3404)
    mirrored = newcombe_paired_interval(tuned, base, 0.95)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))


def test_agreeing_answers_narrow_the_difference_with_the_continuity_correction() -> None:
    # 20 both, 10 only base, 10 only tuned, 20 neither: phi = (20 * 20 - 10 * 10 - 60 / 2) / (30 * 30) = 0.3.
    base, tuned = (
        np.array([1.0] * 20 + part + [0.0] * 20) for part in ([1.0] * 10 + [0.0] * 10, [0.0] * 10 + [1.0] * 10)
    )
    half = wilson_interval(30, 60, 0.95).high - 0.5
    interval = newcombe_paired_interval(base, tuned, 0.95)
    assert interval.high == pytest.approx(half * math.sqrt(2 - 2 * 0.3))
    assert interval.low == pytest.approx(-interval.high)


def test_perfect_answers_do_not_claim_certainty() -> None:
    estimate = compare_rates(yes(0, 60), yes(60, 60), 0.95)
    assert (estimate.base, estimate.tuned, estimate.delta) == (0.0, 1.0, 1.0)
    assert estimate.tuned_interval is not None
    assert 0.93 < estimate.tuned_interval.low < 0.95
    assert estimate.delta_interval is not None
    assert 0.9 < estimate.delta_interval.low < 0.95
    assert estimate.delta_interval.high == 1.0
    both = compare_rates(yes(60, 60), yes(60, 60), 0.95).delta_interval
    assert both is not None
    assert -0.07 < both.low < 0 < both.high < 0.07
    one = compare_rates(yes(1, 1), yes(1, 1), 0.95)
    assert one.tuned_interval == wilson_interval(1, 1, 0.95)


@pytest.mark.parametrize("rates", [(0.02, 0.03), (0.1, 0.3), (0.5, 0.55), (0.7, 0.97)])
@pytest.mark.parametrize("agreement", [0.0, 0.6])
def test_paired_rate_intervals_cover(rates: tuple[float, float], agreement: float) -> None:
    """Over 4000 draws of 60 paired answers, independent or copied from one coin with probability `agreement`."""
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(4000):
        shared = generator.random(60)
        coins = [np.where(generator.random(60) < agreement, shared, generator.random(60)) for _ in rates]
        base, tuned = ((coin < rate).astype(np.float64) for coin, rate in zip(coins, rates, strict=True))
        interval = newcombe_paired_interval(base, tuned, 0.95)
        covered += interval.low <= rates[1] - rates[0] <= interval.high
    # Far too few yes answers leave any honest interval wide; it must never be too narrow.
    assert covered / 4000 >= 0.93
    if min(rates) >= 0.1:
        assert covered / 4000 <= 0.985


Draw = Callable[[np.random.Generator, int], FloatArray]
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda generator, n: generator.normal(size=n), 0.0),
    "exponential": (lambda generator, n: generator.exponential(size=n), 1.0),
    "many ones": (lambda generator, n: np.where(generator.random(n) < 0.7, 1.0, generator.random(n)), 0.85),
}


@pytest.mark.parametrize(("name", "n"), list(product(DISTRIBUTIONS, (20, 60))))
def test_bootstrap_intervals_cover(name: str, n: int) -> None:
    draw, mean = DISTRIBUTIONS[name]
    generator = np.random.default_rng(3)
    covered = covered_delta = 0
    for trial in range(600):
        base, tuned = draw(generator, n), draw(generator, n) + 0.5
        estimate = compare_means(base, tuned, Resampling(0.95, 500, seed=trial))
        assert estimate.base_interval is not None
        assert estimate.delta_interval is not None
        covered += estimate.base_interval.low <= mean <= estimate.base_interval.high
        covered_delta += estimate.delta_interval.low <= 0.5 <= estimate.delta_interval.high
    assert 0.92 <= covered / 600 <= 0.98
    assert 0.92 <= covered_delta / 600 <= 0.98


def test_perplexity_intervals_cover() -> None:
    generator = np.random.default_rng(5)
    covered = covered_delta = 0
    for trial in range(600):
        num_tokens = generator.integers(5, 60, size=60)
        rate = generator.gamma(4, 0.3, size=60)  # nats a token, mean 1.2, whatever the length
        base, tuned = rate * num_tokens, 0.5 * rate * num_tokens
        estimate = compare_perplexities(base, tuned, num_tokens, Resampling(0.95, 500, seed=trial))
        assert estimate.base_interval is not None
        assert estimate.delta_interval is not None
        covered += estimate.base_interval.low <= math.exp(1.2) <= estimate.base_interval.high
        covered_delta += estimate.delta_interval.low <= math.exp(0.6) - math.exp(1.2) <= estimate.delta_interval.high
    assert 0.92 <= covered / 600 <= 0.98
    assert 0.92 <= covered_delta / 600 <= 0.98


def test_perplexity_is_by_token_and_not_by_answer() -> None:
    base, tuned = np.array([10.0, 90.0]), np.array([5.0, 45.0])
    estimate = compare_perplexities(base, tuned, np.array([10, 30]), Resampling())
    assert estimate.base == pytest.approx(math.exp(100 / 40))
    assert estimate.tuned == pytest.approx(math.exp(50 / 40))
    assert estimate.delta == estimate.tuned - estimate.base


def test_pairing_is_used() -> None:
    """The same noise in both leaves the difference sharp; independent resampling would blur it."""
    noise = np.random.default_rng(0).normal(size=50) * 10
    estimate = compare_means(noise, noise + 1, Resampling())
    assert estimate.delta_interval is not None
    assert estimate.delta_interval.high - estimate.delta_interval.low < 1e-9
    assert estimate.base_interval is not None
    assert estimate.base_interval.high - estimate.base_interval.low > 3


def test_the_bootstrap_resamples_ratios_of_sums() -> None:
    sums, weights = np.array([[4.0, 9.0]]), np.array([1.0, 3.0])
    found = {round(value, 9) for value in resampled_ratios(sums, weights, Resampling(num_samples=200))[:, 0]}
    assert found == {4.0, 3.0, 3.25}  # the first twice, the second twice, one of each: 13 / 4


def test_chunks_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    values, weights = np.arange(30.0)[None], np.ones(30)
    whole = resampled_ratios(values, weights, Resampling(num_samples=100))
    monkeypatch.setattr("halo_forge.evaluate.statistics.INDICES_PER_CHUNK", 30 * 7)
    np.testing.assert_array_equal(resampled_ratios(values, weights, Resampling(num_samples=100)), whole)


def test_same_seed_same_interval() -> None:
    base, tuned = np.random.default_rng(1).random((2, 40))
    first = compare_means(base, tuned, Resampling(seed=4))
    assert compare_means(base, tuned, Resampling(seed=4)) == first
    assert compare_means(base, tuned, Resampling(seed=5)) != first


def test_one_item_has_a_value_and_no_interval() -> None:
    estimate = compare_means(np.array([2.0]), np.array([3.0]), Resampling())
    assert (estimate.base, estimate.delta, estimate.base_interval, estimate.delta_interval) == (2.0, 1.0, None, None)
    perplexity = compare_perplexities(np.array([2.0]), np.array([4.0]), np.array([2]), Resampling())
    assert perplexity.tuned == pytest.approx(math.exp(2))
    assert perplexity.delta_interval is None


def test_bounded_scores_that_never_vary_keep_a_doubt() -> None:
    ones, halves = np.ones(60), np.full(60, 0.5)
    estimate = compare_means(halves, ones, Resampling(), bounded=True)
    assert estimate.tuned_interval == wilson_interval(60, 60, 0.95)
    assert estimate.base_interval == wilson_interval(30, 60, 0.95)
    assert estimate.delta_interval is not None
    assert estimate.delta_interval.low < 0.5 < estimate.delta_interval.high
    # A count that never varies is what it is.
    assert compare_means(halves, ones, Resampling()).tuned_interval == Interval(1.0, 1.0)


def test_wider_confidence_is_wider() -> None:
    base, tuned = np.random.default_rng(2).random((2, 40))
    narrow, wide = (compare_means(base, tuned, Resampling(level)).delta_interval for level in (0.8, 0.99))
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low < narrow.high < wide.high
