"""Attention over packed documents, registered through transformers' attention interface.

Axes: H query heads, K key/value heads, N tokens of the row, E head size.

Each document attends to itself only, or to the prefix that it shares. No mask over the row is ever built: on CPU every
block of queries multiplies with the keys that it may see (models/fast/attention), on a GPU with half precision
torch's varlen kernel does the same (models/fast/kernels). A function registered under a name of its own is handed no
mask by transformers, so every model family that uses the interface is served without a patch. `verify_packing` proves
on the loaded model that it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel

from halo_forge.errors import TrainingError
from halo_forge.models.fast.attention import BlockAttention
from halo_forge.models.fast.kernels import kernel_of, varlen
from halo_forge.models.fast.row import PackedRow, single_document
from halo_forge.train.batches import Batch

DOCUMENT_ATTENTION = "halo_forge_document"


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, N, E]
    key: torch.Tensor,  # [1, K, N, E]
    value: torch.Tensor,  # [1, K, N, E]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document; returns [1, N, H, E]. The signature is transformers' interface;
    `packed_row` comes through the model's own keyword arguments."""
    row: PackedRow | None = kwargs.get("packed_row")
    if row is None or attention_mask is not None:
        raise TrainingError("document attention needs packed documents and no mask")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise TrainingError("document attention does not cover logit soft-capping or attention sinks")
    window = kwargs.get("sliding_window")
    if window is not None and max(sum(end - start for start, end in block.spans) for block in row.blocks) > window:
        raise TrainingError(f"document attention does not cover a sliding window of {window} tokens")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if dropout:
        return _with_dropout(query, key, value, row.lengths, scale, dropout), None
    # Under autocast the rotary embedding gives float32 queries and keys beside bfloat16 values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    # FlexAttention needs the compiled layers of models/fast; without them shared prefixes are blocks here, too.
    if kernel_of(row, value, query.shape[1], query.shape[3], flex=False) == "varlen":
        by_token = (part[0].transpose(0, 1) for part in (query, key, value))  # [N, heads, E]
        return varlen(*by_token, row, scale)[None], None
    return BlockAttention.apply(query[0], key[0], value[0], row.blocks, scale)[None], None


def _with_dropout(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...], scale: float, dropout: float
) -> torch.Tensor:
    if not lengths:
        raise TrainingError("a shared prefix cannot drop other attention weights for each document")
    outputs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=True)
        for q, k, v in zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def set_training_attention(model: PreTrainedModel, requested: str, probe: Batch) -> str:
    """Choose the attention for packed training, prove that it keeps documents apart, and return its name.

    requested  model.attn_implementation: auto, document, sdpa or eager
    probe      two short documents, used for the proof

    `auto` falls back from document attention to the model's own with a block mask, and from that to one document at a
    time ("unpacked"). A choice made by name that fails the proof is a TrainingError.
    """
    candidates = {"auto": [DOCUMENT_ATTENTION, "sdpa", "eager"], "document": [DOCUMENT_ATTENTION]}
    for name in candidates.get(requested, [requested]):
        try:
            model.set_attn_implementation(name)
            if verify_packing(model, probe):
                return name
        except (TrainingError, ValueError, TypeError, NotImplementedError) as error:
            if requested != "auto":
                raise TrainingError(
                    f"this model cannot run packed documents with {requested!r} attention: {error}",
                    where="model.attn_implementation",
                    fix="leave it at auto",
                ) from error
    if requested != "auto":
        raise TrainingError(
            f"with {requested!r} attention packed documents see each other in this model",
            where="model.attn_implementation",
            fix="leave it at auto",
        )
    return "unpacked"


@torch.no_grad()
def verify_packing(model: PreTrainedModel, probe: Batch) -> bool:
    """True if the logits of packed documents equal those of each document alone.

    The tolerance covers other blocking of the same products; a leaking document moves logits by orders more.
    """
    was_training = model.training
    model.eval()
    try:
        packed = model(**forward_inputs(probe), use_cache=False).logits[0].float()
        alone = torch.cat([model(**inputs, use_cache=False).logits[0].float() for inputs in _documents(probe)])
    finally:
        model.train(was_training)
    half = next(model.parameters()).dtype != torch.float32 or torch.is_autocast_enabled(probe.input_ids.device.type)
    tolerance = (0.05 if half else 1e-4) * alone.abs().max().clamp_min(1.0)
    return bool((packed - alone).abs().max() <= tolerance)


def forward_inputs(batch: Batch) -> dict[str, Any]:
    """The model's inputs for one packed row. Document bounds travel as keyword arguments to the attention."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "packed_row": batch.row(),
    }


def _documents(batch: Batch) -> list[dict[str, Any]]:
    """The inputs of each document alone."""
    device = batch.input_ids.device
    return [
        {
            "input_ids": ids[None],
            "position_ids": torch.arange(len(ids), device=device)[None],
            "packed_row": single_document(len(ids), device),
        }
        for ids in batch.input_ids[0].split(batch.document_lengths)
    ]


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
