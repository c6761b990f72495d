"""What must never happen to a run: poisoned weights, a lost checkpoint, training past its patience, two writers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from halo_forge.errors import HaloForgeError, RunConflict, TrainingError
from halo_forge.runs import RunDirectory
from halo_forge.train import loop, saved_state
from halo_forge.train.batches import Batch
from halo_forge.train.checkpoint import list_checkpoints, verify_checkpoint
from halo_forge.train.loss import Objective
from halo_forge.train.step import StepResult
from training_runs import losses, prepared_run, train_now


def poison(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int], value: float) -> None:
    """From outside: the loss of these micro-batches is not finite."""
    real, calls = loop.train_step, iter(range(10**6))

    def poisoned(objective: Objective, *args: Any) -> StepResult:
        def nll(batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            total, each = objective.nll(batch, weights)
            return total * value if next(calls) in bad_calls else total, each

        return real(Objective(nll, objective.refresh), *args)

    monkeypatch.setattr(loop, "train_step", poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nonfinite_step_changes_nothing_and_is_counted(
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    poison(monkeypatch, {1}, value)
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=3, method="full")
    notes: list[str] = []
    train_now(prepared, notify=lambda event, fields: notes.append(fields["text"]) if event == "note" else None)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["applied"] for line in lines if line["kind"] == "train"] == [True, False, True]
    assert any("step 2" in note and "not finite" in note for note in notes)
    weights = load_file(tmp_path / "run" / "final_model" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_nonfinite_steps_in_a_row_stop_the_run_and_leave_a_good_checkpoint(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(2, 100)), float("nan"))
    prepared = prepared_run(
        tiny_tokenizer,
        tiny_model_dir,
        tmp_path / "run",
        method="full",
        max_nonfinite_steps=2,
        **{"output.save_steps": 1},
    )
    with pytest.raises(TrainingError, match="2 steps in a row") as caught:
        train_now(prepared)
    assert "learning_rate" in str(caught.value)
    for path in list_checkpoints(tmp_path / "run"):
        assert verify_checkpoint(path) is None
        assert all(torch.isfinite(t).all() for t in load_file(path / "model.safetensors").values())


def test_patience_stops_the_run_at_the_best_validation(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    prepared = prepared_run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "run", num_train_epochs=40, eval_steps=2, early_stopping=True,
        early_stopping_patience=2, early_stopping_threshold=0.05, learning_rate=0.02, **{"lora.r": 32},
    )  # fmt: skip
    trained = train_now(prepared)
    assert trained.stop_reason == "early_stopping"
    assert trained.num_steps < 240
    validations = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if '"validation"' in line
    ]
    best = min(validations, key=lambda line: line["loss"])
    assert trained.final_step == best["step"]
    assert trained.best_val == f"checkpoint-{best['step']}"
    assert train_now(prepared).num_steps == trained.num_steps  # asked again, it does not train on


def test_a_full_disk_loses_no_checkpoint_and_training_goes_on(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, saves = saved_state.save_weights, iter(range(100))

    def full_at_second(*args: Any) -> None:
        if next(saves) == 1:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(saved_state, "save_weights", full_at_second)
    prepared = prepared_run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=6, eval_steps=100, **{"output.save_steps": 2}
    )
    notes: list[str] = []
    train_now(prepared, notify=lambda event, fields: notes.append(fields["text"]) if event == "note" else None)
    assert any("step 4 not written" in note and "No space left" in note for note in notes)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-6", "checkpoint-2"]


def test_no_room_at_the_end_is_one_clear_error(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2)
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(HaloForgeError, match="could not be written") as caught:
        train_now(prepared)
    assert "free some space" in str(caught.value)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run"), pytest.raises(RunConflict, match="is writing to this run directory"):
        RunDirectory.open(tmp_path / "run")
    RunDirectory.open(tmp_path / "run").close()


def test_one_batch_overfits_and_the_model_then_stops(
    tiny_model_dir: Path, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The stop token is learned: greedy decoding of a memorised prompt ends where the answer ends (N6)."""
    from halo_forge.chat import prompt_and_reference, read_conversations

    prepared = prepared_run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "run", num_rows=12, method="full", num_train_epochs=60,
        learning_rate=3e-3, min_lr_ratio=1.0, **{"output.final": "latest"},
    )  # fmt: skip
    train_now(prepared)
    assert losses(tmp_path / "run")[-1] < 0.1
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final_model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final_model" / "tokenizer")
    conversations = read_conversations(prepared.run.file(prepared.data.splits["train"].conversations))
    for conversation in conversations[:3]:
        prompt, reference, stop_ids = prompt_and_reference(conversation, tokenizer)
        output = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=60,
            do_sample=False,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert output[-1] in stop_ids
        assert tokenizer.decode(output[:-1]) == reference
