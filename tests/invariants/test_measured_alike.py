"""Figures of a run do not depend on how it was cut: validation loss, learning rate, and that small updates arrive."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from halo_forge.errors import Interrupted
from halo_forge.models.compute import Compute
from halo_forge.train.optimizer import make_schedule
from training_runs import CPU, prepared_run, train_now


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_the_validation_loss_is_a_mean_over_tokens(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Ragged rows, one or many to a micro-batch: a mean over batches would differ in the second digit (N18)."""
    found = []
    for name, cut in (("one", {"packing": False}), ("some", {"micro_batch_tokens": 64}), ("all", {"packing": True})):
        run = tmp_path / name / "run"
        options = {"max_steps": 1, "data.validation_split": 0.4, "lora.dropout": 0.0} | cut
        train_now(prepared_run(tiny_tokenizer, tiny_model_dir, run, **options))
        found.append(lines(run, "validation")[0]["loss"])
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-6)


def test_the_rate_of_every_step_is_the_schedules_also_after_a_resume(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", warmup_ratio=0.3)
    counter = itertools.count()

    def check() -> None:
        if next(counter) == 9:
            raise Interrupted("stopped by a test")

    with pytest.raises(Interrupted):
        train_now(prepared, check=check)
    train_now(prepared)
    steps = lines(tmp_path / "run", "train")
    schedule = make_schedule(prepared.config.training, prepared.config.learning_rate, len(steps))
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert [line["learning_rate"] for line in steps] == [schedule.rate(step) for step in range(len(steps))]


def test_small_updates_arrive_under_bfloat16(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A rate of 1e-6: bfloat16 weights would round nearly every update away (torchao #1124); the masters do not."""
    before = load_file(tiny_model_dir / "model.safetensors")
    moved = {}
    for precision in ("float32", "bfloat16"):
        run = tmp_path / precision / "run"
        options = {"method": "full", "max_steps": 4, "learning_rate": 1e-6, "output.save_steps": 4}
        compute = Compute(device=CPU, precision=precision)  # type: ignore[arg-type]
        train_now(prepared_run(tiny_tokenizer, tiny_model_dir, run, **options), compute=compute)
        after = load_file(run / "checkpoint-4" / "model.safetensors")
        assert all(tensor.dtype == torch.float32 for tensor in after.values())
        changed = sum(int((before[name] != after[name]).sum()) for name in after)
        moved[precision] = changed / sum(tensor.numel() for tensor in after.values())
    assert moved["float32"] > 0.5
    assert moved["bfloat16"] >= 0.9 * moved["float32"]
