"""The same examples in a step give the same step: accumulation, packing, workers, logits, processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from training_runs import losses, prepared_run, train_now

# Two AdamW runs whose gradients agree to 1e-6 drift by single roundings; weights move by 1e-1 here in all. The usual
# epsilon of 1e-8 would blow a gradient that is all rounding up to a whole step, on one kind of processor or another.
EPSILON = 1e-6
LOSS = 2e-6
WEIGHTS = 2e-5


def run(
    tokenizer: PreTrainedTokenizerBase, model: Path, output: Path, **training: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    training = {"lora.dropout": 0.0, "method": "full", "adam_epsilon": EPSILON} | training
    prepared = prepared_run(tokenizer, model, output, **training)
    train_now(prepared)
    name = "model" if training["method"] == "full" else "adapter_model"
    return losses(output), load_file(output / "final_model" / f"{name}.safetensors")


def assert_same(
    one: tuple[list[float], dict[str, torch.Tensor]], two: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    assert one[0] == pytest.approx(two[0], rel=LOSS)
    assert one[1].keys() == two[1].keys()
    for name, tensor in one[1].items():
        assert (tensor - two[1][name]).abs().max() <= WEIGHTS, name


@pytest.mark.parametrize(
    "variant",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "packing": False},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "packing": False},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "packing": False},
        {"packing": True, "micro_batch_tokens": 64},
        {"packing": True, "micro_batch_tokens": 2048},
        {"supervised_logits_only": False},
        {"dataloader_num_workers": 2},
        {"model.attn_implementation": "eager"},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_the_step_does_not_depend_on_how_it_is_cut(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, variant: dict[str, Any]
) -> None:
    """Ragged rows and a ragged last window: a mean of means would differ in the first digit (transformers #34191)."""
    expected = run(tiny_tokenizer, tiny_model_dir, tmp_path / "a" / "run")
    assert_same(run(tiny_tokenizer, tiny_model_dir, tmp_path / "b" / "run", **variant), expected)
