"""Documents of one micro-batch that begin alike: what they share is computed once, exactly.

A document's tokens are a path in a tree of prefixes (the system prompt; under it a question; under it five answers).
The tree is laid out in one row in the order of the sorted documents, so each document adds only the tokens that its
predecessor does not begin with. Sorted neighbours share the longest prefix that any pair shares, so nothing is left
twice. A token has the position of its place in the document and sees its own path alone: the same numbers as unshared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MIN_SHARED_TOKENS = 16
"""Shorter common beginnings are computed again: cutting a document there costs more."""
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """input_ids int32 [N], position_ids int64 [N]; segments [start, end) of the row with the spans that they see before
    themselves; `row_of[d]` int64: the place in the row of each token of document d. `num_shared` tokens are saved."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    starts: list[int]
    ends: list[int]
    seen: list[Spans]
    row_of: list[np.ndarray]
    num_shared: int


def plain_layout(documents: Sequence[np.ndarray]) -> Layout:
    """Documents end to end, in their order."""
    lengths = [len(document) for document in documents]
    ends = np.cumsum(lengths).tolist()
    starts = [end - length for end, length in zip(ends, lengths, strict=True)]
    return Layout(
        input_ids=np.concatenate(documents),
        position_ids=np.concatenate([np.arange(length) for length in lengths]),
        starts=starts,
        ends=ends,
        seen=[()] * len(documents),
        row_of=[np.arange(start, end) for start, end in zip(starts, ends, strict=True)],
        num_shared=0,
    )


def shared_layout(documents: Sequence[np.ndarray]) -> Layout:
    """Documents in sorted order, each behind what it shares with the one before."""
    row_of: list[np.ndarray] = [np.empty(0, np.int64)] * len(documents)
    pieces, positions, starts, ends, seen = [], [], [], [], []
    path: Spans = ()
    end = num_shared = 0
    for number, shared in _sorted_with_shared(documents):
        document = documents[number]
        start, end = end, end + len(document) - shared
        before = _first_tokens(path, shared)
        path = (*before, (start, end))
        row_of[number] = np.concatenate([np.arange(first, last) for first, last in path])
        num_shared += shared
        if start < end:
            pieces.append(document[shared:])
            positions.append(np.arange(shared, len(document)))
            starts.append(start)
            ends.append(end)
            seen.append(before)
    return Layout(np.concatenate(pieces), np.concatenate(positions), starts, ends, seen, row_of, num_shared)


def pack_families(documents: Sequence[np.ndarray], max_tokens: int) -> tuple[list[list[int]], int]:
    """(groups of documents in sorted order whose different tokens are at most max_tokens, tokens of all groups). A
    document longer than that is alone in its group."""
    groups: list[list[int]] = []
    room = num_tokens = 0
    for number, shared in _sorted_with_shared(documents):
        own = len(documents[number]) - shared
        if not groups or own > room:
            groups.append([])
            own, room = len(documents[number]), max_tokens
        groups[-1].append(number)
        room -= own
        num_tokens += own
    return groups, num_tokens


def _sorted_with_shared(documents: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """(document, how many tokens it shares with the one before), sorted by tokens; equal documents keep their order."""
    keys = [document.astype(">u4").tobytes() for document in documents]
    order = sorted(range(len(documents)), key=lambda number: keys[number])
    shared = [0] + [_num_common(documents[one], documents[other]) for one, other in pairwise(order)]
    return [(number, count if count >= MIN_SHARED_TOKENS else 0) for number, count in zip(order, shared, strict=True)]


def _num_common(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _first_tokens(path: Spans, count: int) -> Spans:
    """The spans of the first `count` tokens of a path."""
    taken: list[tuple[int, int]] = []
    for start, end in path:
        if count <= 0:
            break
        taken.append((start, min(end, start + count)))
        count -= end - start
    return tuple(taken)
