"""Slices: which items belong together, what is said of those that are left out, and one metric over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from halo_forge.chat import Example
from halo_forge.evaluate import compare_items
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.slices import MAX_SLICES, MIN_SLICE_ITEMS, slice_items, slice_masks
from halo_forge.evaluate.statistics import Resampling

FEW = Resampling(num_samples=200)


def item(number: int, prompt_tokens: int = 5, answer_tokens: int = 3, **labels: str) -> Item:
    weights = np.array([0.0] * prompt_tokens + [1.0] * answer_tokens, dtype=np.float32)
    ids = np.zeros(prompt_tokens + answer_tokens, dtype=np.int32)
    example = Example(input_ids=ids, loss_weights=weights, conversation_id=str(number))
    return Item(id=str(number), example=example, prompt=None, labels=labels)


def test_rows_are_parted_by_source_label_and_length() -> None:
    items = [
        item(number, prompt_tokens=2 + number, source="faq" if number % 2 else "chat", domain="law")
        for number in range(60)
    ]  # fmt: skip
    sliced = slice_items(items, True)
    assert list(sliced.masks) == [
        "prompt_length=long", "prompt_length=medium", "prompt_length=short", "source=chat", "source=faq",
    ]  # fmt: skip
    assert sliced.masks["source=faq"].nonzero()[0].tolist() == list(range(1, 60, 2))
    lengths = [sliced.masks[f"prompt_length={name}"] for name in ("short", "medium", "long")]
    assert sum(lengths).tolist() == [1] * 60  # type: ignore[union-attr]  # each item is in one
    assert [int(mask.sum()) for mask in lengths] == [20, 20, 20]
    assert lengths[0].nonzero()[0].max() < lengths[1].nonzero()[0].min()
    assert sliced.notes == ("prompt_length: short is up to 21 tokens, long from 42",)


def test_the_lengths_that_are_told_are_those_that_part() -> None:
    items = [item(number, answer_tokens=length) for number, length in enumerate([3] * 15 + [8] * 15 + [40] * 15)]
    sliced = slice_items(items, ["reference_length"])
    assert {name: int(mask.sum()) for name, mask in sliced.masks.items()} == {
        "reference_length=short": 15, "reference_length=medium": 15, "reference_length=long": 15,
    }  # fmt: skip
    assert sliced.notes == ("reference_length: short is up to 3 tokens, long from 9",)


def test_small_slices_are_said_and_not_measured() -> None:
    labels = [{"source": "big"}] * 30 + [{"source": "tiny"}] * (MIN_SLICE_ITEMS - 1) + [{"domain": "x"}] * 2
    sliced = slice_masks(labels)
    assert list(sliced.masks) == ["source=big"]
    assert sliced.notes == (
        "slices of fewer than 10 items are not measured: domain=x (2), source=tiny (9)",
    )  # fmt: skip


def test_at_most_a_sane_number_of_slices_the_largest() -> None:
    labels = [{"user": f"u{n:03}"} for n in range(100) for _ in range(10 + (n == 57))]
    sliced = slice_masks(labels)
    assert len(sliced.masks) == MAX_SLICES
    assert "user=u057" in sliced.masks
    assert "only the 24 largest slices are measured; left out: user=u023 (10)" in sliced.notes[0]
    assert sliced.notes[0].endswith("and 68 more")


def test_slices_can_be_chosen_and_turned_off() -> None:
    items = [item(n, prompt_tokens=2 + n, source="ab"[n % 2], language="de") for n in range(40)]
    assert slice_items(items, False).masks == {}
    chosen = slice_items(items, ["source", "no_such_label"])
    assert list(chosen.masks) == ["source=a", "source=b"]
    assert chosen.notes == ("evaluation.slices names no_such_label, and no row has this label",)


def test_hostile_labels_become_one_short_line_and_stay_apart() -> None:
    long = "x" * 500
    labels = [{"source": "a\nb\x1b[2J\u202e"}] * 12 + [{"source": long + "1"}] * 12 + [{"source": long + "2"}] * 12
    names = list(slice_masks(labels).masks)
    assert len(names) == 3
    for name in names:
        assert name.isprintable()
        assert len(name) < 90


# ---------------------------------------------------------------------------------------------- one metric


def test_one_metric_over_all_items_and_over_each_slice() -> None:
    base, tuned = np.zeros(40), np.array([1.0] * 30 + [0.0] * 10)
    good = np.arange(40) < 20
    tuned[39] = np.nan  # says nothing of the metric: counts for neither
    whole, first, second = compare_items("m", "higher", "rate", base, tuned, {"s=a": good, "s=b": ~good}, FEW)
    assert [row.slice for row in (whole, first, second)] == ["all", "s=a", "s=b"]
    assert (whole.tuned.n, first.tuned.n, second.tuned.n) == (39, 20, 19)
    assert (first.delta.value, second.delta.value) == (1.0, 10 / 19)
    assert (whole.wins, whole.losses, first.wins, second.wins) == (30, 0, 20, 10)
    assert (whole.test, whole.p_value) == ("McNemar exact", 2 * 0.5**30)
    assert whole.tuned.standard_error == pytest.approx(np.std(tuned[:39], ddof=1) / np.sqrt(39))
    for row in (whole, first, second):
        assert {row.base.slice, row.tuned.slice, row.delta.slice} == {row.slice}
        assert not row.tuned.subsampled


def test_a_slice_that_says_too_little_of_the_metric_is_not_measured() -> None:
    base, tuned = np.zeros(40), np.full(40, np.nan)
    tuned[:25] = 1
    half = np.arange(40) >= 20
    whole, row = compare_items("m", "higher", "rate", base, tuned, {"s=late": half}, FEW)
    assert whole.tuned.n == 25
    assert (row.tuned.status, row.tuned.value, row.tuned.n, row.slice) == ("not_measured", None, 5, "s=late")
    assert "5 items of this slice" in (row.tuned.note or "")


def test_nothing_to_compare_is_not_measured_once() -> None:
    nothing = np.full(20, np.nan)
    (row,) = compare_items("m", "lower", "count", nothing, nothing, {"s=a": np.arange(20) < 15}, FEW)
    assert (row.tuned.status, row.tuned.direction, row.slice) == ("not_measured", "lower", "all")


def test_a_subsampled_number_says_so_in_all_its_parts() -> None:
    base, tuned = np.random.default_rng(0).random((2, 30))
    rows = compare_items(
        "m", "lower", "fraction", base, tuned, {"s=a": np.arange(30) < 12}, FEW, is_subsampled=True
    )  # fmt: skip
    assert all(side.subsampled for row in rows for side in (row.base, row.tuned, row.delta))
    assert rows[0].wins == int((tuned < base).sum())
    assert rows[0].test == "paired bootstrap"


@pytest.mark.parametrize(("kind", "score"), [("rate", 0.5), ("fraction", 1.5), ("count", float("inf"))])
def test_scores_that_are_not_of_their_kind_are_refused(kind: str, score: float) -> None:
    with pytest.raises(ValueError, match=f"not those of a {kind}"):
        compare_items("m", "higher", kind, np.zeros(3), np.array([0, 1, score]), {}, FEW)  # type: ignore[arg-type]
