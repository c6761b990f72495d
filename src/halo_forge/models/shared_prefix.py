"""What several prompts begin with is read once: a system prompt, a task's examples, one question with several answers.

Its keys and values are computed in a row of their own and laid before each prompt that begins so; keys carry their
position, so the column they lie in does not matter. Axes: B rows, P columns of the prefix, L of the longest rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers import Cache, PreTrainedModel

from halo_forge.models.kv_cache import SlotLayer, slot_cache

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Cache], torch.Tensor]
MIN_SAVED_TOKENS = 32
"""Fewer do not pay for one more forward pass."""
_USED = ContextVar("shared prefixes are read once", default=True)


@contextmanager
def prefixes_not_shared() -> Iterator[None]:
    """The off switch: inside, every prompt is read from its first token."""
    token = _USED.set(False)
    try:
        yield
    finally:
        _USED.reset(token)


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """The tokens [P], and a cache of one row with their keys and values."""

    token_ids: tuple[int, ...]
    layers: tuple[SlotLayer, ...]


def find_shared(
    prompts: Sequence[Sequence[int]], known: SharedPrefix | None, forward: Forward, model: PreTrainedModel
) -> SharedPrefix | None:
    """What all prompts begin with, read where that pays; else `known`, which they begin with too."""
    if not _USED.get() or len(prompts) < 2:
        return known
    num_shared = _num_shared(prompts)
    num_known = len(known.token_ids) if known is not None else 0
    if (num_shared - num_known) * (len(prompts) - 1) < MIN_SAVED_TOKENS:
        return known
    cache = slot_cache(model.config)
    if cache is None:
        return None
    layers = tuple(layer for layer in cache.layers if isinstance(layer, SlotLayer))
    if known is not None:
        lay_before(layers, known, 1)
    token_ids = tuple(prompts[0][:num_shared])
    input_ids = torch.tensor([token_ids[num_known:]], device=model.device)
    positions = torch.arange(num_known, num_shared, device=model.device)[None]
    forward(input_ids, torch.ones((1, num_shared), dtype=torch.bool, device=model.device), positions, cache)
    return SharedPrefix(token_ids, layers)


def _num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """One token of each prompt at least is left to be read: the answer's first comes from it. The first and the last
    in order differ earlier than any two others."""
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    return next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or at == most), most)


def lay_before(layers: Sequence[SlotLayer], prefix: SharedPrefix, num_rows: int) -> None:
    """Begin empty layers with the prefix, in every row."""
    for layer, known in zip(layers, prefix.layers, strict=True):
        layer.update(known.keys.expand(num_rows, -1, -1, -1), known.values.expand(num_rows, -1, -1, -1))


def close_gaps(layers: Sequence[SlotLayer], num_columns: int, gaps: Sequence[int]) -> None:
    """Move the first P columns of each row right, over the padding between them and what follows."""
    for layer in layers:
        for row, gap in enumerate(gaps):
            if gap:
                layer.move_right(row, num_columns, gap)
