"""The split is a function of the prompt: not of order, file or company, and it never puts one prompt on two sides."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.data.split import (
    NOT_SPLIT,
    SPLITS,
    Helped,
    SplitName,
    assign_splits,
    group_key,
    helped_words,
    position,
    repeated_across,
    row_label,
    short_key,
    split_of,
)


def assign(
    prompt_keys: Iterable[str], validation_frac: float, holdout_frac: float
) -> tuple[dict[str, SplitName], list[SplitName]]:
    """({prompt key: split}, splits that were empty by their hashes and got one prompt), without strata."""
    keys = list(prompt_keys)
    numbers = np.array([short_key(key) for key in keys], np.uint64)
    split, helped = assign_splits(numbers, None, validation_frac, holdout_frac, np.ones(len(keys), bool))
    return {key: SPLITS[number] for key, number in zip(keys, split, strict=True)}, [item.split for item in helped]


FRACTIONS = st.floats(0.0, 0.4)
KEYS = st.lists(st.integers(0, 10_000), min_size=1, max_size=120).map(
    lambda numbers: [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
)


@settings(max_examples=200, deadline=None)
@given(keys=KEYS, validation=FRACTIONS, holdout=FRACTIONS, seed=st.integers())
def test_order_and_repetition_do_not_matter(keys: list[str], validation: float, holdout: float, seed: int) -> None:
    splits, helped = assign(keys, validation, holdout)
    shuffled = random.Random(seed).sample(keys, len(keys))
    assert assign(shuffled, validation, holdout) == (splits, helped)
    assert set(splits) == set(keys)


@settings(max_examples=200, deadline=None)
@given(keys=KEYS, more=KEYS, validation=FRACTIONS, holdout=FRACTIONS)
def test_rows_added_later_never_move_old_ones(
    keys: list[str], more: list[str], validation: float, holdout: float
) -> None:
    """But for the few prompts that a split got because no hash fell into it, and those are named."""
    before, helped = assign(keys, validation, holdout)
    after, helped_after = assign(keys + more, validation, holdout)
    moved = {key for key in before if before[key] != after[key]}
    assert len(moved) <= len(helped) + len(helped_after)
    if not helped and not helped_after:
        assert not moved


@settings(max_examples=200, deadline=None)
@given(keys=KEYS, validation=FRACTIONS, holdout=FRACTIONS)
def test_training_always_keeps_a_row_and_shares_are_served(keys: list[str], validation: float, holdout: float) -> None:
    splits, _ = assign(keys, validation, holdout)
    names = Counter(splits.values())
    assert set(names) <= set(SPLITS)
    assert names["train"] >= 1
    if len(keys) >= 10 and len(splits) >= 3:
        assert names["holdout"] >= (holdout > 0) or names["train"] == 1
        assert names["validation"] >= (validation > 0) or names["train"] == 1


def test_another_validation_share_leaves_the_holdout() -> None:
    keys = [hashlib.sha256(bytes([low, high])).hexdigest() for low in range(40) for high in range(25)]
    one, _ = assign(keys, 0.05, 0.1)
    other, _ = assign(keys, 0.3, 0.1)
    assert {key for key in keys if one[key] == "holdout"} == {key for key in keys if other[key] == "holdout"}


def test_shares_are_about_as_asked() -> None:
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    counts = Counter(split_of(key, 0.05, 0.1) for key in keys)
    assert abs(counts["holdout"] - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert abs(counts["validation"] - 1000) < 5 * (20_000 * 0.05 * 0.95) ** 0.5
    assert all(0 <= position(key) < 1 for key in keys)


def test_the_place_of_a_prompt_is_frozen() -> None:
    """Another hash would move every holdout that was ever made: these values stay."""
    assert position("0" * 64) == 0.0
    assert position("8" + "0" * 63) == 0.5
    assert split_of("19" + "0" * 62, 0.05, 0.1) == "holdout"
    assert split_of("1a" + "0" * 62, 0.05, 0.1) == "validation"
    assert split_of("27" + "0" * 62, 0.05, 0.1) == "train"


# ------------------------------------------------------------------------------------------------ all rows at once


def reference_assign(keys: list[str], validation: float, holdout: float) -> tuple[dict[str, SplitName], list[str]]:
    """The first release's rule, row by row: every holdout made by it has to stay where it is."""
    splits = {key: split_of(key, validation, holdout) for key in sorted(set(keys))}
    helped = []
    for name, share in (("holdout", holdout), ("validation", validation)):
        spare = [key for key, split in splits.items() if split == "train"]
        if share > 0 and name not in splits.values() and len(keys) >= 10 and len(spare) > 1:
            splits[spare[0]] = name
            helped.append(name)
    if splits and "train" not in splits.values():
        splits[max(splits)] = "train"
        helped.append("train")
    return splits, helped


