"""The pre-flight finds planted faults before the first step, and leaves no trace in the numbers of a run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from halo_forge.chat import read_conversations, read_examples, write_examples
from halo_forge.chat.records import Example
from halo_forge.errors import OutOfMemory, TrainingError
from halo_forge.models.compute import known_compute
from halo_forge.train import session
from halo_forge.train.batches import Batch
from halo_forge.train.checkpoint import POINTERS
from halo_forge.train.loss import Objective
from halo_forge.train.planning import forecast, look_ahead
from halo_forge.train.preflight import mask_check, overfit, trial
from halo_forge.train.preflight import preflight as preflight_module
from training_runs import Prepared, final_weights, losses, prepared_run, train_now

Run = tuple[list[float], str]
train_module = importlib.import_module("halo_forge.train.train")  # the room exports a function of that name


def notes_of(prepared: Prepared, **options: Any) -> list[str]:
    notes: list[str] = []
    train_now(
        prepared, notify=lambda event, fields: notes.append(fields["text"]) if event == "note" else None, **options
    )
    return notes


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("preflight", [True, "overfit"])
def test_the_run_has_the_same_numbers_with_and_without(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, method: str, preflight: bool | str
) -> None:
    """Dropout is on, so a random number drawn too many would show."""
    runs: list[Run] = []
    for name, value in (("without", False), ("with", preflight)):
        output = tmp_path / name / "run"
        prepared = prepared_run(tiny_tokenizer, tiny_model_dir, output, method=method, max_steps=4, preflight=value)
        torch.manual_seed(5)
        train_now(prepared)
        assert (output / "preflight.json").exists() == bool(value)
        runs.append((losses(output), final_weights(output)))
    assert runs[0] == runs[1]


def test_weights_buffers_gradients_optimizer_and_random_state_come_out_as_they_went_in(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = train_module.preflight, []

    def state_of(opened: session.Session) -> list[Any]:
        tensors = [*opened.model.parameters(), *opened.model.buffers(), torch.get_rng_state()]
        gradients = [parameter.grad for parameter in opened.parameter_names]
        return [*(t.detach().clone() for t in tensors), gradients, dict(opened.optimizer.state), opened.model.training]

    def compared(opened: session.Session, *args: Any) -> None:
        before = state_of(opened)
        real(opened, *args)
        after = state_of(opened)
        assert len(before) == len(after) > 30
        for one, two in zip(before, after, strict=True):
            assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
        seen.append(True)

    monkeypatch.setattr(train_module, "preflight", compared)
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=1, preflight="overfit")
    train_now(prepared)
    assert seen == [True]


def test_it_says_what_it_measured_and_is_not_repeated(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2, preflight=True)
    notes = notes_of(prepared)
    assert any(note.startswith("plan: needs about") for note in notes)
    [told] = [note for note in notes if note.startswith("pre-flight:")]
    assert "masks of" in told
    assert "largest micro-batch" in told
    assert "foreseen" in told
    record = json.loads((tmp_path / "run" / "preflight.json").read_text())
    examples = read_examples(tmp_path / "run" / prepared.data.splits["train"].examples)
    most = sorted(examples.lengths.tolist(), reverse=True)[:8]
    assert record["trial"]["num_tokens"] == sum(most)  # a step of 8 rows, all below micro_batch_tokens
    assert record["trial"]["is_largest_micro_batch"] is True
    assert record["trial"]["grown_bytes"] >= 0
    for path in (tmp_path / "run").glob("checkpoint-*"):
        path.rename(tmp_path / path.name)  # as if it had been killed before the first checkpoint
    for name in POINTERS:
        (tmp_path / "run" / name).unlink(missing_ok=True)
    monkeypatch.setattr(preflight_module, "try_step", lambda *_: pytest.fail("tried twice"))
    assert not any(note.startswith("pre-flight:") for note in notes_of(prepared))


def test_where_memory_is_no_question_a_slow_trial_is_cut_to_the_shortest_row(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_module, "TRIAL_BUDGET_S", 0.0)
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=1, preflight=True)
    [told] = [note for note in notes_of(prepared) if note.startswith("pre-flight:")]
    assert "trial step" in told
    assert "foreseen" not in told
    record = json.loads((tmp_path / "run" / "preflight.json").read_text())
    examples = read_examples(tmp_path / "run" / prepared.data.splits["train"].examples)
    assert record["trial"]["num_tokens"] == min(examples.lengths[:50].tolist())
    assert record["trial"]["is_largest_micro_batch"] is False
    assert record["trial"]["without_gradient"] == []


def test_a_step_that_ended_without_a_word_is_told_at_the_next_start(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=1, preflight=True)

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(preflight_module, "trial_step", killed)
        with pytest.raises(Killed):
            train_now(prepared)
    notes = notes_of(prepared)
    assert any("the last start ended inside the trial step" in note for note in notes)


@pytest.mark.parametrize(
    ("num_left", "message"),
    [(0, "nothing is trainable: every weight is frozen"), (1, r"\d+ of \d+ trainable tensors get no gradient: base")],
)
def test_frozen_weights_are_refused(
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_left: int,
    message: str,
) -> None:
    """Planted: after everything is set up, somebody freezes the adapters but keeps them in the optimizer."""
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2, preflight=True)
    real = train_module.open_session

    def frozen(*args: Any) -> session.Session:
        opened = real(*args)
        for parameter in list(opened.parameter_names)[num_left:]:
            parameter.requires_grad_(False)
        return opened

    monkeypatch.setattr(train_module, "open_session", frozen)
    with pytest.raises(TrainingError, match=message):
        train_now(prepared)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[session.Session, torch.Tensor], torch.Tensor]) -> None:
    """After everything is set up, the loss becomes another one."""
    real = train_module.open_session

    def changed(*args: Any) -> session.Session:
        opened = real(*args)
        objective = opened.objective

        def nll(batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            total, each = objective.nll(batch, weights)
            return change(opened, total), each

        opened.objective = Objective(nll, objective.refresh)
        return opened

    monkeypatch.setattr(train_module, "open_session", changed)


def test_a_detached_head_is_refused(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the loss hangs on the weights by a factor of zero only."""
    plant(monkeypatch, lambda opened, total: total.detach() + sum(p.sum() * 0 for p in opened.parameter_names))
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2, preflight=True)
    with pytest.raises(TrainingError, match="no gradient reaches any trainable weight"):
        train_now(prepared)


