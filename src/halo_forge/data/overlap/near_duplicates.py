"""Near-duplicates: rows that share most of their word 5-grams.

Likeness is the Jaccard index of the two sets of word 5-grams, prompt and answer together, without system text and
tools. One changed word takes up to five 5-grams away, so two rows of 62 words or more that differ in one word reach
0.85. A text of fewer than five words is one gram, all of it: such rows are alike only when their words are equal.

How they are found: every row has a MinHash signature (rensa's R-MinHash, 128 permutations, 8 bits kept of each). Rows
that agree in one band of it are looked at; an estimate from the whole signature passes over most of those that are
not alike; the rest is compared word by word. Nothing is called a near-duplicate by its signature.

    threshold >= 0.85   16 bands of 8:  a pair of likeness 0.85 is found with p = 0.994, of 0.9 with p = 0.9999
    threshold <  0.85   32 bands of 4:  0.7: p = 0.9998, 0.6: 0.988, 0.5: 0.873

times the probability that the estimate does not fall NUM_DEVIATIONS below the threshold (0.9987 at the threshold).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from halo_forge.data.overlap.duplicates import exact_keys
from halo_forge.data.overlap.plain_text import without_system
from halo_forge.data.overlap.word_grams import Words, words_of

GRAM_WORDS = 5
NUM_PERMUTATIONS = 128
NUM_BANDS = 16
"""uint64 words per signature: eight permutations each."""
SEED = 20261
NARROW_BANDS_BELOW = 0.85
NUM_DEVIATIONS = 3.0
MAX_PARTNERS = 32
"""How many earlier rows of one bucket a row is paired with: the first and the last of them, half each."""
PAIRS_AT_ONCE = 2**17
DIGEST_GRAMS = 2**13
DIGEST_ROWS = 64
"""rensa starts a thread pool for larger inputs; in one of several worker processes that only costs, and a process
forked later would wait for its threads for ever."""


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """exact: uint64 [n, 2]; bands: uint64 [n, NUM_BANDS], all zero for a row without words."""

    exact: np.ndarray
    bands: np.ndarray


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """of          int64 [n]: the row that this one is a near-duplicate of, or -1
    similarity     float32 [n]: likeness of the two, 0 where `of` is -1
    num_compared   pairs compared word by word
    num_cut        pairs of one bucket that MAX_PARTNERS left out: rows may have stayed because of them
    """

    of: np.ndarray
    similarity: np.ndarray
    num_compared: int
    num_cut: int


def near_text(prompt: str, answer: str) -> str:
    """The text that near-duplicates are judged by, from plain prompt and answer."""
    return f"{without_system(prompt)} {answer}".strip()


def fingerprints(prompts: Sequence[str], answers: Sequence[str]) -> Fingerprints:
    """Keys of one batch of plain prompts and answers, the same in every process."""
    exact = exact_keys(prompts, answers)
    texts = [near_text(prompt, answer).encode() for prompt, answer in zip(prompts, answers, strict=True)]
    if not texts:
        return Fingerprints(exact, np.empty((0, NUM_BANDS), np.uint64))
    words = words_of(texts)
    grams, offsets = _gram_sets(words)
    digests = _digests(grams, offsets)
    bands = digests.astype(np.uint8).view("<u8")
    bands[np.diff(words.offsets) == 0] = 0
    return Fingerprints(exact, bands)


def _gram_sets(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets [n + 1]) of the grams of every text; a short text has one, a text without words none."""
    lengths = np.diff(words.offsets)
    keys, starts = words.grams(GRAM_WORDS)
    short = np.flatnonzero((lengths > 0) & (lengths < GRAM_WORDS))
    if len(short):
        short_starts = words.offsets[short]
        keys = np.concatenate([keys, words.span_keys(short_starts, words.offsets[short + 1])])
        starts = np.concatenate([starts, short_starts])
        order = np.argsort(starts, kind="stable")
        keys, starts = keys[order], starts[order]
    counts = np.where(lengths >= GRAM_WORDS, lengths - GRAM_WORDS + 1, np.minimum(lengths, 1))
    return keys, np.concatenate([[0], np.cumsum(counts)])


