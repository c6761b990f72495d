"""Texts as short vectors without a model: hashed character n-grams under a random projection.

d   width of a vector
Two texts that share words share n-grams, so their vectors point the same way; a synonym does not help. That is enough
to see that production asks about something else, in 0.1 ms a text and with nothing to install.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

WIDTH = 64
GRAM_CHARS = 5
SEEN_CHARS = 600
NUM_BUCKETS = 2**15
KIND = f"hashed {GRAM_CHARS}-grams, projected to {WIDTH}"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FOLD = np.array([ord(chr(b).lower()) if b < 0x80 else b for b in range(256)], np.uint8)
_IS_WORD = np.array([b >= 0x80 or chr(b).isalnum() for b in range(256)])


@lru_cache(maxsize=1)
def _projection() -> np.ndarray:
    """int8 [NUM_BUCKETS, d] of signs: cosines survive it up to about 1/sqrt(d) (Johnson and Lindenstrauss 1984; signs
    instead of Gaussians: Achlioptas 2003)."""
    signs = np.random.default_rng(20_011).integers(0, 2, (NUM_BUCKETS, WIDTH), dtype=np.int8)
    return np.asarray(signs * 2 - 1, np.int8)


def hashed_vectors(texts: Sequence[str]) -> np.ndarray:
    """float32 [n, d], of length 1 (0 for a text without a letter or digit). Case, digits' values and punctuation do
    not count; each n-gram counts once."""
    projection = _projection()
    vectors = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in enumerate(texts):
        buckets = _buckets(text)
        if len(buckets):
            vectors[row] = np.add.reduce(projection.take(buckets, 0), 0, dtype=np.int16)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-9), np.float32)


def _buckets(text: str) -> np.ndarray:
    raw = np.frombuffer(b" " + text[:SEEN_CHARS].encode("utf-8", "replace") + b" ", np.uint8)
    letters = np.where(_IS_WORD[raw], _FOLD[raw], 32).astype(np.uint8)
    letters[(letters >= 48) & (letters <= 57)] = 48
    letters = letters[(letters != 32) | np.r_[True, letters[:-1] != 32]]  # runs of marks and blanks are one blank
    if len(letters) < GRAM_CHARS:
        return np.zeros(0, np.int64)
    code = np.zeros(len(letters) - GRAM_CHARS + 1, np.uint64)
    for offset in range(GRAM_CHARS):
        code = code << np.uint64(8) | letters[offset : offset + len(code)]
    hashed = (code * _MULTIPLIER) >> np.uint64(64 - 15)
    return np.unique(hashed.astype(np.int64))
