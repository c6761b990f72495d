"""NaN and infinity put into losses, gradients, weights, loss weights, optimizer results and validations: no step is
taken on them, no checkpoint holds them, and the message names the rows or the weight."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from halo_forge.errors import TrainingError
from halo_forge.train import loop
from halo_forge.train import session as session_module
from halo_forge.train.batches import Batch
from halo_forge.train.checkpoint import list_checkpoints, verify_checkpoint
from halo_forge.train.loss import Objective
from training_runs import Prepared, prepared_run, train_now

VALUES = (math.nan, math.inf, -math.inf)
BAD_STEPS = (1, 3)


@contextmanager
def at_bad_steps(change: Callable[[torch.optim.Optimizer, list[Batch], Objective], Any]) -> Iterator[None]:
    """`change` what goes into steps 2 and 4; gives back (batches, objective)."""
    real, calls = loop.train_step, iter(range(10**6))

    def step(objective: Objective, optimizer: torch.optim.Optimizer, batches: list[Batch], *args: Any) -> Any:
        if next(calls) in BAD_STEPS:
            batches, objective = change(optimizer, batches, objective)
        return real(objective, optimizer, batches, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        yield


def in_loss(value: float) -> Callable[..., Any]:
    def change(_: object, batches: list[Batch], objective: Objective) -> Any:
        def nll(batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            total, each = objective.nll(batch, weights)
            return total * value, each * value

        return batches, Objective(nll, objective.refresh)

    return change


def in_gradient(value: float) -> Callable[..., Any]:
    """One number of one gradient; the loss stays finite."""

    def change(optimizer: torch.optim.Optimizer, batches: list[Batch], objective: Objective) -> Any:
        parameter = optimizer.param_groups[0]["params"][-1]

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            handle.remove()
            spoilt = gradient.clone()
            spoilt.view(-1)[3] = value
            return spoilt

        handle = parameter.register_hook(spoil)
        return batches, objective

    return change


def in_loss_weights(value: float) -> Callable[..., Any]:
    def change(_: object, batches: list[Batch], objective: Objective) -> Any:
        weights = batches[0].weights.clone()
        weights[0] = value
        return [replace(batches[0], weights=weights), *batches[1:]], objective

    return change


def run_with_notes(prepared: Prepared) -> list[str]:
    notes: list[str] = []
    train_now(prepared, notify=lambda event, fields: notes.append(fields["text"]) if event == "note" else None)
    return notes


def train_lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def assert_checkpoints_are_finite(run: Path) -> None:
    assert list_checkpoints(run)
    for path in list_checkpoints(run):
        assert verify_checkpoint(path) is None
        for file in path.glob("*.safetensors"):
            assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values()), file


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", [in_loss, in_gradient, in_loss_weights])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_bad_step_changes_nothing(
    method: str, place: Callable[[float], Callable[..., Any]], value: float,
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Eighteen ways; the weights after a bad step are those before it, in the checkpoints of both."""
    run = tmp_path / "run"
    cadence = {"output.save_steps": 1, "output.save_total_limit": 9}
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, run, method=method, max_steps=5, **cadence)
    with at_bad_steps(place(value)):
        notes = run_with_notes(prepared)
    assert [line["applied"] for line in train_lines(run)] == [True, False, True, False, True]
    assert_checkpoints_are_finite(run)
    for bad in BAD_STEPS:
        for file in (run / f"checkpoint-{bad}").glob("*.safetensors"):
            assert file.read_bytes() == (run / f"checkpoint-{bad + 1}" / file.name).read_bytes(), file.name
        named = [note for note in notes if note.startswith(f"step {bad + 1}: loss or gradient is not finite")]
        assert len(named) == 1
        assert len(rows_of(prepared, named[0])) == 8


def rows_of(prepared: Prepared, words: str) -> set[str]:
    """Rows of the training split that the words name."""
    path = prepared.run.file(prepared.data.splits["train"].conversations)
    names = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    return {name for name in names if name[:12] in words}


def test_base_weights_that_are_not_finite_train_nothing(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = session_module.load_training_model

    def spoilt(*args: Any) -> Any:
        model = real(*args)
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if "down_proj" in n)[0, 0] = math.nan
        return model

    monkeypatch.setattr(session_module, "load_training_model", spoilt)
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", method="full", max_nonfinite_steps=3)
    with pytest.raises(TrainingError, match="3 steps in a row") as caught:
        run_with_notes(prepared)
    assert len(rows_of(prepared, str(caught.value))) == 8
    assert list_checkpoints(tmp_path / "run") == []
    assert not (tmp_path / "run" / "final_model").exists()


def test_an_optimizer_that_breaks_a_weight_leaves_the_last_checkpoint(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient are finite, the weight after the update is not."""
    real, calls = loop.train_step, iter(range(10**6))

    def breaking(objective: Objective, optimizer: torch.optim.Optimizer, *args: Any) -> Any:
        result = real(objective, optimizer, *args)
        if next(calls) == 2:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].view(-1)[5] = math.inf
        return result

    monkeypatch.setattr(loop, "train_step", breaking)
    run = tmp_path / "run"
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, run, method="full", **{"output.save_steps": 1})
    with pytest.raises(TrainingError, match="is not finite after step 3") as caught:
        run_with_notes(prepared)
    assert "weight model." in str(caught.value)
    assert "learning_rate" in str(caught.value)
    assert list_checkpoints(run)[0].name == "checkpoint-2"
    assert_checkpoints_are_finite(run)


@pytest.mark.parametrize("value", VALUES)
def test_a_validation_that_is_not_finite_is_never_the_best(
    value: float, tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Found by this test: a first validation of NaN was the best for good, and minus infinity is less than any loss."""
    calls = iter(range(10**6))
    real = session_module.Session.validation_loss

    def spoilt(session: Any, *args: Any) -> Any:
        losses = real(session, *args)
        if next(calls) == 0:
            name, (_, weight, count) = next(iter(losses.sums.items()))
            losses.sums[name] = (value, weight, count)
        return losses

    monkeypatch.setattr(session_module.Session, "validation_loss", spoilt)
    run = tmp_path / "run"
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, run, max_steps=6, eval_steps=2)
    notes = run_with_notes(prepared)
    assert any(note.startswith("step 2: the validation loss is not finite") for note in notes)
    assert (run / "best_val").resolve().name != "checkpoint-2"
    assert math.isfinite(json.loads((run / "trained.json").read_text())["best_validation_loss"])
