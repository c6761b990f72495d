"""Failures gathered by kind and by topic: always the same, never more than asked for, nothing lost."""

from __future__ import annotations

import random

import pytest

from halo_forge.failures.clusters import OTHER, cluster_name, gather_failures, shared_labels, shared_words
from halo_forge.failures.template import num_rows_to_write

COOKING = ["flour", "butter", "oven", "sugar", "dough", "bake", "knead", "yeast", "crust", "whisk"]
SAILING = ["anchor", "harbour", "mast", "rudder", "tide", "sail", "keel", "compass", "deck", "rigging"]


def about(words: list[str], num: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"Please answer: {' '.join(draw.sample(words, 6))}" for _ in range(num)]


def test_kinds_come_first_and_a_kind_with_two_topics_is_cut() -> None:
    prompts = [*about(COOKING, 12, 0), *about(SAILING, 10, 1), *about(COOKING, 3, 2)]
    kinds = ["not JSON"] * 22 + ["cut off"] * 3
    found = gather_failures(kinds, prompts, prompts, 8)
    assert [(one.kind, len(one.members)) for one in found] == [("not JSON", 12), ("not JSON", 10), ("cut off", 3)]
    assert set(found[0].members) == set(range(12))
    assert sorted(member for one in found for member in one.members) == list(range(25))


def test_one_topic_is_not_cut_for_the_sake_of_a_number() -> None:
    prompts = about(COOKING, 30, 3)
    assert len(gather_failures(["cut off"] * 30, prompts, [*prompts, *about(SAILING, 30, 4)], 8)) == 1


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_clusters_than_asked_for_and_the_small_kinds_go_together(most: int) -> None:
    prompts = about(COOKING, 15, 5)
    kinds = ["a"] * 6 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2
    found = gather_failures(kinds, prompts, prompts, most)
    assert len(found) == most
    assert sum(len(one.members) for one in found) == 15
    assert OTHER in [one.kind for one in found]


def test_it_is_the_same_every_time_and_empty_for_nothing() -> None:
    prompts = [*about(COOKING, 20, 6), *about(SAILING, 20, 7)]
    first, second = (gather_failures(["x"] * 40, prompts, prompts, 8) for _ in range(2))
    assert first == second
    assert gather_failures([], [], [], 8) == []
    assert gather_failures(["x", "x"], ["", ""], ["", ""], 8)[0].members == (0, 1)


def test_a_name_says_what_is_shared_and_by_few_others() -> None:
    own, others = about(SAILING, 10, 8), about(COOKING, 30, 9)
    words = shared_words(own, [*own, *others])
    assert words
    assert set(words) <= set(SAILING)
    labels = [{"kind": "sea"}] * 10 + [{"kind": "land"}] * 30
    assert shared_labels(labels[:10], labels) == ("kind=sea",)
    assert shared_labels(labels[10:12], labels[10:]) == ()
    name = cluster_name("not JSON", ("kind=sea",), words)
    assert name.startswith("not JSON (kind=sea; prompts with ")
    assert shared_words(own, own) == ()
    assert shared_words(own[:1], [*own[:1], *others]) == ()


@pytest.mark.parametrize(
    ("sizes", "total"), [((1,), 50), ((30, 10), 120), ((500, 20, 1), 200), ((1,) * 300, 300), ((), 0)]
)
def test_rows_to_write_are_shared_out_by_size(sizes: tuple[int, ...], total: int) -> None:
    rows = num_rows_to_write(sizes)
    assert sum(rows) == total
    assert all(num >= 1 for num in rows)
    assert rows == sorted(rows, reverse=True)
    if sizes == (30, 10):
        assert rows == [90, 30]
