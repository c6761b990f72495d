"""Our loop against transformers.Trainer: same model, same rows in the same order, equal weights in float32.

The Trainer pads and computes every logit; we flatten and compute the supervised ones. What is left is rounding. AdamW's
epsilon is 1e-4 on both sides: with 1e-8 a gradient entry that is itself rounding noise (1e-9) is scaled up to a step of
5e-5, in whichever direction the noise points.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_with_min_lr_schedule_with_warmup,
)

from halo_forge.chat import read_examples
from halo_forge.train.batches import StepOrder
from training_runs import losses, prepared_run, train_now

LEARNING_RATE = 1e-3
EPSILON = 1e-4
LOSS = 1e-6  # relative
WEIGHTS = 1e-6  # absolute; every tensor moves by more than 1e-3


class InOrder(torch.utils.data.Sampler[int]):
    """Our order, epoch after epoch."""

    def __init__(self, order: StepOrder) -> None:
        self.order, self.epoch = order, 0

    def __len__(self) -> int:
        return self.order.num_examples

    def __iter__(self) -> Any:
        first = self.epoch * self.order.steps_per_epoch
        self.epoch += 1
        for step in range(first, first + self.order.steps_per_epoch):
            yield from self.order.indices(step).tolist()


class LossLog(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def pad(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, fill: int) -> torch.Tensor:
        values = [np.pad(row[key], (0, longest - len(row[key])), constant_values=fill) for row in rows]
        return torch.from_numpy(np.stack(values).astype(np.int64))

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)
    }  # fmt: skip


def reference_run(model_dir: Path, output: Path, split: Path, order: StepOrder, num_steps: int, clip: float) -> Any:
    examples = read_examples(split)
    rows = [
        {
            "input_ids": examples[i].input_ids,
            "labels": np.where(examples[i].loss_weights > 0, examples[i].input_ids, -100),
        }
        for i in range(len(examples))
    ]
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=LEARNING_RATE, betas=(0.9, 0.999), eps=EPSILON, fused=True,
    )  # fmt: skip
    # transformers counts the cosine to num_training_steps; ours reaches its floor at the last step itself.
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, num_warmup_steps=0, num_training_steps=num_steps - 1, min_lr_rate=0.1
    )
    log = LossLog()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=num_steps,
            max_grad_norm=clip,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
        ),
        train_dataset=rows,
        data_collator=pad,
        optimizers=(optimizer, schedule),
        callbacks=[log],
    )
    trainer._get_train_sampler = lambda *_: InOrder(order)  # type: ignore[method-assign]
    trainer.train()
    return model, log.losses


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::DeprecationWarning")
@pytest.mark.parametrize("max_grad_norm", [100.0, 0.5], ids=["never clipped", "always clipped"])
def test_full_fine_tuning_ends_with_the_trainers_weights(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, max_grad_norm: float
) -> None:
    prepared = prepared_run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "ours" / "run", method="full", learning_rate=LEARNING_RATE,
        warmup_steps=0, max_grad_norm=max_grad_norm, adam_epsilon=EPSILON, **{"output.final": "latest"},
    )  # fmt: skip
    trained = train_now(prepared)
    split = prepared.run.file(prepared.data.splits["train"].examples)
    order = StepOrder(num_examples=prepared.data.splits["train"].rows, examples_per_step=8, seed=42)
    model, expected = reference_run(
        tiny_model_dir, tmp_path / "trainer", split, order, trained.num_steps, max_grad_norm
    )
    ours = load_file(prepared.run.file("final_model") / "model.safetensors")
    theirs = dict(model.named_parameters())
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).named_parameters())
    assert len(expected) == trained.num_steps == 2 * math.ceil(order.num_examples / 8)
    assert losses(prepared.run.path) == pytest.approx(expected, rel=LOSS)
    for name, tensor in ours.items():
        assert (tensor - start[name]).abs().max() > 1e-3, f"{name} was not trained"
        assert (tensor - theirs[name]).abs().max() <= WEIGHTS, name
