"""P-values against enumeration of every outcome, scipy where it is installed, and repeated sampling."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from halo_forge.evaluate.paired_tests import bootstrap_p_value, mcnemar_p_value, student_two_sided
from halo_forge.evaluate.statistics import Resampling, compare_labels, compare_means, compare_rates


@pytest.mark.parametrize("changed", range(11))
def test_mcnemar_counts_every_way_the_changes_could_have_fallen(changed: int) -> None:
    """Each changed item is won or lost by a fair coin: the share of all ways that are at least as lopsided."""
    ways = [sum(way) for way in product((0, 1), repeat=changed)]
    for won in range(changed + 1):
        lopsided = abs(2 * won - changed)
        expected = Fraction(sum(abs(2 * other - changed) >= lopsided for other in ways), len(ways))
        assert mcnemar_p_value(won, changed - won) == pytest.approx(float(expected), abs=1e-15)


def test_mcnemar_is_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for won, lost in [(5, 0), (1, 9), (30, 12), (200, 150), (3000, 2900), (0, 400)]:
        assert mcnemar_p_value(won, lost) == pytest.approx(stats.binomtest(won, won + lost).pvalue, rel=1e-9)


def test_a_published_example() -> None:
    # Fagerland et al. 2013, airway hyper-responsiveness before and after transplantation: 1 and 7 of 21 changed.
    assert mcnemar_p_value(1, 7) == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("t", "degrees", "expected"), [
    (12.7062, 1, 0.05), (4.30265, 2, 0.05), (3.18245, 3, 0.05), (2.26216, 9, 0.05), (2.86093, 19, 0.01),
    (1.959964, 10**6, 0.05), (0.0, 7, 1.0),
])  # fmt: skip
def test_student_tails_of_the_tables(t: float, degrees: int, expected: float) -> None:
    assert student_two_sided(t, degrees) == pytest.approx(expected, abs=2e-6)


def test_student_tails_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for t, degrees in product((0.3, 2.1, 5.0, 40.0), (1, 2, 3, 4, 19, 60, 999, 10_000)):
        assert student_two_sided(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), abs=1e-12)


@pytest.mark.parametrize("n", [12, 40])
def test_without_a_difference_few_p_values_are_small(n: int) -> None:
    generator = np.random.default_rng(1)
    p_values = [
        compare_means(*generator.exponential(size=(2, n)), Resampling(0.95, 400, seed=draw)).p_value
        for draw in range(600)
    ]
    small = sum(p is not None and p < 0.05 for p in p_values) / 600
    assert 0.02 <= small <= 0.075  # 0.05 +- 2.8 standard errors


def test_a_small_p_value_says_what_the_interval_says() -> None:
    generator = np.random.default_rng(2)
    for draw in range(60):
        base = generator.normal(size=25)
        estimate = compare_means(base, base + generator.normal(0.35, 0.8, size=25), Resampling(0.95, 1000, seed=draw))
        assert estimate.delta_interval is not None
        assert estimate.p_value is not None
        excludes = not estimate.delta_interval.low <= 0 <= estimate.delta_interval.high
        if abs(estimate.p_value - 0.05) > 0.01:
            assert excludes == (estimate.p_value < 0.05)


def test_a_p_value_has_the_depth_of_its_resamples_and_nothing_changed_is_one() -> None:
    same = np.arange(30.0)
    assert compare_means(same, same, Resampling()).p_value == 1.0
    certain = compare_means(same, same + 5, Resampling(0.95, 100)).p_value
    assert certain is not None
    assert 0.001 < certain < 0.05  # a hundred resamples show no less than about 2 / 101
    assert compare_means(same[:1], same[:1], Resampling()).p_value is None
    assert bootstrap_p_value(np.array([1.0, math.inf]), 2) is None


def test_standard_errors_are_those_of_the_definition() -> None:
    base, tuned = np.array([0.0, 0, 1, 1, 0]), np.array([1.0, 0, 1, 1, 1])
    estimate = compare_rates(base, tuned, 0.95)
    expected = [np.std(values, ddof=1) / math.sqrt(5) for values in (base, tuned, tuned - base)]
    assert estimate.errors == pytest.approx(tuple(expected))
    assert (estimate.p_value, estimate.test) == (0.5, "McNemar exact")


def test_labels_have_an_interval_that_covers_and_a_test() -> None:
    """Macro F1 over 300 draws of 60 answers against its value over a million."""
    generator = np.random.default_rng(4)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        expected = generator.choice(3, size=n, p=[0.5, 0.3, 0.2])
        said = np.where(generator.random(n) < 0.7, expected, generator.integers(0, 4, size=n))  # 3 is no label
        return np.eye(4)[said][:, :3], np.eye(3)[expected]

    said, expected = draw(1_000_000)
    hits = (said * expected).sum(0)
    truth = float((2 * hits / (said.sum(0) + expected.sum(0))).mean())
    covered = small = 0
    for seed in range(300):
        first, expected = draw(60)
        wrong = np.where(generator.random(60) < 0.7, expected.argmax(1), generator.integers(0, 4, size=60))
        estimate = compare_labels(first, np.eye(4)[wrong][:, :3], expected, Resampling(0.95, 300, seed=seed))
        assert estimate.base_interval is not None
        assert estimate.p_value is not None
        covered += estimate.base_interval.low <= truth <= estimate.base_interval.high
        small += estimate.p_value < 0.05
    assert 0.91 <= covered / 300 <= 0.99
    assert small / 300 <= 0.09
