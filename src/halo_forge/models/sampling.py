"""Tokens drawn instead of taken: temperature and top-p, each answer with random numbers of its own.

What an answer draws depends on its key and on nothing beside it: not on the batch, the other answers, the order, or
whether the run was stopped in between. (The batch can move logits in their last bits; a draw that falls into that gap,
about one token in a million in float32, would come out differently.)

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """keys: one per prompt; equal keys draw equal numbers. temperature > 0; top_p in (0, 1], 1 keeps every token."""

    temperature: float
    top_p: float
    keys: tuple[str, ...]

    def draws(self, index: int) -> np.random.Generator:
        """The random numbers of one prompt's answer, from its first token on."""
        digest = hashlib.sha256(self.keys[index].encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


def sample_tokens(logits: torch.Tensor, uniform: Sequence[float], temperature: float, top_p: float) -> torch.Tensor:
    """One token per row, int64 [B].

    logits   [B, V]
    uniform  B numbers in [0, 1): the row's token is where its cumulated probability first exceeds the number
    The nucleus (Holtzman et al. 2020) is the shortest run of most likely tokens that holds at least top_p.
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulated = ordered.double().cumsum(-1)
    inside = (cumulated - ordered) < top_p
    mass = (ordered.double() * inside).sum(-1, keepdim=True)
    wanted = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None] * mass
    at = torch.searchsorted(cumulated, wanted, right=True).clamp_(max=inside.sum(-1, keepdim=True) - 1)
    return tokens.gather(-1, at).squeeze(-1)
