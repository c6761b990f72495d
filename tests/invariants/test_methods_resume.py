"""Every method through the real training stage: resumed = uninterrupted bit for bit, and only what is meant moves."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from halo_forge.config.schema import ModelSection
from halo_forge.errors import Interrupted
from halo_forge.models.compute import Compute
from halo_forge.models.new_tokens import tokenizer_of
from halo_forge.train.checkpoint import list_checkpoints
from training_runs import CPU, Prepared, final_weights, losses, prepared_run, train_now

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (the extra `quantised`)"
)
CADENCE: dict[str, Any] = {"output.save_steps": 3, "eval_steps": 4, "output.save_total_limit": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"method": "dora"},
    "qlora": {"method": "qlora", "gradient_checkpointing": True},
    "adapter": {"method": "adapter", "adapter.after_attention": True, "adapter.bottleneck_size": 8,
                "gradient_checkpointing": True},
    "some layers": {"method": "full", "trainable": ["layers.last_1", "norm"]},
    "the output of tied embeddings": {"method": "full", "trainable": ["lm_head"]},
    "lora options": {
        "lora.use_rslora": True, "lora.rank_pattern": {"q_proj": 2}, "lora.exclude_modules": ["up_proj"],
        "lora.modules_to_save": ["norm"],
    },
    "new tokens": {"model.add_tokens": ["river", "lamp"], "model.add_special_tokens": ["<|call|>"]},
    "new tokens, all weights": {"method": "full", "model.add_tokens": ["river", "lamp"]},
    "whole tied embeddings": {"lora.modules_to_save": ["lm_head"], "lora.layers_to_transform": [1]},
    "adafactor": {"optimizer": "adafactor", "learning_rate": 1e-2},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "adamw_8bit, all weights": {"method": "full", "optimizer": "adamw_8bit"},  # adapters this small stay in 32 bits
    "paged_adamw": {"optimizer": "paged_adamw"},
    "against forgetting": {"kl_to_base": 0.2, "l2_to_start": 0.1, "label_smoothing": 0.1},
    "noise": {"neftune_alpha": 5.0},
    "shared prefixes": {"lora.dropout": 0.0},
    "transformers' layers": {"fast_layers": False, "kl_to_base": 0.2, "neftune_alpha": 5.0},
}  # fmt: skip
CASES = [
    pytest.param(
        name, precision, marks=needs_bitsandbytes if name.startswith(("qlora", "adamw_8bit", "paged_adamw")) else ()
    )
    for name in VARIANTS
    for precision in (("float32", "bfloat16") if name in ("qlora", "new tokens", "dora", "adapter") else ("float32",))
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(tiny_model_dir: Path, output: Path, variant: str) -> Prepared:
    """A prepared run of 6 steps, with the variant's new tokens in its tokenizer."""
    options = VARIANTS[variant] | CADENCE | {"num_train_epochs": 1}
    model = ModelSection(
        name=str(tiny_model_dir),
        add_tokens=options.get("model.add_tokens", []),
        add_special_tokens=options.get("model.add_special_tokens", []),
    )
    return prepared_run(tokenizer_of(model), tiny_model_dir, output, **options)


@pytest.mark.parametrize(("variant", "precision"), CASES)
def test_resumed_is_uninterrupted(variant: str, precision: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    compute = Compute(device=CPU, precision=precision)
    whole = train_now(run(tiny_model_dir, tmp_path / "whole" / "run", variant), compute=compute)
    prepared = run(tiny_model_dir, tmp_path / "parts" / "run", variant)
    for stop in (4, 1):
        counter = itertools.count()

        def check(counter: Any = counter, stop: int = stop) -> None:
            if next(counter) == stop:
                raise Interrupted("stopped by a test")

        with pytest.raises(Interrupted):
            train_now(prepared, compute=compute, check=check)
    parts = train_now(prepared, compute=compute)
    one, two = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    assert len(losses(one)) == 6
    assert losses(one) == losses(two)
    assert losses(one)[-1] < losses(one)[0]
    assert final_weights(one) == final_weights(two)
    assert whole.num_trainable_parameters == parts.num_trainable_parameters < whole.num_parameters or (
        variant.endswith("all weights")
    )


def test_only_the_chosen_weights_move(tiny_model_dir: Path, tmp_path: Path) -> None:
    train_now(run(tiny_model_dir, tmp_path / "run", "some layers"))
    before = load_file(tiny_model_dir / "model.safetensors")
    after = load_file(tmp_path / "run" / "final_model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers.1." in name or name == "model.norm.weight"}
    (checkpoint, *_) = list_checkpoints(tmp_path / "run")
    moments = {name.rpartition(":")[0] for name in load_file(checkpoint / "optimizer.safetensors")}
    assert moments == moved


def test_new_rows_move_and_the_others_stay(tiny_model_dir: Path, tmp_path: Path) -> None:
    prepared = run(tiny_model_dir, tmp_path / "run", "new tokens")
    train_now(prepared)
    tensors = load_file(tmp_path / "run" / "final_model" / "adapter_model.safetensors")
    (rows,) = [tensor for name, tensor in tensors.items() if "lora" not in name]
    mean = load_file(tiny_model_dir / "model.safetensors")["model.embed_tokens.weight"].mean(0)
    assert rows.shape == (3, 64)
    assert ((rows - mean).abs().amax(dim=1) > 1e-4).all()  # through the softmax also the token that no row holds
    held = prepared.data.splits["train"]
    assert held.tokens < run(tiny_model_dir, tmp_path / "other" / "run", "dora").data.splits["train"].tokens
