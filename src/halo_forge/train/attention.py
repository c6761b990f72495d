"""Attention over packed documents, registered through transformers' attention interface.

Axes: H query heads, K key/value heads, N tokens of the row, E head size.

Each document attends to itself only, or to the prefix that it shares. No mask over the row is ever built: on CPU every
block of queries multiplies with the keys that it may see (models/fast/attention), on a GPU with half precision
torch's varlen kernel does the same. A function registered under a name of its own is handed no mask by transformers, so
every model family that uses the interface is served without a patch. `verify_packing` proves on the loaded model that
it is.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel

from halo_forge.errors import TrainingError
from halo_forge.models.fast.attention import BlockAttention, document_blocks
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
    """Causal attention inside each document; returns [1, N, H, E]. The signature is transformers' interface; `blocks`,
    `document_starts` int32 [D + 1] and `document_lengths` come through the model's own keyword arguments."""
    starts, lengths, blocks = (kwargs.get(name) for name in ("document_starts", "document_lengths", "blocks"))
    if blocks is None or starts is None or lengths is None or attention_mask is not None:
        raise TrainingError("document attention needs packed documents and no mask")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise TrainingError("document attention does not cover logit soft-capping or attention sinks")
    window = kwargs.get("sliding_window")
    if window is not None and max(sum(end - start for start, end in block.spans) for block in blocks) > window:
        raise TrainingError(f"document attention does not cover a sliding window of {window} tokens")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if dropout:
        return _with_dropout(query, key, value, lengths, scale, dropout), None
    is_half = query.is_cuda and value.dtype in (torch.bfloat16, torch.float16)
    if is_half and lengths and _VARLEN is not None:
        return _varlen(query, key, value, starts, max(lengths), scale), None
    # Under autocast the rotary embedding gives float32 queries and keys beside bfloat16 values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return BlockAttention.apply(query[0], key[0], value[0], blocks, scale)[None], None


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


def _load_varlen() -> Any:
    """torch's varlen kernel, where this torch has the signature we call (it changed between 2.10 and 2.11)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    names = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "scale", "enable_gqa"} <= set(names) else None


_VARLEN = _load_varlen()


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    packed = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]  # [N, heads, E]
    output = _VARLEN(*packed, starts, starts, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True)
    return output[None]


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
        "document_starts": batch.document_starts,
        "document_lengths": batch.document_lengths,
        "blocks": batch.blocks,
    }


def _documents(batch: Batch) -> list[dict[str, Any]]:
    """The inputs of each document alone."""
    device = batch.input_ids.device
    return [
        {
            "input_ids": ids[None],
            "position_ids": torch.arange(len(ids), device=device)[None],
            "document_starts": torch.tensor([0, len(ids)], dtype=torch.int32, device=device),
            "document_lengths": (len(ids),),
            "blocks": document_blocks([len(ids)]),
        }
        for ids in batch.input_ids[0].split(batch.document_lengths)
    ]


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
