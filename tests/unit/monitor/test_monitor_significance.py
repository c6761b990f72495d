"""p-values against values computed elsewhere or by brute force, and the false-alarm rate that is promised."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from math import comb
from statistics import NormalDist

import numpy as np
import pytest

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.monitor.drift import drift_checks
from halo_forge.monitor.production_log import LoggedRow
from halo_forge.monitor.records import Reference
from halo_forge.monitor.significance import (
    benjamini_yekutieli,
    beta_binomial_sf,
    chi_square_sf,
    fisher_p,
    homogeneity_p,
    sign_test_p,
    smallest_reported,
    weighted_chi_square_sf,
)
from halo_forge.monitor.window import Instruments, Window
from halo_forge.publish.reference import reference_of
from halo_forge.traits.hashed_vectors import hashed_vectors
from monitored_traffic import Row, support_rows


@pytest.mark.parametrize("statistic", [0.1, 1.0, 3.84, 10.0, 40.0])
def test_chi_square_of_one_and_two_degrees_in_closed_form(statistic: float) -> None:
    one = 2 * (1 - NormalDist().cdf(math.sqrt(statistic)))
    assert chi_square_sf(statistic, 1) == pytest.approx(one, rel=1e-5, abs=1e-15)
    assert chi_square_sf(statistic, 2) == pytest.approx(math.exp(-statistic / 2), rel=1e-12)


def test_chi_square_of_table_values() -> None:
    """The 5 % and 0.1 % points of the usual tables."""
    for degrees, point, chance in ((5, 11.0705, 0.05), (10, 18.307, 0.05), (20, 45.315, 0.001), (100, 124.342, 0.05)):
        assert chi_square_sf(point, degrees) == pytest.approx(chance, rel=1e-3)
    assert chi_square_sf(0, 3) == chi_square_sf(5, 0) == 1.0


def brute_fisher(a: int, num_a: int, b: int, num_b: int) -> float:
    yes = a + b
    chances = {k: comb(num_a, k) * comb(num_b, yes - k) for k in range(yes + 1) if k <= num_a and yes - k <= num_b}
    return sum(c for c in chances.values() if c <= chances[a]) / sum(chances.values())


@pytest.mark.parametrize("table", [(3, 10, 9, 12), (0, 40, 3, 100), (8, 8, 0, 8), (0, 5, 0, 7), (1, 300, 14, 300)])
def test_fishers_exact_test_against_all_tables(table: tuple[int, int, int, int]) -> None:
    assert fisher_p(*table) == pytest.approx(brute_fisher(*table), rel=1e-9)


def test_a_rank_that_is_passed_too_often_by_simulation() -> None:
    numbers = np.random.default_rng(0)
    passed = []
    for _ in range(20_000):
        old, new = np.sort(numbers.random(40)), numbers.random(100)
        passed.append(int((new > old[36]).sum()))  # 3 of the 40 lie beyond the 37th
    for x in (5, 12, 20):
        assert beta_binomial_sf(x, 100, 3, 40) == pytest.approx(np.mean(np.array(passed) >= x), abs=0.012)
    assert beta_binomial_sf(0, 100, 3, 40) == 1.0


def test_a_weighted_sum_of_chi_squares_by_simulation() -> None:
    weights = np.array([0.5, 0.2, 0.1, 0.05, 0.05])
    sums = (np.random.default_rng(1).standard_normal((400_000, 5)) ** 2) @ weights
    traces = (float(weights.sum()), float((weights**2).sum()), float((weights**3).sum()))
    for point in (1.5, 3.0, 5.0):
        assert weighted_chi_square_sf(point, traces) == pytest.approx((sums >= point).mean(), rel=0.12, abs=1e-4)


def test_the_sign_test_and_equal_rows() -> None:
    assert sign_test_p(0, 0) == 1.0
    assert sign_test_p(9, 1) == pytest.approx(22 / 1024)
    assert homogeneity_p([10, 0, 0], [500, 0, 0]) == 1.0
    assert homogeneity_p([50, 30, 20], [500, 300, 200]) == pytest.approx(1.0)
    assert homogeneity_p([50, 30, 20], [300, 300, 400]) < 1e-4


def test_adjusted_p_values_of_a_known_family() -> None:
    """Three checks: p times 3 (1 + 1/2 + 1/3) / rank, never falling with p."""
    assert benjamini_yekutieli([0.01, 0.04, 0.03]) == pytest.approx([0.055, 0.04 * 5.5 / 3, 0.04 * 5.5 / 3])
    assert benjamini_yekutieli([]) == []
    assert smallest_reported(1, 0.05) == 0.05


def no_drift(num_windows: int, sizes: Sequence[tuple[int, int]], limits: MonitorSection) -> tuple[float, float]:
    """(share of windows with a significant check, share with drift) when release and window are one distribution."""
    significant = drifted = 0
    pool = support_rows(6000, 0)
    vectors = hashed_vectors([row["prompt"] for row in pool])
    at = {row["prompt"]: index for index, row in enumerate(pool)}
    numbers = random.Random(1)
    for index in range(num_windows):
        num_reference, num_rows = sizes[index % len(sizes)]
        rows = numbers.sample(pool, num_reference + num_rows)
        reference = made_reference(rows[:num_reference], limits)
        window = Window(1)
        logged = [LoggedRow(r["prompt"], r["answer"], r["finish_reason"] == "stop") for r in rows[num_reference:]]
        embed = lambda texts: vectors[[at[text] for text in texts]]  # noqa: E731
        window.add(logged, Instruments(reference.prompt_space, embed))
        checks, _ = drift_checks(reference, window, limits)
        significant += any(check.significant for check in checks)
        drifted += any(check.drifted for check in checks)
    return significant / num_windows, drifted / num_windows


def made_reference(rows: Sequence[Row], limits: MonitorSection) -> Reference:
    stopped = [row["finish_reason"] == "stop" for row in rows]
    facts = reference_of([row["prompt"] for row in rows], [row["answer"] for row in rows], stopped, limits)
    return Reference.model_validate({**facts, "weights_sha256": "", "holdout_sha256": ""})


SIZES = [(60, 150), (100, 400), (200, 200), (400, 1000)]


def test_without_drift_at_most_the_stated_share_of_windows_rings() -> None:
    """At 20 % stated, so that few windows can show it; significance alone already keeps the promise."""
    significant, drifted = no_drift(120, SIZES[:3], MonitorSection(false_alarm_rate=0.2))
    assert drifted <= significant <= 0.2


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_without_drift_over_two_thousand_windows(rate: float) -> None:
    significant, drifted = no_drift(2000, SIZES, MonitorSection(false_alarm_rate=rate))
    assert drifted <= significant <= rate