def numbers_of(keys: list[str]) -> np.ndarray:
    return np.array([short_key(key) for key in keys], np.uint64)


def everyone(keys: np.ndarray) -> np.ndarray:
    return np.ones(len(keys), bool)


@settings(max_examples=300, deadline=None)
@given(keys=KEYS, validation=FRACTIONS, holdout=FRACTIONS)
def test_all_rows_at_once_is_the_rule_of_the_first_release(keys: list[str], validation: float, holdout: float) -> None:
    expected, expected_helped = reference_assign(keys, validation, holdout)
    assert assign(keys, validation, holdout) == (expected, expected_helped)
    numbers = numbers_of(keys)
    split, helped = assign_splits(numbers, None, validation, holdout, everyone(numbers))
    assert [SPLITS[place] for place in split] == [expected[key] for key in keys]
    assert [item.split for item in helped] == expected_helped


ROWS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 3), st.booleans(), st.integers(0, 200)), min_size=1, max_size=120
)


def arrays(rows: list[tuple[int, int, bool, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """keys, strata, eligible, representatives (about a third of the rows are near-copies of an earlier one)."""
    keys = numbers_of([hashlib.sha256(str(row[0]).encode()).hexdigest() for row in rows])
    near = np.array([row[3] % max(at, 1) if row[3] % 3 == 0 else at for at, row in enumerate(rows)], np.int64)
    return keys, np.array([row[1] for row in rows], np.int32), np.array([row[2] for row in rows]), near


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, validation=FRACTIONS, holdout=FRACTIONS)
def test_groups_and_near_copies_stay_on_one_side(
    rows: list[tuple[int, int, bool, int]], validation: float, holdout: float
) -> None:
    keys, strata, eligible, near = arrays(rows)
    split, _ = assign_splits(keys, strata, validation, holdout, eligible, near)
    assert ((split == NOT_SPLIT) == ~eligible).all()
    side: dict[int, int] = {}
    for key, place in zip(keys[eligible], split[eligible], strict=True):
        assert side.setdefault(int(key), int(place)) == place
    for row in np.flatnonzero(eligible):
        if eligible[near[row]]:
            assert split[row] == split[near[row]]
    assert not eligible.any() or (split == 0).any()


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, validation=FRACTIONS, holdout=FRACTIONS, seed=st.integers(0, 2**32 - 1))
def test_order_does_not_matter_to_the_arrays(
    rows: list[tuple[int, int, bool, int]], validation: float, holdout: float, seed: int
) -> None:
    keys, strata, eligible, near = arrays(rows)
    split, _ = assign_splits(keys, strata, validation, holdout, eligible, near)
    order = np.random.default_rng(seed).permutation(len(keys))
    new_place = np.argsort(order)
    shuffled, _ = assign_splits(
        keys[order], strata[order], validation, holdout, eligible[order], new_place[near[order]]
    )
    assert np.array_equal(shuffled, split[order])


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, more=ROWS, validation=FRACTIONS, holdout=FRACTIONS)
def test_rows_added_later_never_move_old_ones_of_any_stratum(
    rows: list[tuple[int, int, bool, int]], more: list[tuple[int, int, bool, int]], validation: float, holdout: float
) -> None:
    keys, strata, eligible, _ = arrays(rows)
    all_keys, all_strata, all_eligible, _ = arrays(rows + more)
    before, helped = assign_splits(keys, strata, validation, holdout, eligible)
    after, helped_after = assign_splits(all_keys, all_strata, validation, holdout, all_eligible)
    moved = {int(key) for key in keys[(before != after[: len(keys)]) & eligible]}
    assert len(moved) <= len(helped) + len(helped_after)


