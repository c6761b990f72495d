"""Rows of known kinds as tokens with weights, all at once: joined strings, one encoding, places by counting bytes.

The vectorised middle of batch_encode.py, which decides what comes here and watches what leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from halo_forge.chat.byte_tokens import ByteTokens
from halo_forge.chat.records import Conversation
from halo_forge.chat.skeleton import (
    DOCUMENT,
    Kind,
    Skeleton,
    place_offsets,
)

if TYPE_CHECKING:
    from halo_forge.chat.batch_encode import FastPath
    from halo_forge.chat.example import ChatEncoder

_INFINITE = float("inf")


@dataclass(slots=True)
class KindRows:
    """Rows of one kind: their places in the batch and their contents, row after row.

    overrides  (number of the row in here, message) -> the message's own weight"""

    kind: Kind
    places: list[int] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    overrides: dict[tuple[int, int], float] = field(default_factory=dict)


@dataclass(slots=True)
class EncodedRows:
    """Rows that came out as their skeleton says: flat arrays, row numbers in `rows` ascending."""

    rows: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray


def encode_groups(
    encoder: ChatEncoder, path: FastPath, groups: dict[Kind, KindRows], conversations: Sequence[Conversation]
) -> EncodedRows:
    tokens = path.tokens
    assert isinstance(tokens, ByteTokens)
    texts: list[str] = []
    rows: list[int] = []
    jobs = []
    for kind, group in groups.items():
        skeleton = path.kinds[kind].skeleton
        assert skeleton is not None
        kept, sizes = _render_rows(skeleton, group, tokens, texts)
        jobs.append((skeleton, group, kept, sizes, len(rows)))
        rows += [group.places[number] for number in kept]
    ids, starts = tokens.encode(texts)
    begins = np.zeros(len(ids) + 1, dtype=np.int64)  # byte offset of each token in all texts end to end
    np.cumsum(tokens.byte_lengths[ids], out=begins[1:])
    specials = np.flatnonzero(tokens.is_structural[ids])
    weights = np.full(len(ids), float(encoder.train_on == "all"), dtype=np.float32)
    good = np.zeros(len(rows), dtype=bool)
    for skeleton, group, kept, sizes, first in jobs:
        _fill_group(
            encoder,
            skeleton,
            group,
            kept,
            sizes,
            slice(first, first + len(kept)),
            _Stream(ids, starts, begins, specials, weights, good),
            conversations,
        )
    return in_row_order(np.array(rows, dtype=np.int64), ids, weights, starts, good)


