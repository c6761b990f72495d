"""Keys of word n-grams for a whole batch of texts at once, in numpy: no Python object per word.

A word is a run of bytes that are not white space. Its key is a polynomial over its bytes (mod 2**64), mixed; the key
of n words is a polynomial over their keys, mixed. Keys are the same in every process and on every machine. They are
not cryptographic: whoever acts on equal keys compares the words as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BYTE_BASE = 0x9E3779B97F4A7C15
WORD_BASE = 0xD1342543DE82EF95
CHUNK_BYTES = 2**16
"""So much text is hashed at once: the intermediate arrays stay in the processor's cache."""


def _powers(base: int, count: int) -> np.ndarray:
    """base**0 .. base**(count - 1), mod 2**64."""
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _mixed(keys: np.ndarray) -> np.ndarray:
    """A bijection of uint64 whose every output bit depends on every input bit."""
    keys = keys ^ (keys >> np.uint64(32))
    keys *= np.uint64(0xD6E8FEB86659FD93)
    keys ^= keys >> np.uint64(29)
    keys *= np.uint64(0xA0761D6478BD642F)
    keys ^= keys >> np.uint64(32)
    return keys


def _byte_values() -> np.ndarray:
    return _mixed(np.arange(1, 257, dtype=np.uint64) * np.uint64(BYTE_BASE))


BYTE_VALUES = _byte_values()
BYTE_POWERS = _powers(BYTE_BASE, CHUNK_BYTES + 1)
BYTE_INVERSES = _powers(pow(BYTE_BASE, -1, 2**64), CHUNK_BYTES + 1)
IS_SPACE = np.zeros(256, bool)
IS_SPACE[:33] = True


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a batch of texts, one after the other.

    keys     uint64 [W]
    offsets  int64 [n + 1]; text i has the words offsets[i] : offsets[i + 1]
    sums     uint64 [W + 1], weighted prefix sums of `keys`; with `inverses` [W + 1] they give the key of any span
    """

    keys: np.ndarray
    offsets: np.ndarray
    sums: np.ndarray
    inverses: np.ndarray

    def span_keys(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """uint64: one key per span of words starts[i] : ends[i]. Equal spans have equal keys."""
        return _mixed((self.sums[ends] - self.sums[starts]) * self.inverses[starts] + (ends - starts).astype(np.uint64))

    def grams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(keys uint64 [G], starts int64 [G]) of all n-grams that lie within one text, in order."""
        num_words = len(self.keys)
        if num_words < n:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        within = np.ones(num_words - n + 1, bool)
        for back in range(1, n):  # a gram that starts fewer than n words before a text's end would cross it
            at = self.offsets[1:-1] - back
            within[at[(at >= 0) & (at < len(within))]] = False
        starts = np.flatnonzero(within)
        return self.span_keys(starts, starts + n), starts


def words_of(texts: Sequence[bytes]) -> Words:
    """The words of UTF-8 texts, none of which holds a NUL byte of meaning (NUL counts as white space)."""
    keys: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for chunk in _chunks(texts):
        chunk_keys, chunk_counts = _chunk_words(chunk)
        keys.append(chunk_keys)
        counts.append(chunk_counts)
    all_keys = np.concatenate(keys) if keys else np.empty(0, np.uint64)
    offsets = np.zeros(len(texts) + 1, np.int64)
    if counts:
        np.cumsum(np.concatenate(counts), out=offsets[1:])
    powers = _powers(WORD_BASE, len(all_keys) + 1)
    sums = np.zeros(len(all_keys) + 1, np.uint64)
    np.cumsum(all_keys * powers[:-1], out=sums[1:])
    return Words(all_keys, offsets, sums, _powers(pow(WORD_BASE, -1, 2**64), len(all_keys) + 1))


def _chunks(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    start = 0
    while start < len(texts):
        begun = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, begun + CHUNK_BYTES)))
        yield texts[start:end]
        start = end


def _chunk_words(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(keys uint64 [W], words per text int64 [n])."""
    joined = np.frombuffer(b"\0" + b"\0".join(texts) + b"\0", np.uint8)
    space = IS_SPACE[joined]
    edges = np.flatnonzero(space[1:] != space[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    text_ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    counts = np.diff(np.searchsorted(starts, text_ends), prepend=0)
    powers, inverses = BYTE_POWERS, BYTE_INVERSES
    if len(joined) > len(powers):  # one text longer than a chunk
        powers = _powers(BYTE_BASE, len(joined))
        inverses = _powers(pow(BYTE_BASE, -1, 2**64), len(joined))
    sums = np.cumsum(BYTE_VALUES[joined] * powers[: len(joined)])
    spans = (sums[ends - 1] - sums[starts - 1]) * inverses[starts]
    return _mixed(spans), counts


def word_tuples(words: list[str], n: int) -> set[tuple[str, ...]]:
    """The word n-grams themselves, for the last comparison."""
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}
