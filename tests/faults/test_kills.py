"""SIGKILL at random moments: what the run ends with is what it would have ended with, to the last bit."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.fault_runs import CADENCE, METHODS, Job, chains_of_kills

SEED = 20_26
NUM_SOAK_KILLS = int(os.environ.get("HALO_FORGE_SOAK_KILLS", "500"))


def jobs(model: Path, root: Path) -> Iterator[Job]:
    """A new run each time, the methods turn about."""
    for number, name in enumerate(itertools.cycle(METHODS)):
        yield Job(model, root / str(number) / name / "run", METHODS[name] | CADENCE)


def test_killed_forty_times(unkilled: dict[str, Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    tally = chains_of_kills(jobs(tiny_model_dir, tmp_path), unkilled, 40, random.Random(SEED), 0.1)
    assert tally.died_in["saving"] >= 16, tally
    assert tally.double_kills >= 1, tally
    assert tally.chains >= len(METHODS), tally


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_five_hundred_times(unkilled: dict[str, Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    """With a seed of its own in HALO_FORGE_SOAK_SEED; prints what docs/faults.md says."""
    seed = int(os.environ.get("HALO_FORGE_SOAK_SEED", "500"))
    tally = chains_of_kills(jobs(tiny_model_dir, tmp_path), unkilled, NUM_SOAK_KILLS, random.Random(seed), 0.1)
    print(json.dumps({"seed": seed} | tally.to_dict()))
    assert tally.died_in["saving"] >= 0.4 * NUM_SOAK_KILLS, tally
