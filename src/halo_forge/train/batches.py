"""From examples to the batches of one optimizer step, deterministically and without padding.

Axes: N tokens of a micro-batch (all documents in one row), D documents, U positions that predict, S targets.

Packing happens inside an optimizer step: the step sees the same examples packed and unpacked, so its gradient is the
same up to rounding. The order is a pure function of (seed, epoch): nothing needs to be skipped or saved to resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from halo_forge.chat.records import Example
from halo_forge.models.fast.attention import Block, attention_blocks
from halo_forge.models.fast.prefixes import pack_families, plain_layout, shared_layout
from halo_forge.models.fast.row import PackedRow, last_readers

MIN_TOKENS_SAVED = 1.05
"""Prefixes are shared from this ratio of all tokens to different ones: below it the cut attention eats the gain."""


class Examples(Protocol):
    """What the trainer needs of a prepared split."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch: D documents in one row, end to end or behind the prefixes that they share.

    input_ids          int64 [1, N]
    position_ids       int64 [1, N]   a token's place in its document
    document_starts    int32 [D + 1]  offsets of documents that lie end to end, N last
    document_lengths   the same as Python ints, so that no device is asked for them; empty with shared prefixes
    blocks             what attends to what
    last_readers       the same for a GPU with shared prefixes, see `PackedRow`; made on the way there
    positions          int64 [U]      positions whose output predicts a target (the token before it), ascending
    rows               int64 [S]      which of `positions` predicts each target, ascending
    targets            int64 [S]
    weights            float32 [S]
    sources            names of the sources that targets come from, "" for one without a name
    source_of          int64 [S]      which of `sources` each target comes from
    num_tokens         tokens of the documents as they were prepared: N, and what was trimmed and shared
    media              the model's inputs for all images or sounds of the documents, in their order; {} without any
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    document_starts: torch.Tensor
    document_lengths: tuple[int, ...]
    blocks: tuple[Block, ...]
    positions: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    sources: tuple[str, ...]
    source_of: torch.Tensor
    num_tokens: int
    last_readers: torch.Tensor | None = None
    media: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        tensors = self._with_last_readers()._tensors()
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        moved["media"] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.media.items()}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        tensors = self._with_last_readers()._tensors()
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        pinned["media"] = {name: tensor.pin_memory() for name, tensor in self.media.items()}
        return replace(self, **pinned)

    def row(self) -> PackedRow:
        return PackedRow(self.blocks, self.document_starts, self.document_lengths, self.last_readers)

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {name: getattr(self, name) for name in (*_TENSORS, "last_readers")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _with_last_readers(self) -> Batch:
        """Made here, where the numbers still lie in the CPU's memory."""
        if self.document_lengths or self.last_readers is not None:
            return self
        found = last_readers(self.blocks, self.input_ids.shape[1])
        return self if found is None else replace(self, last_readers=torch.from_numpy(found))


_TENSORS = ("input_ids", "position_ids", "document_starts", "positions", "rows", "targets", "weights", "source_of")


MediaInputs = Callable[[Sequence[Example]], dict[str, torch.Tensor]]
"""A model's inputs for the media of some examples (domains/media.py)."""


def examples_to_batch(
    examples: Sequence[Example],
    *,
    share_prefixes: bool = False,
    trim: bool = False,
    media_inputs: MediaInputs | None = None,
) -> Batch:
    """Lay documents out in one row. The first token of a document is never a target, so none predicts its neighbour's.

    share_prefixes  tokens that several documents begin with stand in the row once (`shared_layout`)
    trim            leave out what follows the last token that predicts a target: nothing that is trained sees it;
                    not with media, whose placeholders it could tear
    """
    trim = trim and media_inputs is None
    lengths = [_last_target(example) if trim else len(example.input_ids) for example in examples]
    documents = [example.input_ids[:length] for example, length in zip(examples, lengths, strict=True)]
    layout = shared_layout(documents) if share_prefixes else plain_layout(documents)
    sources = list(dict.fromkeys(example.source for example in examples))
    found: list[tuple[np.ndarray, ...]] = []
    for example, row_of in zip(examples, layout.row_of, strict=True):
        supervised = np.flatnonzero(example.loss_weights)
        source = np.full(len(supervised), sources.index(example.source))
        found.append((row_of[supervised - 1], example.input_ids[supervised], example.loss_weights[supervised], source))
    places, targets, weights, source_of = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(places, kind="stable")
    positions, rows = np.unique(places[order], return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Batch(
        input_ids=torch.from_numpy(layout.input_ids.astype(np.int64))[None],
        position_ids=torch.from_numpy(layout.position_ids)[None],
        document_starts=torch.from_numpy(starts),
        document_lengths=() if layout.num_shared else tuple(lengths),
        blocks=attention_blocks(layout.starts, layout.ends, layout.seen),
        positions=torch.from_numpy(positions),
        rows=torch.from_numpy(rows),
        targets=torch.from_numpy(targets[order].astype(np.int64)),
        weights=torch.from_numpy(weights[order].astype(np.float32)),
        sources=tuple(sources),
        source_of=torch.from_numpy(source_of[order]),
        num_tokens=sum(len(example.input_ids) for example in examples),
        media=media_inputs(examples) if media_inputs is not None else {},
    )


def nothing_like(example: Example) -> Batch:
    """A micro-batch without a target, of two tokens: it adds nothing, and takes part in what all processes do."""
    two = replace(example, input_ids=example.input_ids[:2], loss_weights=np.array([0, 1], dtype=np.float32), media=())
    batch = examples_to_batch([two])
    no_targets = {name: getattr(batch, name)[:0] for name in ("positions", "rows", "targets", "weights", "source_of")}
    return replace(batch, num_tokens=0, **no_targets)


def _last_target(example: Example) -> int:
    """How many tokens of a document the last trained one sees."""
    return int(np.flatnonzero(example.loss_weights)[-1])


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


def step_batches(
    examples: Sequence[Example],
    *,
    max_tokens: int | None,
    examples_per_batch: int,
    share_prefixes: bool = False,
    trim: bool = False,
    media_inputs: MediaInputs | None = None,
) -> list[Batch]:
    """The micro-batches of one step on one process: packed to max_tokens, or examples_per_batch documents each
    when max_tokens is None. Prefixes are shared where that saves enough (`MIN_TOKENS_SAVED`)."""
    lengths = [len(example.input_ids) for example in examples]
    if max_tokens is None:
        groups = [
            list(range(start, min(start + examples_per_batch, len(examples))))
            for start in range(0, len(examples), examples_per_batch)
        ]
        chosen = [[examples[i] for i in group] for group in groups]
        return [examples_to_batch(group, trim=trim, media_inputs=media_inputs) for group in chosen]
    groups = pack_by_tokens(lengths, max_tokens)
    shares = False
    if share_prefixes:
        documents = [example.input_ids for example in examples]
        families, num_tokens = pack_families(documents, max_tokens)
        shares = num_tokens * MIN_TOKENS_SAVED <= sum(lengths)
        groups = families if shares else groups
    chosen = [[examples[i] for i in group] for group in groups]
    return [examples_to_batch(group, share_prefixes=shares, trim=trim, media_inputs=media_inputs) for group in chosen]
