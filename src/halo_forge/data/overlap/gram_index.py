"""Which texts of a collection have a word n-gram, and where: sorted keys behind a bit table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from halo_forge.data.overlap.word_grams import Words

BITS_PER_KEY = 32
"""About 3 % of the n-grams that are not in the index pass the bit table; the sorted keys tell these."""


@dataclass(frozen=True, slots=True)
class Found:
    """int64 [F] each: an n-gram of text `rows` of a batch, from its word `row_places` on, is also one of `items` of
    the index, from its word `item_places` on. In order of rows, then places."""

    rows: np.ndarray
    items: np.ndarray
    row_places: np.ndarray
    item_places: np.ndarray


@dataclass(frozen=True, slots=True)
class GramIndex:
    """keys uint64 [G] sorted; items, places int32 [G]; bits uint8 [2**bits_log2 / 8], indexed by a key's top bits.
    num_left_out: different n-grams that too many texts have or that say nothing."""

    n: int
    keys: np.ndarray
    items: np.ndarray
    places: np.ndarray
    bits: np.ndarray
    bits_log2: int
    num_left_out: int

    def find(self, rows: Words) -> Found:
        """All n-grams of the batch's texts that the index has."""
        keys, starts = rows.grams(self.n)
        top = keys >> np.uint64(64 - self.bits_log2)
        bit = np.uint8(1) << (top & np.uint64(7)).astype(np.uint8)
        maybe = np.flatnonzero(self.bits[(top >> np.uint64(3)).astype(np.int64)] & bit)
        keys, starts = keys[maybe], starts[maybe]
        left = np.searchsorted(self.keys, keys)
        known = np.flatnonzero(self.keys[np.minimum(left, len(self.keys) - 1)] == keys) if len(self.keys) else maybe[:0]
        left, keys, starts = left[known], keys[known], starts[known]
        counts = np.searchsorted(self.keys, keys, side="right") - left
        ends = np.cumsum(counts)
        entries = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts - left, counts)
        starts = np.repeat(starts, counts)
        texts = np.searchsorted(rows.offsets, starts, side="right") - 1
        return Found(
            rows=texts,
            items=self.items[entries].astype(np.int64),
            row_places=starts - rows.offsets[texts],
            item_places=self.places[entries].astype(np.int64),
        )


def gram_index(texts: Words, n: int, max_items: int, telling: np.ndarray | None = None) -> GramIndex:
    """The index of all n-grams that at most `max_items` of the texts have.

    telling  bool [words]: false where an n-gram that starts there shall be left out
    """
    keys, starts = texts.grams(n)
    items = np.searchsorted(texts.offsets, starts, side="right") - 1
    order = np.argsort(keys, kind="stable")
    keys, items, starts = keys[order], items[order], starts[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    is_new_item = is_first.copy()
    is_new_item[1:] |= items[1:] != items[:-1]  # a stable sort of keys in text order: one item's entries stand together
    gram = np.cumsum(is_first) - 1
    num_items = np.bincount(gram, weights=is_new_item) if len(keys) else np.empty(0)
    rare = num_items[gram] <= max_items if len(keys) else np.empty(0, bool)
    if telling is not None:
        rare &= telling[starts]
    num_grams = int(is_first.sum())
    keys, items, starts, is_first = keys[rare], items[rare], starts[rare], is_first[rare]
    bits_log2 = max(10, int(max(len(keys), 1) * BITS_PER_KEY - 1).bit_length())
    top = keys >> np.uint64(64 - bits_log2)
    table = np.zeros(2**bits_log2, bool)
    table[top.astype(np.int64)] = True
    return GramIndex(
        n=n, keys=keys, items=items.astype(np.int32), places=(starts - texts.offsets[items]).astype(np.int32),
        bits=np.packbits(table, bitorder="little"), bits_log2=bits_log2, num_left_out=num_grams - int(is_first.sum()),
    )  # fmt: skip
