"""The learning rate is a closed form; these are its values by hand."""

from __future__ import annotations

import math

import pytest

from halo_forge.config.schema import TrainingSection
from halo_forge.train.optimizer import Schedule, make_schedule


def schedule(kind: str, **changes: float) -> Schedule:
    fields = {"kind": kind, "peak": 1.0, "num_steps": 11, "warmup_steps": 0, "min_ratio": 0.1} | changes
    return Schedule(**fields)  # type: ignore[arg-type]


def test_warm_up_rises_in_equal_parts_and_reaches_the_peak() -> None:
    warm = schedule("cosine", warmup_steps=4, num_steps=20)
    assert [warm.rate(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert warm.rate(4) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_decay_ends_at_the_floor(kind: str) -> None:
    assert schedule(kind).rate(0) == pytest.approx(1.0)
    assert schedule(kind).rate(10) == pytest.approx(0.1)


def test_cosine_and_linear_are_half_way_down_in_the_middle() -> None:
    assert schedule("cosine").rate(5) == pytest.approx(0.55)
    assert schedule("linear").rate(5) == pytest.approx(0.55)
    assert schedule("cosine").rate(2) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.2)))


def test_constant_stays() -> None:
    assert {schedule("constant").rate(step) for step in range(11)} == {1.0}


@pytest.mark.parametrize(
    ("training", "warmup"),
    [
        (TrainingSection(warmup_ratio=0.03), 3),
        (TrainingSection(warmup_ratio=0.0), 0),
        (TrainingSection(warmup_steps=7), 7),
        (TrainingSection(warmup_steps=500), 100),  # never longer than the run
    ],
)
def test_warm_up_steps_from_the_configuration(training: TrainingSection, warmup: int) -> None:
    assert make_schedule(training, 1e-4, 100).warmup_steps == warmup


def test_one_step_run_has_a_rate() -> None:
    assert schedule("cosine", num_steps=1).rate(0) == pytest.approx(1.0)
