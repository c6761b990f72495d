"""Attention of a packed decoder: each transcript sees itself and hears its own sound, in one row without padding.

Axes: D transcripts, N their tokens end to end, F frames of a sound, H heads, E head size.

Registered through transformers' attention interface under a name of its own, so that the decoder builds no mask. The
linear layers, norms and position embeddings see one row; only the attention is cut, transcript by transcript.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

SPEECH_ATTENTION = "halo_forge_speech"


def speech_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # decoder [1, H, N, E], encoder [D, H, F, E]
    key: torch.Tensor,  # decoder [1, H, N, E], of the sounds [1, H, D * F, E], encoder [D, H, F, E]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    transcript_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Returns [1, N, H, E] or [D, F, H, E]. `transcript_lengths` come through the decoder's keyword arguments; without
    them (the encoder) every frame attends to every frame of its sound."""
    if transcript_lengths is None:
        heard = F.scaled_dot_product_attention(query, key, value, scale=scaling, dropout_p=dropout)
        return heard.transpose(1, 2), None
    causal = bool(getattr(module, "is_causal", False))
    pieces = query.split(transcript_lengths, dim=2)
    sizes: Any = transcript_lengths if causal else key.shape[2] // len(transcript_lengths)
    outputs = [
        F.scaled_dot_product_attention(q, k, v, scale=scaling, dropout_p=dropout, is_causal=causal)
        for q, k, v in zip(pieces, key.split(sizes, dim=2), value.split(sizes, dim=2), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(SPEECH_ATTENTION, speech_attention)
