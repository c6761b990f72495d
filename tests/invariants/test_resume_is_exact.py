"""Resumed = uninterrupted, bit for bit: at every kind of stop, in chains, with dropout on. Kills: tests/faults."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from halo_forge.errors import CheckpointError, Interrupted, UsageError
from halo_forge.train.checkpoint import list_checkpoints, verify_checkpoint
from training_runs import final_weights, losses, prepared_run, train_now

# 48 training rows of 60, 8 a step: 6 steps an epoch, 12 in all; validation every 4.
CADENCE: dict[str, Any] = {"output.save_steps": 3, "eval_steps": 4, "output.save_total_limit": 2}


def interrupting_before_micro_batch(number: int) -> Any:
    counter = itertools.count()

    def check() -> None:
        if next(counter) == number:
            raise Interrupted("stopped by a test")

    return check


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A product that is split over two threads sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["lora", "full"])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def uninterrupted(
    one_thread: None,
    method: str,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    train_now(prepared_run(tiny_tokenizer, tiny_model_dir, output, method=method, **CADENCE))
    assert len(losses(output)) == 12
    return output


def assert_same_run(one: Path, two: Path) -> None:
    assert losses(one) == losses(two)
    assert final_weights(one) == final_weights(two)
    for pointer in ("best_val", "best_train", "latest"):
        assert (one / pointer).resolve().name == (two / pointer).resolve().name, pointer


@pytest.mark.parametrize("stops", [[0], [1], [5], [6], [11], [2, 2, 1, 3], [1] * 9], ids=str)
def test_interrupted_at_a_step(
    stops: list[int],
    method: str,
    uninterrupted: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    """Before the first step, inside an epoch, on its edge, at the end, and in chains of up to nine resumes."""
    output = tmp_path / "run"
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, output, method=method, **CADENCE)
    for stop in stops:
        with pytest.raises(Interrupted):
            train_now(prepared, check=interrupting_before_micro_batch(stop))
    train_now(prepared)
    assert_same_run(output, uninterrupted)


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(
    method: str, uninterrupted: Path, tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, output, method=method, **CADENCE)
    with pytest.raises(Interrupted):
        train_now(prepared, check=interrupting_before_micro_batch(8))
    newest = list_checkpoints(output)[0]
    weights = next(newest.glob("*model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    notes: list[str] = []
    train_now(prepared, notify=lambda event, fields: notes.append(fields["text"]) if event == "note" else None)
    assert any(newest.name in note and "does not match its hash" in note for note in notes)
    assert_same_run(output, uninterrupted)


def test_going_back_to_a_checkpoint_repeats_the_same_steps(
    method: str, uninterrupted: Path, tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, output, method=method, **CADENCE)
    train_now(prepared)
    oldest = list_checkpoints(output)[-1]
    train_now(prepared, resume_from=oldest)
    assert_same_run(output, uninterrupted)
    with pytest.raises(UsageError, match="needs a checkpoint of this run"):
        train_now(prepared, resume_from=tmp_path)


def test_only_damaged_checkpoints_never_start_over_silently(
    method: str, tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, output, method=method, **CADENCE)
    with pytest.raises(Interrupted):
        train_now(prepared, check=interrupting_before_micro_batch(2))
    for path in list_checkpoints(output):
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="--fresh"):
        train_now(prepared)


def test_rotation_keeps_the_limit_and_everything_that_is_pointed_at(uninterrupted: Path) -> None:
    kept = {path.name for path in list_checkpoints(uninterrupted)}
    pointed = {(uninterrupted / name).resolve().name for name in ("best_val", "best_train", "latest")}
    assert pointed <= kept
    assert len(kept) <= max(CADENCE["output.save_total_limit"], len(pointed))
    assert all(verify_checkpoint(uninterrupted / name) is None for name in kept)
