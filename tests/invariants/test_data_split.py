"""The split is a function of the prompt: not of order, file or company, and it never puts one prompt on two sides."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.data.split import SPLITS, assign, position, split_of

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