def _render_rows(
    skeleton: Skeleton, group: KindRows, tokens: ByteTokens, texts: list[str]
) -> tuple[list[int], np.ndarray]:
    """Appends the renderings of rows that the skeleton holds for; (their numbers, bytes [rows, contents] of what they
    show in the order of the rendering)."""
    contents, stride = group.contents, skeleton.num_contents
    unfit = _unfit_contents(skeleton, contents)
    lengths = list(map(len, contents))
    for number, text in enumerate(contents):
        if not text.isascii() and number not in unfit:
            try:
                lengths[number] = len(text.encode())
            except UnicodeEncodeError:
                unfit.add(number)
    unfit_rows = {number // stride for number in unfit}
    pieces = [""] * (2 * len(skeleton.order) + 1)
    pieces[::2] = skeleton.literals
    kept = []
    is_plain = not tokens.normalises
    in_order = skeleton.order == tuple(range(stride))
    for number in range(len(group.places)):
        if number in unfit_rows:
            continue
        shown = contents[number * stride : (number + 1) * stride]
        pieces[1::2] = shown if in_order else [shown[place] for place in skeleton.order]
        text = "".join(pieces)
        if is_plain or tokens.is_normal(text):
            texts.append(text)
            kept.append(number)
    sizes = np.array(lengths, dtype=np.int64).reshape(-1, stride)
    return kept, sizes[kept][:, list(skeleton.order)]


def _unfit_contents(skeleton: Skeleton, contents: list[str]) -> set[int]:
    fits, always, trims = skeleton.fits, skeleton.kind == DOCUMENT, skeleton.trims
    unfit = set()
    for number, text in enumerate(contents):
        first = text[0]
        quick = first.isalnum() and first < "\U00020000" and not (trims and text[-1].isspace())
        if not (quick or always or fits(text)):
            unfit.add(number)
    if skeleton.words:
        everything = "\0".join(contents)
        for word in skeleton.words:
            if word in everything:
                unfit.update(number for number, text in enumerate(contents) if word in text)
    return unfit


@dataclass(slots=True)
class _Stream:
    """All texts of a batch as tokens: ids, where each text starts, the byte each token begins at, special tokens,
    weights to be filled, and whether a row came out well."""

    ids: np.ndarray
    starts: np.ndarray
    begins: np.ndarray
    specials: np.ndarray
    weights: np.ndarray
    good: np.ndarray


def _fill_group(
    encoder: ChatEncoder,
    skeleton: Skeleton,
    group: KindRows,
    kept: list[int],
    sizes: np.ndarray,
    texts: slice,
    stream: _Stream,
    conversations: Sequence[Conversation],
) -> None:
    """Checks the rows of a kind against its skeleton and writes the weights of those that agree."""
    if not kept:
        return
    firsts, ends = stream.starts[texts.start : texts.stop], stream.starts[texts.start + 1 : texts.stop + 1]
    base = stream.begins[firsts]
    content_ends = np.zeros((len(kept), len(skeleton.order) + 1), dtype=np.int64)
    np.cumsum(sizes, axis=1, out=content_ends[:, 1:])
    literal_bytes = sum(len(literal.encode()) for literal in skeleton.literals)
    good = stream.begins[ends] - base == content_ends[:, -1] + literal_bytes
    good &= _has_structure(skeleton, stream, firsts, ends, base, content_ends)
    own = np.array([conversations[group.places[number]].weight for number in kept], dtype=np.float32)
    wanted = _wanted_weights(encoder, skeleton, group, kept)
    if encoder.train_on != "all" and skeleton.kind != DOCUMENT:
        good &= ((wanted > 0) & (wanted * own[:, None] > 0)).any(axis=1)
    good &= (own > 0) & (ends - firsts > 1)
    edges = []
    for turn in skeleton.turns:
        both = place_offsets((turn.start, turn.end), content_ends) + base[:, None]
        found = np.searchsorted(stream.begins, both)
        good &= (stream.begins[np.minimum(found, len(stream.begins) - 1)] == both).all(axis=1)
        good &= (found[:, 0] > firsts) & (found[:, 1] > found[:, 0]) & (found[:, 1] <= ends)
        edges.append(found)
    stream.good[texts] = good
    if skeleton.kind == DOCUMENT:
        _fill(stream.weights, firsts[good], ends[good], np.ones(int(good.sum()), dtype=np.float32))
    for number, found in enumerate(edges):
        value = wanted[:, number]
        chosen = good & (~np.isnan(value) if encoder.train_on == "all" else value != 0)
        _fill(stream.weights, found[chosen, 0], found[chosen, 1], value[chosen])
    stream.weights[firsts[good]] = 0.0
    if (own != 1).any():
        odd = good & (own != 1)
        for first, end, weight in zip(firsts[odd].tolist(), ends[odd].tolist(), own[odd], strict=True):
            stream.weights[first:end] *= weight


def _has_structure(
    skeleton: Skeleton,
    stream: _Stream,
    firsts: np.ndarray,
    ends: np.ndarray,
    base: np.ndarray,
    content_ends: np.ndarray,
) -> np.ndarray:
    """bool [rows]: the special tokens are the skeleton's, at its places, and no others."""
    begin = np.searchsorted(stream.specials, firsts)
    count = len(skeleton.structural_ids)
    right: np.ndarray = np.searchsorted(stream.specials, ends) - begin == count
    if not count or not right.any():
        return right
    places = stream.specials[begin[right][:, None] + np.arange(count)]
    agree = (stream.ids[places] == np.array(skeleton.structural_ids)).all(axis=1)
    offsets = place_offsets(skeleton.structural_places, content_ends[right]) + base[right][:, None]
    agree &= (stream.begins[places] == offsets).all(axis=1)
    right[right] = agree
    return right


def _wanted_weights(encoder: ChatEncoder, skeleton: Skeleton, group: KindRows, kept: list[int]) -> np.ndarray:
    """float32 [rows, turns]; with train_on "all", NaN where a turn has no weight of its own."""
    count = len(skeleton.turns)
    policy = np.ones(count, dtype=np.float32)
    if encoder.train_on == "last_assistant":
        policy[:-1] = 0.0
    if encoder.train_on == "all":
        policy[:] = np.nan
    wanted = np.tile(policy, (len(kept), 1))
    if group.overrides:
        column = {turn.message: number for number, turn in enumerate(skeleton.turns)}
        line = {number: place for place, number in enumerate(kept)}
        for (number, message), weight in group.overrides.items():
            if number in line and message in column:
                wanted[line[number], column[message]] = weight
    return wanted


def _fill(array: np.ndarray, firsts: np.ndarray, ends: np.ndarray, values: np.ndarray) -> None:
    """array[first:end] = value, for each of many ranges."""
    lengths = ends - firsts
    array[ranges(firsts, lengths)] = np.repeat(values, lengths)


def ranges(firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers of many ranges, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(firsts - before, lengths) + np.arange(int(lengths.sum()))


def in_row_order(
    rows: np.ndarray, ids: np.ndarray, weights: np.ndarray, starts: np.ndarray, good: np.ndarray
) -> EncodedRows:
    lengths = np.diff(starts)
    if good.all() and (np.diff(rows) > 0).all():
        return EncodedRows(rows, ids, weights, lengths)
    chosen = np.flatnonzero(good)
    chosen = chosen[np.argsort(rows[chosen], kind="stable")]
    taken = ranges(starts[:-1][chosen], lengths[chosen])
    return EncodedRows(rows[chosen], ids[taken], weights[taken], lengths[chosen])
