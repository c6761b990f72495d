"""From examples to the batches of one optimizer step, deterministically and without padding.

Axes: N tokens of a micro-batch (all documents in one row), D documents, S supervised positions.

Packing happens inside an optimizer step: the step sees the same examples packed and unpacked, so its gradient is the
same up to rounding. The order is a pure function of (seed, epoch): nothing needs to be skipped or saved to resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from halo_forge.chat.records import Example


class Examples(Protocol):
    """What the trainer needs of a prepared split."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch: D documents end to end in one row.

    input_ids          int64 [1, N]
    position_ids       int64 [1, N]   restart at 0 with every document
    document_starts    int32 [D + 1]  offsets of the documents, N last
    document_lengths   the same as Python ints, so that no device is asked for them
    target_positions   int64 [S]      positions whose output predicts a target (the token before it)
    targets            int64 [S]
    weights            float32 [S]
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    document_starts: torch.Tensor
    document_lengths: tuple[int, ...]
    target_positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.shape[1])

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return Batch(document_lengths=self.document_lengths, **moved)

    def pin_memory(self) -> Batch:
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return Batch(document_lengths=self.document_lengths, **pinned)


_TENSORS = ("input_ids", "position_ids", "document_starts", "target_positions", "targets", "weights")


def examples_to_batch(examples: Sequence[Example]) -> Batch:
    """Lay documents end to end. The first token of a document is never a target, so none predicts its neighbour's."""
    lengths = [len(example.input_ids) for example in examples]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    input_ids = np.concatenate([example.input_ids for example in examples]).astype(np.int64)
    weights = np.concatenate([example.loss_weights for example in examples]).astype(np.float32)
    supervised = np.flatnonzero(weights)
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        document_starts=torch.from_numpy(starts),
        document_lengths=tuple(lengths),
        target_positions=torch.from_numpy(supervised - 1),
        targets=torch.from_numpy(input_ids[supervised]),
        weights=torch.from_numpy(weights[supervised]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """Which examples each optimizer step sees. `step` counts from 0 over the whole run."""

    num_examples: int
    examples_per_step: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.examples_per_step)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the step's examples, int64; the last step of an epoch takes what is left."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)
        return order[position * self.examples_per_step : (position + 1) * self.examples_per_step]


def pack_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """First-fit decreasing: groups of positions whose lengths sum to at most max_tokens.

    A document longer than the budget is alone in its group. Deterministic: ties keep their order.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[position]
        fit = next((group for group, free in enumerate(room) if free >= length), None)
        if fit is None:
            groups.append([position])
            room.append(max_tokens - length)
        else:
            groups[fit].append(position)
            room[fit] -= length
    return groups


def step_batches(examples: Sequence[Example], *, max_tokens: int | None, examples_per_batch: int) -> list[Batch]:
    """The micro-batches of one step on one process: packed to max_tokens, or examples_per_batch documents each
    when max_tokens is None."""
    if max_tokens is None:
        groups = [
            list(range(start, min(start + examples_per_batch, len(examples))))
            for start in range(0, len(examples), examples_per_batch)
        ]
    else:
        groups = pack_by_tokens([len(example.input_ids) for example in examples], max_tokens)
    return [examples_to_batch([examples[i] for i in group]) for group in groups]