@pytest.mark.parametrize("shift", [-1, 1])
def test_shifted_loss_weights_are_refused(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, shift: int
) -> None:
    """Planted in the prepared file: every mask is one token off, in either direction."""
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2, preflight=True)
    path = tmp_path / "run" / prepared.data.splits["train"].examples
    store = read_examples(path)
    shifted = [
        Example(
            input_ids=store[i].input_ids.copy(),
            loss_weights=np.concatenate(([np.float32(0)], np.roll(store[i].loss_weights, shift)[1:])),
            conversation_id=store[i].conversation_id,
        )
        for i in range(len(store))
    ]
    path.chmod(0o644)
    path.unlink()
    write_examples(path, shifted)
    with pytest.raises(TrainingError, match=r"would not learn to stop|belongs to the prompt"):
        train_now(prepared)


def test_a_trained_prompt_is_refused(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=1)
    train = prepared.data.splits["train"]
    conversation = read_conversations(prepared.run.file(train.conversations), limit=1)[0]
    examples = read_examples(prepared.run.file(train.examples))
    example = next(e for e in (examples[i] for i in range(len(examples))) if e.conversation_id == conversation.id)
    mask_check.check_row(conversation, example, prepared.config, tiny_tokenizer)  # as prepared it holds
    everything = np.ones_like(example.loss_weights)
    everything[0] = 0
    planted = Example(input_ids=example.input_ids, loss_weights=everything, conversation_id=example.conversation_id)
    with pytest.raises(TrainingError, match="belongs to the prompt"):
        mask_check.check_row(conversation, planted, prepared.config, tiny_tokenizer)


