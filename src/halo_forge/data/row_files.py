"""Rows as they stand in their files, chosen by the same decisions that a preparation makes, written as JSONL.

What `data dedupe`, `data split`, `data mix` and `data contamination` have in common: nobody's columns are changed, so
the output is as good an input for another tool as the file was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.config.schema import Config
from halo_forge.data.check import Examined, examine
from halo_forge.data.files.raw_batches import rows_of
from halo_forge.data.ledger import LineWriter
from halo_forge.data.split import SPLITS
from halo_forge.errors import UsageError
from halo_forge.runs import Notify, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One file that was written."""

    path: str
    rows: int
    sha256: str


@contextmanager
def examined(config: Config, tokenizer: Any = None, notify: Notify = silent) -> Iterator[Examined]:
    """All rows decided on, while the block runs. Policies that would fail only leave rows out here."""
    with tempfile.TemporaryDirectory(prefix="halo-forge-rows-") as directory:
        yield examine(config, Path(directory), tokenizer, notify)


def write_rows(found: Examined, chosen: Mapping[Path, np.ndarray], *, overwrite: bool = False) -> list[Written]:
    """Write the chosen rows (a bool array a file) in input order. Raises UsageError for a file that is there already
    or is one of the inputs."""
    inputs = {source.path.resolve() for source in found.read.sources if source.path}
    for path in chosen:
        if path.resolve() in inputs:
            raise UsageError("the output would replace its own input", where=str(path), fix="give another --output")
        if path.exists() and not overwrite:
            raise UsageError("this file exists already", where=str(path), fix="give another --output, or --force")
    writers = {path: LineWriter(path) for path in chosen}
    counts = {path: int(mask.sum()) for path, mask in chosen.items()}
    try:
        number = 0
        for batch in found.read.batches():
            for row in (row for _, raw in batch.pieces for row in rows_of(raw)[0]):
                for path, mask in chosen.items():
                    if mask[number]:
                        writers[path].write(json.dumps(row.value, ensure_ascii=False, default=str).encode() + b"\n")
                number += 1
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    return [Written(path=str(path), rows=counts[path], sha256=writers[path].close()) for path in chosen]


def split_masks(found: Examined, directory: Path) -> dict[Path, np.ndarray]:
    return {directory / f"{name}.jsonl": found.rows.split == number for number, name in enumerate(SPLITS)}
