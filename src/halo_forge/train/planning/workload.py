"""What the rows ask of a run: how many, how long, and the largest micro-batch that any step could bring together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halo_forge.artifacts import PreparedData
from halo_forge.chat import read_examples
from halo_forge.config.schema import Config
from halo_forge.models.compute import Compute
from halo_forge.train.planning.memory import BatchSize
from halo_forge.train.session import micro_batch_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Counts are of one epoch. largest bounds every micro-batch; largest_rows are rows that fill one.

    is_measured  False: there are no prepared rows, and each is taken to be max_seq_length long and trained throughout
    """

    num_examples: int | None
    num_tokens: int | None
    num_supervised: int | None
    longest_tokens: int
    validation_tokens: int
    largest: BatchSize
    largest_rows: tuple[int, ...] = ()
    data_bytes: int | None = None
    is_measured: bool = True

    @property
    def supervised_share(self) -> float:
        return self.num_supervised / self.num_tokens if self.num_tokens and self.num_supervised is not None else 1.0

    @property
    def mean_tokens(self) -> float:
        return self.num_tokens / self.num_examples if self.num_tokens and self.num_examples else self.longest_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a step is cut: its rows on each process, and the tokens (packed) or rows of one micro-batch."""

    max_tokens: int | None
    examples_per_batch: int
    examples_per_process: int
    num_processes: int = 1

    @classmethod
    def of(cls, config: Config, compute: Compute, num_processes: int) -> Packing:
        training = config.training
        return cls(
            max_tokens=micro_batch_tokens(config, compute) if training.packing else None,
            examples_per_batch=training.per_device_train_batch_size,
            examples_per_process=training.per_device_train_batch_size * training.gradient_accumulation_steps,
            num_processes=num_processes,
        )

    @property
    def examples_per_step(self) -> int:
        return self.examples_per_process * self.num_processes


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSizes:
    """Prepared rows as the planner sees them. lengths and num_supervised: int64 [num_examples] of the training split;
    longest_tokens: over all splits."""

    lengths: np.ndarray
    num_supervised: np.ndarray
    validation_tokens: int
    longest_tokens: int
    data_bytes: int


def row_sizes(directory: Path, prepared: PreparedData) -> RowSizes:
    """From the prepared rows of a run directory; tokens are not read."""
    train = read_examples(directory / prepared.splits["train"].examples)
    return RowSizes(
        lengths=train.lengths,
        num_supervised=train.num_supervised,
        validation_tokens=prepared.splits["validation"].tokens,
        longest_tokens=max(prepared.token_lengths.get("max", 0), int(train.lengths.max())),
        data_bytes=sum(file.stat().st_size for file in (directory / "data").glob("*") if file.is_file()),
    )


def workload_of(rows: RowSizes | None, config: Config, packing: Packing) -> Workload:
    """What the rows ask of this configuration; without rows, the most that it allows."""
    if rows is None:
        return assumed_workload(config, packing)
    limit = config.data.max_seq_length
    kept = rows.lengths <= limit
    if not kept.any():
        kept[np.argmin(rows.lengths)] = True
    lengths, num_supervised = rows.lengths[kept], rows.num_supervised[kept]
    chosen = largest_rows(lengths, packing)
    return Workload(
        num_examples=len(lengths),
        num_tokens=int(lengths.sum()),
        num_supervised=int(num_supervised.sum()),
        longest_tokens=min(rows.longest_tokens, limit),
        validation_tokens=rows.validation_tokens,
        largest=batch_size(lengths[chosen].tolist(), most_supervised(num_supervised, packing)),
        largest_rows=tuple(int(row) for row in np.flatnonzero(kept)[chosen]),
        data_bytes=rows.data_bytes,
    )


def assumed_workload(config: Config, packing: Packing) -> Workload:
    """The most that the configuration allows, where no row is known yet."""
    longest = config.data.max_seq_length
    rows = max(1, (packing.max_tokens or 0) // longest) if packing.max_tokens else packing.examples_per_batch
    lengths = [longest] * min(rows, packing.examples_per_process)
    if packing.max_tokens is not None and sum(lengths) < packing.max_tokens:
        lengths.append(packing.max_tokens - sum(lengths))
    return Workload(
        num_examples=None,
        num_tokens=None,
        num_supervised=None,
        longest_tokens=longest,
        validation_tokens=0,
        largest=batch_size(lengths, sum(lengths)),
        is_measured=False,
    )


def batch_size(lengths: Sequence[int], num_supervised: int) -> BatchSize:
    return BatchSize(num_tokens=sum(lengths), num_supervised=num_supervised)


def largest_rows(lengths: np.ndarray, packing: Packing) -> list[int]:
    """Rows of the micro-batch with the most tokens that some order of the rows brings together, longest first.

    lengths  int64 [num_examples]. Any rows may meet in a step, so the choice is among all of them.
    """
    order = np.argsort(-lengths, kind="stable")
    if packing.max_tokens is None:
        return [int(row) for row in order[: packing.examples_per_batch]]
    shortest_last = -lengths[order]  # ascending, for searchsorted
    chosen: list[int] = []
    room, position = packing.max_tokens, 0
    while position < len(order) and len(chosen) < packing.examples_per_process:
        chosen.append(int(order[position]))
        room -= int(lengths[order[position]])
        if room <= 0:
            break
        position = max(position + 1, int(np.searchsorted(shortest_last, -room)))
    return chosen


def most_supervised(num_supervised: np.ndarray, packing: Packing) -> int:
    """An upper bound of the supervised tokens in one micro-batch: its most supervised rows, while they fit."""
    most_first = -np.sort(-num_supervised)
    if packing.max_tokens is None:
        return int(most_first[: packing.examples_per_batch].sum())
    together = int(most_first[: packing.examples_per_process].sum())
    return max(int(most_first[0]), min(together, packing.max_tokens))
