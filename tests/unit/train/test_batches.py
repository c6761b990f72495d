"""Batches: layout, order and packing of one optimizer step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_forge.chat import Example
from halo_forge.train.batches import StepOrder, examples_to_batch, pack_by_tokens, step_batches


def example(ids: list[int], weights: list[float]) -> Example:
    return Example(
        input_ids=np.array(ids, dtype=np.int32),
        loss_weights=np.array(weights, dtype=np.float32),
        conversation_id="x",
    )


def test_documents_lie_end_to_end_and_targets_are_predicted_by_the_token_before() -> None:
    batch = examples_to_batch([example([5, 6, 7], [0, 0, 1]), example([8, 9], [0, 0.5])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.document_starts.tolist() == [0, 3, 5]
    assert batch.document_lengths == (3, 2)
    assert batch.positions[batch.rows].tolist() == [1, 3]
    assert batch.targets.tolist() == [7, 9]
    assert batch.weights.tolist() == [1.0, 0.5]


def test_no_document_predicts_its_neighbours_first_token() -> None:
    batch = examples_to_batch([example([1, 2], [0, 1]), example([3, 4], [0, 1]), example([5, 6], [0, 1])])
    last_tokens = set((batch.document_starts[1:] - 1).tolist())
    assert last_tokens.isdisjoint(batch.positions.tolist())


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 256))
def test_packing_keeps_every_document_once_and_the_budget(lengths: list[int], budget: int) -> None:
    groups = pack_by_tokens(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[i] for i in group) <= budget or len(group) == 1
    assert groups == pack_by_tokens(lengths, budget)


def test_packing_fills_what_a_reader_would_fill() -> None:
    assert pack_by_tokens([6, 4, 5, 5], 10) == [[0, 1], [2, 3]]


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_sees_every_example_once(num_examples: int, per_step: int, seed: int) -> None:
    order = StepOrder(num_examples=num_examples, examples_per_step=per_step, seed=seed)
    for epoch in range(2):
        first = epoch * order.steps_per_epoch
        seen = [i for step in range(first, first + order.steps_per_epoch) for i in order.indices(step)]
        assert sorted(seen) == list(range(num_examples))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return StepOrder(num_examples=40, examples_per_step=40, seed=seed).indices(number).tolist()

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(1, 1)
    assert epoch(1, 0) != epoch(2, 0)


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, [2, 2, 1]), (6, [3, 2]), (100, [5])])
def test_step_batches_packed_and_unpacked(max_tokens: int | None, expected: list[int]) -> None:
    examples = [example([1, 2], [0, 1]) for _ in range(5)]
    batches = step_batches(examples, max_tokens=max_tokens, examples_per_batch=2)
    assert [len(batch.document_lengths) for batch in batches] == expected
