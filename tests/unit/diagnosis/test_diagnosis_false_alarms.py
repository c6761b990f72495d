"""Healthy noise is met with silence: over many shapes of healthy curves, at every stage of a run, hardly one alarm.

Every look at a curve may be wrong by chance, and a run is looked at some hundred times. The bounds here are on whole
runs: how many of a thousand healthy ones are ever told anything.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.diagnosis import RunFacts, curves_of, diagnose, diagnose_lines
from synthetic_curves import Run, codes_while_training, falling, healthy_run, power_law

MAX_FALSE_ALARM_RATE = 0.01
NUM_RUNS = 150


def random_healthy_run(seed: int) -> Run:
    """Length, noise, shape, depth and validation cadence drawn at random within what real runs show."""
    rng = np.random.default_rng(seed)
    num_steps = int(rng.integers(20, 1500))
    start = rng.uniform(0.8, 5)
    if rng.random() < 0.6:
        mean = falling(num_steps, start, start * rng.uniform(0.02, 0.7), rng.uniform(0.05, 0.3))
    else:
        mean = power_law(num_steps, start, start * rng.uniform(0.1, 0.5), rng.uniform(0.3, 0.8))
        mean = mean * (1 - 0.15 * np.arange(num_steps) / num_steps)
    return healthy_run(
        num_steps,
        mean=mean,
        noise=rng.uniform(0.01, 0.25),
        grad_noise=rng.uniform(0.1, 0.5),
        validation_noise=rng.uniform(0, 0.01),
        num_validations=int(rng.integers(1, 20)),
        warmup=rng.uniform(0, 0.1),
        seed=seed,
    )


def test_the_rate_of_false_alarms_on_healthy_runs() -> None:
    told: Counter[str] = Counter()
    num_alarmed = 0
    for seed in range(NUM_RUNS):
        codes = codes_while_training(random_healthy_run(seed))
        told.update(codes)
        num_alarmed += bool(codes)
    assert num_alarmed <= MAX_FALSE_ALARM_RATE * NUM_RUNS, dict(told)  # 1.5: one may be wrong


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_steps=st.integers(60, 1200),
    start=st.floats(0.8, 5.0),
    depth=st.floats(0.05, 0.6),
    settle=st.floats(0.05, 0.25),
    noise=st.floats(0.0, 0.15),
    seed=st.integers(0, 10_000),
)
def test_a_settling_loss_raises_no_alarm(
    num_steps: int, start: float, depth: float, settle: float, noise: float, seed: int
) -> None:
    run = healthy_run(num_steps, mean=falling(num_steps, start, start * depth, settle), noise=noise, seed=seed)
    assert codes_while_training(run) == set()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(noise=st.floats(0.0, 0.3), level=st.floats(0.3, 5.0), seed=st.integers(0, 10_000))
def test_pure_noise_is_never_more_than_flat(noise: float, level: float, seed: int) -> None:
    """A loss without any trend may be called flat, and nothing else."""
    run = healthy_run(500, mean=np.full(500, level), noise=noise, grad_noise=0.3, seed=seed)
    assert codes_while_training(run) <= {"loss_flat"}


@pytest.mark.parametrize("noise", [0.02, 0.06, 0.12])
def test_flatness_is_found_where_it_is(noise: float) -> None:
    """The other side of silence: of flat runs with usual batch noise, nearly all are told."""
    found = sum(
        "loss_flat" in codes_while_training(healthy_run(600, mean=np.full(600, 1.5), noise=noise, seed=seed))
        for seed in range(20)
    )
    assert found >= 19


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
FIELDS = st.sampled_from(
    [
        "kind",
        "step",
        "loss",
        "grad_norm",
        "learning_rate",
        "num_supervised_tokens",
        "applied",
        "epoch",
        "by_source",
        "code",
    ]
)
LINES = st.lists(
    st.dictionaries(FIELDS, st.one_of(SCALARS, st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)), max_size=8)
    | st.fixed_dictionaries(
        {"kind": st.sampled_from(["train", "validation", "finding"]), "step": st.integers(1, 300), "loss": st.floats()},
        optional={"grad_norm": st.floats(), "learning_rate": st.floats(), "epoch": st.floats()},
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lines=LINES, num_steps=st.one_of(st.none(), st.integers(1, 500)))
def test_no_content_of_a_file_makes_it_fail(lines: list[dict[str, Any]], num_steps: int | None) -> None:
    diagnosis = diagnose_lines(Path("/nowhere"), lines)
    assert diagnosis.last_step < 2**53
    diagnose(curves_of(lines), RunFacts(num_steps=num_steps, is_finished=True))
