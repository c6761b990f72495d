"""Which rows train, which validate, which are held out: a pure function of what they have in common.

A row's place follows from the hash of its group alone (its prompt, unless data.split_by says otherwise): rows of one
group stay together, order and file do not matter, and rows added later never move old ones. The holdout takes the low
end of the hash range, so another validation share does not touch it. `assign_splits` decides for all rows at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

SplitName = Literal["train", "validation", "holdout"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "holdout")
"""By number: 0, 1, 2 in the arrays of this module."""
TRAIN, VALIDATION, HOLDOUT = 0, 1, 2
NOT_SPLIT = -1
MIN_ROWS_FOR_A_SHARE = 10
"""From here on a share above zero gets at least one row."""
BY_SOURCE = "source"
"""The value of data.split_by and data.stratify_by that means the source a row comes from."""
SHOWN_STRATA = 3


@dataclass(frozen=True, slots=True)
class Helped:
    """A split that no hash fell into and that got one group all the same. `stratum` is None without strata, and for
    the one group that training keeps when everything else would be held out."""

    split: SplitName
    stratum: int | None = None


# ------------------------------------------------------------------------------------------------ keys of rows


def position(prompt_key: str) -> float:
    """The place of a prompt in [0, 1): the first 52 bits of its hash."""
    return int(prompt_key[:13], 16) / 2**52


def split_of(prompt_key: str, validation_frac: float, holdout_frac: float) -> SplitName:
    place = position(prompt_key)
    if place < holdout_frac:
        return "holdout"
    return "validation" if place < holdout_frac + validation_frac else "train"


def short_key(prompt_key: str) -> int:
    """The first 64 bits of a hash in hexadecimal digits, as `assign_splits` takes them."""
    return int(prompt_key[:16], 16)


def row_label(value: Mapping[str, Any], column: str, source: str) -> str | None:
    """What a row has in `column` (or in its slices, or its source), as text that is equal for equal values; None
    where it has nothing there."""
    if column == BY_SOURCE:
        return source
    slices = value.get("slices")
    found = value.get(column, slices.get(column) if isinstance(slices, Mapping) else None)
    if found is None or found == "":
        return None
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True, ensure_ascii=False, default=str)


def group_key(prompt_key: str, label: str | None) -> int:
    """uint64: the hash of the row's label by data.split_by; a row without one goes by its prompt."""
    if label is None:
        return short_key(prompt_key)
    return int.from_bytes(hashlib.sha256(label.encode(errors="surrogatepass")).digest()[:8], "big")


# ------------------------------------------------------------------------------------------------ all rows at once


def assign_splits(
    group_keys: np.ndarray,
    strata: np.ndarray | None,
    validation_frac: float,
    holdout_frac: float,
    eligible: np.ndarray,
    representatives: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Helped]]:
    """(split int8 [n]: 0 train, 1 validation, 2 holdout, -1 not eligible; what was helped).

    group_keys       uint64 [n], hashes; rows with one key stay on one side
    strata           int32 [n] or None; each stratum is split by itself. A group belongs to the lowest of its strata
    eligible         bool [n]; the other rows have no place and count for nothing
    representatives  int64 [n] or None: the row beside which a near-copy has to stay (its own number for all others).
                     Groups joined this way take the place of a representative's group, never the lowest of many, so
                     that large families of near-copies are not drawn into the holdout

    With ten rows or more in a stratum, a share above zero that no hash falls into gets the train group with the
    smallest hash, and training always keeps one group. Those few exceptions, all returned, are the only places that
    can change when rows are added (and groups that a later near-copy joins).
    """
    split = np.full(len(group_keys), NOT_SPLIT, np.int8)
    rows = np.flatnonzero(eligible)
    if not len(rows):
        return split, []
    keys, group_of_row = np.unique(_joined(group_keys, representatives)[rows], return_inverse=True)
    groups = _by_place(keys, validation_frac, holdout_frac)
    stratum_of_group = np.zeros(len(keys), np.int64)
    num_rows = np.array([len(rows)])
    labels: np.ndarray | None = None
    if strata is not None:
        labels, row_stratum = np.unique(strata[rows], return_inverse=True)
        num_rows = np.bincount(row_stratum)
        stratum_of_group = np.full(len(keys), len(labels), np.int64)
        np.minimum.at(stratum_of_group, group_of_row, row_stratum)
    helped = _help_shares(groups, stratum_of_group, num_rows, (validation_frac, holdout_frac))
    split[rows] = groups[group_of_row]
    if labels is None:
        return split, [Helped(name) for name, _ in helped]
    return split, [Helped(name, None if at is None else int(labels[at])) for name, at in helped]


