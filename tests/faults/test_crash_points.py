"""SIGKILL before every file operation of a save, and of the end of a run: the old state is there or the new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from faults.fault_runs import (
    CADENCE,
    METHODS,
    Job,
    assert_same_end,
    crash_everywhere,
    every_time_or_soak,
    finish,
    start_process,
    tensors_of,
    train_to_the_end,
)
from halo_forge.train.checkpoint import POINTERS, list_checkpoints, verify_checkpoint

EIGHTH_SAVE = 7
"""The second with a validation: a checkpoint to rotate away, a best one to point at, and often a better one."""
EVERY = int(os.environ.get("HALO_FORGE_SOAK_EVERY", "20"))
"""Of how many crash points one is also gone on from to the end. What is on disk is looked at after each."""


def crashes_of(place: str, skip: int, job: Job) -> list[Path]:
    """Directories as they were left by a death before operation 1, 2, ...; the last one is that of no death."""
    assert finish(start_process(crash_everywhere, job, place, skip)) == 0
    found = sorted((job.output.parent / "crashes").iterdir(), key=lambda path: int(path.name))
    assert len(found) > 20
    return found


@pytest.mark.parametrize("method", every_time_or_soak(METHODS, ("lora",)))
def test_every_crash_point_of_a_save(
    method: str, unkilled: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Sixty and more deaths: the newest checkpoint is sound, and bit for bit that of step 7 or of step 8."""
    job = Job(tiny_model_dir, tmp_path / "run", METHODS[method] | CADENCE)
    *crashes, whole = crashes_of("save", EIGHTH_SAVE, job)
    tensors = {step: tensors_of(tmp_path / at / f"checkpoint-{step}") for step, at in ((7, "before"), (8, whole))}
    seen = []
    for number, run in enumerate(crashes):
        newest = list_checkpoints(run)[0]
        assert verify_checkpoint(newest) is None, run.name
        step = int(newest.name.removeprefix("checkpoint-"))
        assert tensors_of(newest) == tensors[step], run.name
        seen.append(step)
        for name in POINTERS:
            assert verify_checkpoint((run / name).resolve()) is None, f"{name} after operation {run.name}"
        if number % EVERY == 0:
            again = Job(tiny_model_dir, run, job.training)
            train_to_the_end(again)
            assert_same_end(run, unkilled[method])
    assert seen == sorted(seen)
    assert set(seen) == {7, 8}


def test_every_crash_point_of_the_end(unkilled: dict[str, Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    """final_model/ is whole or not there, and the same command writes it."""
    job = Job(tiny_model_dir, tmp_path / "run", METHODS["lora"] | CADENCE)
    for number, run in enumerate(crashes_of("finish", 0, job)):
        record, weights = run / "trained.json", run / "final_model" / "adapter_model.safetensors"
        assert not record.exists() or weights.is_file()
        if number % EVERY == 0:
            train_to_the_end(Job(tiny_model_dir, run, job.training))
            assert_same_end(run, unkilled["lora"])
