"""Failures gathered: by kind, and within a kind by what the prompts are about.

F failures, R all validation rows, d width of a prompt's vector
The kinds are the first clusters. While there are fewer than asked for, the largest is cut in two where its prompts fall
into two groups (bisecting k-means: Steinbach, Karypis and Kumar 2000), and stays whole where they do not. Nothing in it
is random, and no model embeds anything: prompts are hashed character n-grams, from the middle of all of them, so that
what every prompt shares says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from halo_forge.texts.telling_words import count_words, telling_words
from halo_forge.traits.hashed_vectors import hashed_vectors
from halo_forge.traits.spherical_means import cosine_distances, spherical_means

MIN_HALF = 4
"""Fewer failures are no topic."""
MIN_DISTANCE = 0.9
"""1 - cosine of the middles of two halves: unrelated prompts have 1, halves of one topic less."""
NUM_WORDS = 4
MIN_WORD_SHARE = 0.3
"""A word that fewer of a cluster's prompts have, or only one, says nothing about it."""
MIN_LABEL_SHARE, MIN_LABEL_LIFT = 0.6, 1.25
OTHER = "other ways"


@dataclass(frozen=True, slots=True)
class Gathered:
    """Failures of one cluster, by their place among all failures, in order."""

    kind: str
    members: tuple[int, ...]


def gather_failures(
    kinds: Sequence[str], prompts: Sequence[str], everything: Sequence[str], most: int
) -> list[Gathered]:
    """At most `most` clusters, largest first.

    kinds, prompts  of the failures [F]    everything  the prompts of all rows [R], for the middle
    """
    found = _by_kind(kinds, most)
    vectors = _centred(prompts, everything)
    whole: list[Gathered] = []  # cannot be cut
    while found and len(found) + len(whole) < most:
        found.sort(key=_size_order)
        largest = found.pop(0)
        halves = _cut(largest, vectors)
        found, whole = ([*found, *halves], whole) if halves else (found, [*whole, largest])
    return sorted([*found, *whole], key=_size_order)


def _size_order(cluster: Gathered) -> tuple[int, str, int]:
    return -len(cluster.members), cluster.kind, cluster.members[0]


def _by_kind(kinds: Sequence[str], most: int) -> list[Gathered]:
    places: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    ordered = sorted((Gathered(kind, tuple(members)) for kind, members in places.items()), key=_size_order)
    if len(ordered) <= most:
        return ordered
    rest = sorted(place for cluster in ordered[most - 1 :] for place in cluster.members)
    return [*ordered[: most - 1], Gathered(OTHER, tuple(rest))]


def _centred(prompts: Sequence[str], everything: Sequence[str]) -> np.ndarray:
    """float64 [F, d] of length 1, from the middle of all prompts."""
    middle = hashed_vectors(everything).mean(0, dtype=np.float64) if everything else 0.0
    vectors = hashed_vectors(prompts) - middle
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def _cut(cluster: Gathered, vectors: np.ndarray) -> list[Gathered]:
    """Its two halves, or nothing where they are too small or not apart."""
    members = np.array(cluster.members)
    if len(members) < 2 * MIN_HALF:
        return []
    own = vectors[members]
    centres = spherical_means(own, 2)
    nearest = cosine_distances(own, centres).argmin(1)
    halves = [members[nearest == half] for half in (0, 1)]
    if min(map(len, halves)) < MIN_HALF:
        return []
    middles = np.stack([vectors[half].mean(0) for half in halves])
    middles /= np.maximum(np.linalg.norm(middles, axis=1, keepdims=True), 1e-9)
    if float(cosine_distances(middles[:1], middles[1:])[0, 0]) < MIN_DISTANCE:
        return []
    return [Gathered(cluster.kind, tuple(half.tolist())) for half in halves]


# ------------------------------------------------------------------------------------------------ names


def shared_words(own: Sequence[str], everything: Sequence[str]) -> tuple[str, ...]:
    """Words that stand in many of these prompts and in few of all others, most telling first."""
    if len(own) == len(everything):
        return ()
    mine, every = Counter[str](), Counter[str]()
    for text in own:
        count_words(mine, text)
    for text in everything:
        count_words(every, text)
    often = Counter({word: num for word, num in mine.items() if num >= max(2, MIN_WORD_SHARE * len(own))})
    return telling_words(often, len(own), every, len(everything), NUM_WORDS)


def shared_labels(own: Sequence[Mapping[str, str]], everything: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Slices NAME=LABEL that most of these rows have, at least two of them, and clearly more than of all rows."""
    mine = Counter(f"{name}={label}" for labels in own for name, label in labels.items())
    every = Counter(f"{name}={label}" for labels in everything for name, label in labels.items())
    shares = {label: count / len(own) for label, count in mine.items()}
    telling = [
        label for label, share in shares.items()
        if mine[label] > 1
        and share >= MIN_LABEL_SHARE
        and share >= MIN_LABEL_LIFT * every[label] / len(everything)
    ]  # fmt: skip
    return tuple(sorted(telling, key=lambda label: (-shares[label], label)))


def cluster_name(kind: str, labels: Sequence[str], words: Sequence[str]) -> str:
    """What a cluster's failures and prompts share, in words."""
    about = [*labels, *([f"prompts with {', '.join(words)}"] if words else [])]
    return kind + (f" ({'; '.join(about)})" if about else "")
