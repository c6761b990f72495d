"""The planner's table of what activations weigh, against what autograd holds for small real models.

A kernel that keeps less, or more, turns this red; the message is the row for train/planning/memory.py.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from halo_forge.chat import Example
from halo_forge.models import add_lora
from halo_forge.models.fast.decoder import FastDecoder
from halo_forge.models.shape import shape_of
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import fast_objective
from halo_forge.train.planning.memory import (
    DROPOUT_SAVED,
    SAVED,
    BatchSize,
    MemoryInputs,
    Method,
    Precision,
    SavedBytes,
    activation_bytes,
    layer_bytes,
)

SIZES: dict[str, int] = {
    "hidden": 64,
    "intermediate": 160,
    "heads": 4,
    "keys": 2,
    "head_size": 16,
    "rank": 4,
    "layers": 2,
}
ROWS = [(method, precision) for method in ("full", "lora") for precision in ("float32", "bfloat16")]


def base_model(**sizes: int) -> PreTrainedModel:
    of = SIZES | sizes
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=of["hidden"],
        intermediate_size=of["intermediate"],
        num_hidden_layers=of["layers"],
        num_attention_heads=of["heads"],
        num_key_value_heads=of["keys"],
        head_dim=of["head_size"],
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def build(
    method: Method, precision: Precision, *, dropout: float = 0.0, recompute: bool = False, **sizes: int
) -> FastDecoder:
    model: PreTrainedModel | PeftModel = base_model(**sizes)
    if method == "lora":
        model = model.to(torch.bfloat16) if precision == "bfloat16" else model
        model = add_lora(
            model, r=(SIZES | sizes)["rank"], alpha=8, dropout=dropout, target_modules="all-linear", seed=0
        )
    decoder = FastDecoder.of(model.train(), torch.bfloat16 if precision == "bfloat16" else torch.float32)
    decoder.recompute, decoder.skip_unread = recompute, False
    return decoder


def documents(num_tokens: int, length: int) -> Batch:
    """num_tokens in documents of one length, with four supervised positions whatever their number is."""
    weights = np.array([0] * (length - 4) + [1] * 4, dtype=np.float32)
    ids = np.arange(length, dtype=np.int32)
    example = Example(input_ids=ids, loss_weights=weights, conversation_id="x")
    batch = examples_to_batch([example] * (num_tokens // length))
    return replace(
        batch, positions=batch.positions[:4], rows=torch.arange(4), targets=batch.targets[:4], weights=batch.weights[:4]
    )


def held_bytes(decoder: FastDecoder, batch: Batch) -> int:
    """Bytes of distinct storages that autograd keeps at the end of a forward pass, without those of parameters."""
    weights = [weight for projection in decoder.projections() for weight in (projection.joint, *projection.adapters)]
    norms = [norm.weight for layer in decoder.layers for norm in (layer.input_norm, layer.mlp_norm)]
    own = {weight.untyped_storage().data_ptr() for weight in (*weights, *norms, decoder.norm.weight)}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fast_objective(decoder).nll(batch, batch.weights)
    return sum(seen.values())


def per_token(method: Method, precision: Precision, *, length: int = 32, **options: Any) -> float:
    decoder = build(method, precision, **options)
    more, less = (held_bytes(decoder, documents(n * length, length)) for n in (4, 2))
    return (more - less) / (2 * length)


def per_layer(method: Method, precision: Precision, **options: Any) -> float:
    """One more layer; the first is unlike the others where the embedding takes no gradient."""
    three, two = (per_token(method, precision, layers=layers, **options) for layers in (3, 2))
    return three - two


def measured_row(method: Method, precision: Precision, dropout: float = 0.0) -> SavedBytes:
    """A row of the table, from models that differ in one size."""
    row = (method, precision)
    start = per_layer(*row, dropout=dropout)

    def slope(by: int, **sizes: int) -> float:
        return (per_layer(*row, dropout=dropout, **sizes) - start) / by

    key = slope(32, keys=4)
    wider_heads = per_layer(*row, dropout=dropout, head_size=32) - start  # 64 query and 32 key features more
    return SavedBytes(
        hidden=slope(64, hidden=128),
        intermediate=slope(64, intermediate=224),
        key=key,
        query=(wider_heads - 32 * key) / 64,
        rank=slope(4, rank=8),
        checkpoint=per_layer(*row, dropout=dropout, recompute=True) / SIZES["hidden"],
    )


def assert_row(found: SavedBytes, written: SavedBytes) -> None:
    for name, value in asdict(found).items():
        assert value == pytest.approx(getattr(written, name), rel=0.05, abs=0.3), f"{name}: measured {found}"


@pytest.mark.parametrize(("method", "precision"), ROWS)
def test_the_table_is_what_autograd_holds(method: Method, precision: Precision) -> None:
    assert_row(measured_row(method, precision), SAVED[method, precision])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dropout_adds_what_the_table_says(precision: Precision) -> None:
    with_dropout, without = asdict(measured_row("lora", precision, 0.05)), asdict(measured_row("lora", precision))
    assert_row(SavedBytes(**{k: with_dropout[k] - without[k] for k in without}), DROPOUT_SAVED)


@pytest.mark.parametrize(("method", "precision"), ROWS)
@pytest.mark.parametrize("length", [64, 512])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_prediction_of_another_model_is_within_a_tenth(
    method: Method, precision: Precision, length: int, recompute: bool
) -> None:
    """Sizes that the table was not measured at, short documents and long ones, six layers."""
    sizes = {"hidden": 192, "intermediate": 512, "heads": 6, "keys": 3, "head_size": 32, "rank": 8, "layers": 6}
    decoder = build(method, precision, dropout=0.1, recompute=recompute, **sizes)
    num_tokens = 1024
    shape = shape_of(base_model(**sizes), "all-linear" if method == "lora" else None)
    inputs = MemoryInputs(
        shape=shape,
        method=method,
        precision=precision,
        device="cpu",
        batch=BatchSize(num_tokens=num_tokens, num_supervised=4),
        recompute=recompute,
        rank=8,
        dropout=0.1,
    )
    # Copies of weights in the compute type do not grow with tokens: the difference of two batches leaves them out.
    found = held_bytes(decoder, documents(2 * num_tokens, length)) - held_bytes(decoder, documents(num_tokens, length))
    working = layer_bytes(inputs) if recompute else 0  # lives in the backward pass, after this measurement
    assert found == pytest.approx(activation_bytes(inputs) - working, rel=0.1)
