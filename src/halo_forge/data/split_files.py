"""The split files, put together from the parts: filtered, appended and hashed, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from halo_forge.artifacts import SplitReport
from halo_forge.chat.store import EXAMPLE_SCHEMA, ExampleWriter
from halo_forge.data.ledger import LineWriter
from halo_forge.data.parts import Part
from halo_forge.data.split import SPLITS

WIDE = ("source", "id", "conversation", "num_tokens", "num_supervised", "input_ids", "loss_weights", "media")


@dataclass(slots=True)
class _SplitWriter:
    conversations: LineWriter
    examples: ExampleWriter
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    def add(self, batch: pa.RecordBatch, source_names: pa.StringArray) -> None:
        self.rows += batch.num_rows
        self.tokens += int(batch["num_tokens"].to_numpy().sum())
        self.supervised_tokens += int(batch["num_supervised"].to_numpy().sum())
        self.conversations.write(_concatenated(batch["conversation"]))
        columns = [batch[name] for name in ("id", "input_ids", "loss_weights", "num_supervised")]
        columns += [source_names.take(batch["source"]), batch["media"]]
        self.examples.write(pa.RecordBatch.from_arrays(columns, schema=EXAMPLE_SCHEMA))


def _concatenated(lines: pa.BinaryArray) -> bytes:
    """The values of a column one after the other; each ends with its line end."""
    offsets = np.frombuffer(lines.buffers()[1], np.int32)[lines.offset : lines.offset + len(lines) + 1]
    return lines.buffers()[2][int(offsets[0]) : int(offsets[-1])].to_pybytes() if len(lines) else b""


def split_names(split: str) -> tuple[str, str]:
    """The file names of a split's conversations and examples."""
    return f"{split}.conversations.jsonl", f"{split}.examples.arrow"


def write_splits(
    parts: Sequence[Part], split_of: np.ndarray, source_names: Sequence[str], directory: Path
) -> dict[str, SplitReport]:
    """Write conversations and examples of every split, also of an empty one. Nothing appears before all is durable.

    split_of      int8 [num_rows]  index into SPLITS, or -1 for a row that is left out
    source_names  name of each source, "" for those without
    """
    names = pa.array(source_names, pa.string())
    writers = [
        _SplitWriter(LineWriter(directory / conversations), ExampleWriter(directory / examples))
        for conversations, examples in map(split_names, SPLITS)
    ]
    try:
        start = 0
        for part in parts:
            split = split_of[start : start + part.num_rows]
            start += part.num_rows
            if (split < 0).all():
                continue
            batch = part.read(WIDE)
            for number, writer in enumerate(writers):
                chosen = split == number
                if chosen.any():
                    writer.add(batch if chosen.all() else batch.filter(pa.array(chosen)), names)
        return {name: _report(name, writer) for name, writer in zip(SPLITS, writers, strict=True)}
    except BaseException:
        for writer in writers:
            writer.conversations.abandon()
            writer.examples.abandon()
        raise


def _report(name: str, writer: _SplitWriter) -> SplitReport:
    conversations, examples = split_names(name)
    return SplitReport(
        rows=writer.rows, tokens=writer.tokens, supervised_tokens=writer.supervised_tokens,
        sha256=writer.conversations.close(), conversations=f"data/{conversations}", examples=f"data/{examples}",
        examples_sha256=writer.examples.close(),
    )  # fmt: skip