def _digests(grams: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """uint32 [n, NUM_PERMUTATIONS]. Long rows are digested in pieces: the digest of a union is the minimum of the
    digests."""
    long = np.flatnonzero(np.diff(offsets) > DIGEST_GRAMS)
    pieces = [np.arange(offsets[row] + DIGEST_GRAMS, offsets[row + 1], DIGEST_GRAMS) for row in long]
    cuts = np.sort(np.concatenate([offsets, *pieces]))
    rows: list[list[int]] = []
    start = 0
    while start < len(cuts) - 1:
        end = int(np.searchsorted(cuts, cuts[start] + DIGEST_GRAMS, side="right")) - 1
        end = min(max(end, start + 1), start + DIGEST_ROWS, len(cuts) - 1)
        rows += _digest_rows(grams[cuts[start] : cuts[end]], cuts[start : end + 1] - cuts[start])
        start = end
    digests = np.fromiter(chain.from_iterable(rows), np.uint32, len(rows) * NUM_PERMUTATIONS)
    digests = digests.reshape(-1, NUM_PERMUTATIONS)
    return np.minimum.reduceat(digests, _first_pieces(offsets, cuts), axis=0) if len(long) else digests


def _first_pieces(offsets: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """int64 [n]: where in `cuts` each row begins. Rows without grams repeat an offset, and so do their pieces."""
    repeats = np.arange(len(offsets)) - np.searchsorted(offsets, offsets)
    return (np.searchsorted(cuts, offsets) + repeats)[:-1]


def _digest_rows(grams: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    from rensa import RMinHash  # type: ignore[import-untyped]  # it ships no stubs

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(grams), offsets.astype(np.uint64), NUM_PERMUTATIONS, SEED
    )
    rows: list[list[int]] = matrix.to_rows()
    return rows


def gram_set(text: str) -> frozenset[tuple[str, ...]]:
    """The word 5-grams of a plain text: what two rows are compared by."""
    words = text.split()
    if len(words) < GRAM_WORDS:
        return frozenset([tuple(words)] if words else [])
    return frozenset(zip(*(words[at:] for at in range(GRAM_WORDS)), strict=False))


def jaccard(left: frozenset[Any], right: frozenset[Any]) -> float:
    """Shared grams over all grams; 0 where either has none."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared) if shared else 0.0


def find_near(
    bands: np.ndarray,
    eligible: np.ndarray,
    text_of: Callable[[int], str],
    threshold: float,
    agree: Callable[[int, int], bool] | None = None,
) -> NearDuplicates:
    """Which rows go because an earlier row says nearly the same.

    Rows are taken in order. A row is a near-duplicate of the earliest row that stays and whose likeness is at least
    `threshold`; then it goes itself and takes no other row with it. So every row that goes is like one that stays,
    the outcome is a function of the rows and their order, and running it again on the rows that stay finds nothing
    (where num_cut is 0).

    bands     uint64 [n, NUM_BANDS] of `fingerprints`
    eligible  bool [n]; other rows neither are near-duplicates nor have any
    text_of   row -> `near_text` of that row; asked only for rows that are compared
    threshold 0.5 to 1
    agree     asked about every pair that is alike as a whole; what it denies is no near-duplicate
    """
    of = np.full(len(bands), -1, np.int64)
    similarity = np.zeros(len(bands), np.float32)
    pairs, num_cut = _candidate_pairs(bands, eligible, threshold)
    grams = _RecentGrams(text_of)
    num_compared = 0
    for later, earlier in pairs.tolist():
        if of[later] >= 0 or of[earlier] >= 0:
            continue
        num_compared += 1
        likeness = jaccard(grams.of(earlier), grams.of(later))
        if likeness >= threshold and (agree is None or agree(later, earlier)):
            of[later], similarity[later] = earlier, likeness
    return NearDuplicates(of, similarity, num_compared, num_cut)


class _RecentGrams:
    """Gram sets of the rows compared last: a row with many candidates is split into words once."""

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self.text_of = text_of
        self.recent: dict[int, frozenset[tuple[str, ...]]] = {}

    def of(self, row: int) -> frozenset[tuple[str, ...]]:
        grams = self.recent.get(row)
        if grams is None:
            if len(self.recent) >= 512:
                self.recent.clear()
            grams = self.recent[row] = gram_set(self.text_of(row))
        return grams


def _candidate_pairs(bands: np.ndarray, eligible: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """(int64 [P, 2] of (later row, earlier row), sorted, each once; number of pairs cut). Pairs that agree in a band
    and whose estimated likeness is not far below the threshold."""
    rows = np.flatnonzero(eligible & bands.any(1))
    signatures = np.ascontiguousarray(bands)
    keys = signatures if threshold >= NARROW_BANDS_BELOW else signatures.view(np.uint32)
    deviation = math.sqrt(threshold * (1 - threshold) / NUM_PERMUTATIONS)
    least = math.floor(NUM_PERMUTATIONS * (threshold - NUM_DEVIATIONS * deviation))
    found: list[np.ndarray] = []
    num_cut = 0
    for band in range(keys.shape[1]):
        order, starts, ends = _buckets(rows, keys[:, band])
        sizes = ends - starts
        num_cut += int(_all_earlier(sizes[sizes > MAX_PARTNERS] - MAX_PARTNERS - 1).sum())
        for later, earlier in _bucket_pairs(order, starts, ends):
            equal = signatures[later].view(np.uint8) == signatures[earlier].view(np.uint8)
            alike = np.count_nonzero(equal, axis=1) >= least
            if alike.any():
                found.append(later[alike] << 32 | earlier[alike])
        if len(found) > 64:
            found = [np.unique(np.concatenate(found))]
    packed = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1), num_cut


def _all_earlier(count: np.ndarray) -> np.ndarray:
    triangle: np.ndarray = count * (count + 1) // 2
    return triangle


def _buckets(rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows sorted by key and then by row, starts, ends) of the runs of two and more rows with one key."""
    values = keys[rows]
    order = np.argsort(values, kind="stable")
    values = values[order]
    if not len(rows):
        return rows, np.empty(0, np.int64), np.empty(0, np.int64)
    edges = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1], [True]]))
    sizes = np.diff(edges)
    return rows[order], edges[:-1][sizes > 1], edges[1:][sizes > 1]


def _bucket_pairs(order: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(later rows, earlier rows), at most about PAIRS_AT_ONCE at a time."""
    sizes = ends - starts
    members = np.repeat(starts, sizes - 1) + _ranges(sizes - 1) + 1  # every member but the first of its bucket
    place = members - np.repeat(starts, sizes - 1)
    num_partners = np.minimum(place, MAX_PARTNERS)
    step = max(1, PAIRS_AT_ONCE // MAX_PARTNERS)
    for at in range(0, len(members), step):
        part = slice(at, at + step)
        counts = num_partners[part]
        nth = _ranges(counts)
        places = np.repeat(place[part], counts)
        from_start = (places <= MAX_PARTNERS) | (nth < MAX_PARTNERS // 2)
        back = np.where(from_start, nth, places - MAX_PARTNERS + nth)
        member = np.repeat(members[part], counts)
        yield order[member], order[member - places + back]


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0 .. counts[0] - 1, 0 .. counts[1] - 1, ..."""
    ends = np.cumsum(counts)
    within: np.ndarray = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return within
