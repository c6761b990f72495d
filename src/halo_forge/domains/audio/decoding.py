"""Greedy transcripts of many sounds, as `generate(num_beams=1, do_sample=False)` of transformers gives them.

Axes: B sounds of a batch, F frames, V vocabulary.

The encoder runs once a sound. Tokens that the model's generation_config suppresses are never taken, and with
timestamps transformers' own rules for times apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperForConditionalGeneration,
)
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor


@torch.no_grad()
def transcribe(
    model: WhisperForConditionalGeneration,
    encoded: torch.Tensor,  # [B, F, width]
    prefix: Sequence[int],
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    timestamps: bool,
    check: Callable[[], None],
) -> list[tuple[list[int], bool]]:
    """For each sound: (ids without prefix and stop, whether it stopped by itself). All have the same prefix."""
    num = encoded.shape[0]
    room = min(max_new_tokens, model.config.max_target_positions - len(prefix))
    processors = _processors(model, len(prefix), timestamps)
    ids = torch.tensor([list(prefix)] * num, device=encoded.device)
    fed, cache = ids, EncoderDecoderCache(DynamicCache(), DynamicCache())
    found: list[list[int]] = [[] for _ in range(num)]
    live = set(range(num))
    for step in range(room):
        check()
        places = torch.arange(ids.shape[1] - fed.shape[1], ids.shape[1], device=ids.device)
        hidden = model.model.decoder(
            input_ids=fed, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True,
            position_ids=places.repeat(num, 1),
        ).last_hidden_state[:, -1]  # fmt: skip
        scores = processors(ids, model.proj_out(hidden).float())
        taken = scores.argmax(-1)
        for row, token in enumerate(taken.tolist()):
            if row not in live:
                continue
            if token in stop_ids:
                live.discard(row)
            else:
                found[row].append(token)
        if not live or step == room - 1:
            break
        fed = taken[:, None]
        ids = torch.cat([ids, fed], dim=1)
    return [(tokens, row not in live) for row, tokens in enumerate(found)]


def _processors(model: WhisperForConditionalGeneration, begin: int, timestamps: bool) -> LogitsProcessorList:
    said: Any = model.generation_config
    device = str(model.device)
    processors = LogitsProcessorList()
    if suppressed := getattr(said, "suppress_tokens", None):
        processors.append(SuppressTokensLogitsProcessor(suppressed, device=device))
    if suppressed := getattr(said, "begin_suppress_tokens", None):
        processors.append(SuppressTokensAtBeginLogitsProcessor(suppressed, begin, device=device))
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(said, begin_index=begin))
    return processors