def repeated_across(split: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """int8 [n]: 2 for train and validation rows whose key stands in the holdout, 1 for train rows whose key stands in
    validation, else 0. With data.split_by, and for replayed rows, prompts may stand on two sides: these rows go."""
    found = np.zeros(len(split), np.int8)
    for held, losers in ((VALIDATION, split == TRAIN), (HOLDOUT, (split == TRAIN) | (split == VALIDATION))):
        inside = np.unique(keys[split == held])
        if len(inside) and losers.any():
            found[losers & np.isin(keys, inside)] = held
    return found


def helped_words(helped: Sequence[Helped], names: Sequence[str] = ()) -> list[str]:
    """What to tell about them, one sentence a split. `names` holds the strata's names by number."""
    told = []
    for split in dict.fromkeys(item.split for item in helped):
        strata = [item.stratum for item in helped if item.split == split and item.stratum is not None]
        shown = ", ".join(names[at] if at < len(names) else f"stratum {at}" for at in strata[:SHOWN_STRATA])
        more = f" and {len(strata) - SHOWN_STRATA} more" if len(strata) > SHOWN_STRATA else ""
        where = f" of {shown}{more}" if strata else ""
        told.append(
            f"{split}: no row{where} fell into its share by hash, so it got the one with the nearest hash; "
            "more rows mend this"
        )
    return told


def _by_place(keys: np.ndarray, validation_frac: float, holdout_frac: float) -> np.ndarray:
    place = (keys >> np.uint64(12)).astype(np.float64) / 2**52
    split = np.full(len(keys), TRAIN, np.int8)
    split[place < holdout_frac + validation_frac] = VALIDATION
    split[place < holdout_frac] = HOLDOUT
    return split


def _help_shares(
    groups: np.ndarray, stratum_of: np.ndarray, num_rows: np.ndarray, shares: tuple[float, float]
) -> list[tuple[SplitName, int | None]]:
    """Give empty shares one group, in place. `groups` is in the order of the hashes."""
    helped: list[tuple[SplitName, int | None]] = []
    num_strata = len(num_rows)
    for number, share in ((HOLDOUT, shares[1]), (VALIDATION, shares[0])):
        train = np.flatnonzero(groups == TRAIN)
        spare = np.bincount(stratum_of[train], minlength=num_strata)
        served = np.bincount(stratum_of[groups == number], minlength=num_strata)
        empty = (served == 0) & (num_rows >= MIN_ROWS_FOR_A_SHARE) & (spare > 1) & (share > 0)
        found, first = np.unique(stratum_of[train], return_index=True)
        chosen = empty[found]
        groups[train[first[chosen]]] = number
        helped += [(SPLITS[number], int(stratum)) for stratum in found[chosen]]
    trained = np.bincount(stratum_of[groups == TRAIN], minlength=num_strata)
    present = np.bincount(stratum_of, minlength=num_strata)
    for stratum in np.flatnonzero((trained == 0) & (present > 0) & (num_rows >= MIN_ROWS_FOR_A_SHARE)):
        groups[np.flatnonzero(stratum_of == stratum)[-1]] = TRAIN
        helped.append(("train", int(stratum)))
    if not (groups == TRAIN).any():
        groups[-1] = TRAIN
        helped.append(("train", None))
    return helped


def _joined(group_keys: np.ndarray, representatives: np.ndarray | None) -> np.ndarray:
    """The keys with those of linked groups made one."""
    if representatives is None:
        return group_keys
    linked = np.flatnonzero(representatives != np.arange(len(representatives)))
    if not len(linked):
        return group_keys
    near = group_keys[linked], group_keys[representatives[linked]]
    nodes, edges = np.unique(np.concatenate(near), return_inverse=True)
    left, right = edges[: len(linked)], edges[len(linked) :]
    family = _families(len(nodes), left, right)
    is_representative = np.zeros(len(nodes), bool)
    is_representative[right] = True
    # of several representatives the one with the lowest *other* hash leads: a choice that no order changes and that
    # says nothing about where the group is placed
    rank = np.where(is_representative, _scrambled(nodes), np.uint64(2**64 - 1))
    order = np.lexsort((nodes, rank, family))
    _, first = np.unique(family[order], return_index=True)
    leader = np.empty(len(nodes), np.uint64)
    leader[np.unique(family)] = nodes[order[first]]
    joined = group_keys.copy()
    at = np.minimum(np.searchsorted(nodes, group_keys), len(nodes) - 1)
    known = nodes[at] == group_keys
    joined[known] = leader[family[at[known]]]
    return joined


def _families(num_nodes: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64 [num_nodes]: the lowest node of each connected component."""
    label = np.arange(num_nodes)
    while True:
        before = label.copy()
        lowest = np.minimum(label[left], label[right])
        np.minimum.at(label, label[left], lowest)
        np.minimum.at(label, label[right], lowest)
        np.minimum.at(label, left, lowest)
        np.minimum.at(label, right, lowest)
        label = label[label]
        if np.array_equal(before, label):
            return label


def _scrambled(keys: np.ndarray) -> np.ndarray:
    """A second hash of a hash (the finaliser of SplitMix64), uint64 [n]."""
    mixed = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