def test_a_model_that_learns_another_token_than_the_stop_token_is_refused(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: targets are the tokens themselves instead of the next ones; the loss falls all the same."""
    real = overfit.examples_to_batch

    def unshifted(examples: Any, **named: Any) -> Any:
        from dataclasses import replace

        batch = real(examples, **named)
        return replace(batch, targets=batch.input_ids[0][batch.positions[batch.rows]])

    monkeypatch.setattr(overfit, "examples_to_batch", unshifted)
    prepared = prepared_run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2, preflight="overfit", method="full"
    )
    with pytest.raises(TrainingError, match=r"goes on with .* where it should stop"):
        train_now(prepared)


def test_a_model_that_cannot_learn_is_refused(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: gradients with the wrong sign."""
    plant(monkeypatch, lambda opened, total: 2 * total.detach() - total)
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2, preflight="overfit")
    with pytest.raises(TrainingError, match="one row cannot be learnt"):
        train_now(prepared)


def test_a_run_that_cannot_fit_is_refused_with_what_would(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "device_bytes", lambda _: 50_000_000)  # the process alone holds more
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2, preflight=True)
    with pytest.raises(OutOfMemory, match="this run needs about") as caught:
        train_now(prepared)
    assert "training.preflight=false" in str(caught.value)


def test_memory_that_runs_out_in_the_trial_is_told_with_the_remedy(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> trial.Trial:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nsecond line")

    monkeypatch.setattr(preflight_module, "trial_step", out_of_memory)
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", max_steps=2, preflight=True)
    with pytest.raises(OutOfMemory, match="largest micro-batch") as caught:
        train_now(prepared)
    assert "micro_batch_tokens" in str(caught.value)
    assert "second line" not in str(caught.value)


def test_recomputation_is_chosen_only_where_memory_needs_it_and_kept_on_resume(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's memory shrinks between two runs of one configuration; the second, resumed, goes on as it began."""
    enabled: list[bool] = []
    real = session.recompute_activations
    monkeypatch.setattr(session, "recompute_activations", lambda model: (enabled.append(True), real(model)))
    options = {"max_steps": 3, "gradient_checkpointing": "auto", "output.save_steps": 1}
    roomy = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "a" / "run", **options)
    train_now(roomy)
    decided = json.loads((tmp_path / "a" / "run" / "compute.json").read_text())
    assert decided["recompute"] is False
    assert enabled == []

    plan = forecast.forecast
    seen: list[Any] = []

    def little_memory(config: Any, rows: Any, compute: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            probe = plan(config, rows, compute, **options)
            patch.setattr(forecast, "device_bytes", lambda _: probe.plan.phases[0].num_bytes)
            seen.append(plan(config, rows, compute, **options))
        return seen[-1]

    monkeypatch.setattr(look_ahead, "forecast", little_memory)
    tight = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "b" / "run", **options)
    notes = notes_of(tight)
    assert enabled == [True]
    assert any("activations are recomputed" in note for note in notes)
    decided = json.loads((tmp_path / "b" / "run" / "compute.json").read_text())
    assert decided["recompute"] is True
    assert losses(tmp_path / "a" / "run") == losses(tmp_path / "b" / "run")
    assert final_weights(tmp_path / "a" / "run") == final_weights(tmp_path / "b" / "run")

    monkeypatch.setattr(look_ahead, "forecast", plan)
    (tmp_path / "b" / "run" / "trained.json").unlink()
    compute = known_compute(tmp_path / "b" / "run")
    assert compute is not None
    train_now(tight, compute=compute)  # with room again: it goes on from its last checkpoint as it began
    assert enabled == [True, True]