def test_every_stratum_is_served_in_its_own_right() -> None:
    """No hash of the small stratum falls into a share, and it gets one row of each all the same."""
    rng = np.random.default_rng(1)
    large = rng.integers(0, 2**64, 5000, dtype=np.uint64)
    small = rng.integers(2**63, 2**64, 12, dtype=np.uint64)  # places above 0.5
    tiny = rng.integers(2**63, 2**64, 9, dtype=np.uint64)
    keys = np.concatenate([large, small, tiny])
    strata = np.repeat(np.array([7, 3, 5], np.int32), [5000, 12, 9])
    split, helped = assign_splits(keys, strata, 0.1, 0.1, everyone(keys))
    assert helped == [Helped("holdout", 3), Helped("validation", 3)]
    assert Counter(split[5000:5012].tolist()) == {0: 10, 1: 1, 2: 1}
    assert keys[5000:5012][split[5000:5012] == 2] == small.min()
    assert (split[5012:] == 0).all(), "below ten rows the hashes decide alone"
    assert abs((split[:5000] == 2).sum() - 500) < 5 * 450**0.5
    assert helped_words(helped, ["", "", "", "faq"])[0].startswith("holdout: no row of faq fell into")


def test_a_group_of_two_strata_belongs_to_the_lower_one_in_any_order() -> None:
    """Its group is the only one that could serve stratum 1, so the order must not decide to which it is counted."""
    high = np.arange(12, dtype=np.uint64) + np.uint64(2**63)
    keys = np.concatenate([high, high[:1], high[1:] + np.uint64(100)])
    strata = np.repeat(np.array([1, 2], np.int32), 12)
    split, helped = assign_splits(keys, strata, 0.0, 0.1, everyone(keys))
    assert helped == [Helped("holdout", 1), Helped("holdout", 2)]
    assert np.flatnonzero(split == 2).tolist() == [0, 12, 13]
    back, helped_back = assign_splits(keys[::-1], strata[::-1], 0.0, 0.1, everyone(keys))
    assert helped_back == helped
    assert np.array_equal(back[::-1], split)


def test_a_large_family_of_near_copies_is_not_drawn_into_the_holdout() -> None:
    """With the lowest hash of many as its place, nearly every family of fifty would be held out."""
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    near = np.arange(20_000) // 50 * 50
    split, _ = assign_splits(keys, None, 0.05, 0.1, everyone(keys), near)
    assert np.array_equal(split, np.repeat(split[::50], 50))
    assert abs((split[::50] == 2).mean() - 0.1) < 5 * (0.09 / 400) ** 0.5


def test_a_prompt_that_stands_on_two_sides_is_found() -> None:
    keys = np.array([1, 1, 2, 2, 3, 4], np.uint64)
    split = np.array([0, 2, 1, 2, 0, -1], np.int8)
    assert repeated_across(split, keys).tolist() == [2, 0, 2, 0, 0, 0]
    assert repeated_across(np.array([0, 1, 0, 0, 0, 0], np.int8), keys).tolist() == [1, 0, 0, 0, 0, 0]


def test_group_keys_follow_the_column_and_fall_back_to_the_prompt() -> None:
    prompt = "19" + "0" * 62
    row = {"user": "ann", "age": 3, "empty": "", "slices": {"language": "de"}}
    assert group_key(prompt, row_label(row, "user", "a.jsonl")) == group_key("ff" * 32, "ann")
    assert row_label(row, "age", "a.jsonl") == "3"
    assert row_label(row, "language", "a.jsonl") == "de"
    assert row_label(row, "source", "a.jsonl") == "a.jsonl"
    assert row_label(row, "empty", "a.jsonl") is None
    assert group_key(prompt, row_label(row, "absent", "a.jsonl")) == short_key(prompt) == 0x19 << 56


def test_a_million_rows_take_seconds_at_most() -> None:
    rng = np.random.default_rng(3)
    keys = rng.integers(0, 2**64, 1_000_000, dtype=np.uint64)
    strata = rng.integers(0, 40, 1_000_000).astype(np.int32)
    start = time.process_time()
    assign_splits(keys, strata, 0.05, 0.1, everyone(keys))
    assert time.process_time() - start < 5.0  # 0.3 s on an idle core
