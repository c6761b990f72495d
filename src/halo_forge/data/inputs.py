"""Which files and data sets a run reads, in which order, in which role; and the batches of their rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from halo_forge.config.schema import DataSection, RowFormat, SourceEntry
from halo_forge.data.conversion.formats import DETECTED_ROWS, Verdict, detect, detection_head
from halo_forge.data.files.datasets_table import HubDataset, dataset_rows, find_dataset
from halo_forge.data.files.raw_batches import MAX_BATCH_BYTES, ROWS_PER_BATCH, RawBatch, row_batches, rows_of
from halo_forge.data.files.rows import Row, Say, shown_path
from halo_forge.data.files.sources import expand_paths, read_batches
from halo_forge.data.files.text_rows import BYTES_PER_TOKEN
from halo_forge.data.parts import Part
from halo_forge.data.row_work import RowSource
from halo_forge.data.split import SplitName
from halo_forge.errors import DataError, UsageError
from halo_forge.runs import sha256_file

MAX_UNREADABLE_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class NumberedBatch:
    """Consecutive batches of rows, each with the number of its source; `number` counts over all sources. The ends of
    small files are gathered, or ten thousand shards would be ten thousand parts."""

    number: int
    pieces: tuple[tuple[int, RawBatch], ...]

    @property
    def num_bytes(self) -> int:
        return sum(raw.num_bytes for _, raw in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file or data set. `role` is train where its rows are to be split, else the split that it fills.
    `entry` numbers the entry of data.sources that it belongs to."""

    role: SplitName
    label: str
    path: Path | None = None
    dataset: HubDataset | None = None
    format: RowFormat = "auto"
    name: str | None = None
    loss_weight: float = 1.0
    replay: bool = False
    entry: int | None = None


def list_sources(data: DataSection) -> list[Source]:
    """Every input, in the order in which it is read. Raises UsageError where nothing was named, DataError where a
    file is missing or stands in two roles."""
    if not data.names_rows:
        raise UsageError(
            "there is nothing to train on",
            where="data.train_file",
            expected="a file (--data FILE), a data set (--dataset NAME) or data.sources",
            fix="halo-forge sft datasets",
        )
    sources: list[Source] = []
    for number, entry in enumerate(data.sources or []):
        sources += _of_entry(number, entry)
    sources += _files("train", data.train_file, data)
    if data.dataset:
        dataset = find_dataset(data.dataset)
        sources.append(Source(role="train", label=dataset.label, dataset=dataset, format=data.format))
    sources += [*_files("validation", data.validation_file, data), *_files("holdout", data.holdout_file, data)]
    labels = Counter(source.label for source in sources)
    twice = next((label for label, count in labels.items() if count > 1), None)
    if twice:
        raise DataError("one file cannot be two sources", where=twice, expected="different files, or a share of one")
    return sources


def _files(role: SplitName, names: str | list[str] | None, data: DataSection) -> list[Source]:
    listed = [names] if isinstance(names, str) else list(names or [])
    return [
        Source(role=role, label=shown_path(path), path=path, format=data.format) for path in expand_paths(listed)
    ]  # fmt: skip


def _of_entry(number: int, entry: SourceEntry) -> list[Source]:
    name = entry.name or entry.path or entry.dataset
    whole = Source(
        role="train", label="", format=entry.format, name=name, loss_weight=entry.loss_weight, replay=entry.replay,
        entry=number,
    )  # fmt: skip
    if entry.dataset:
        dataset = find_dataset(entry.dataset)
        return [replace(whole, label=dataset.label, dataset=dataset)]
    return [replace(whole, label=shown_path(path), path=path) for path in expand_paths([entry.path or ""])]


def source_sha256(source: Source, data: DataSection) -> str:
    """Hash of a file's bytes, or of a data set's rows."""
    if source.path:
        return sha256_file(source.path)
    assert source.dataset is not None
    digest = hashlib.sha256()
    for row in dataset_rows(source.dataset, data.max_samples):
        digest.update(json.dumps(row.value, sort_keys=True, default=str).encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()


class Inputs:
    """The batches of all sources in order, with the verdict on each source's format told before its first batch.

    verdicts  by label; None where no row could be read
    """

    def __init__(self, sources: Sequence[Source], data: DataSection, say: Say) -> None:
        self.sources, self.data, self.say = sources, data, say
        self.verdicts: dict[str, Verdict | None] = {}
        for source in sources:
            self._look_at(source)

    def batches(self) -> Iterator[NumberedBatch]:
        """The work in portions of at most about ROWS_PER_BATCH rows and MAX_BATCH_BYTES."""
        number = num_rows = num_bytes = 0
        held: list[tuple[int, RawBatch]] = []
        for at, raw in self._raw_batches():
            size = raw.num_bytes
            if held and (num_rows + raw.num_rows > ROWS_PER_BATCH or num_bytes + size > MAX_BATCH_BYTES):
                yield NumberedBatch(number, tuple(held))
                number, num_rows, num_bytes, held = number + 1, 0, 0, []
            held.append((at, raw))
            num_rows, num_bytes = num_rows + raw.num_rows, num_bytes + size
        if held:
            yield NumberedBatch(number, tuple(held))

    def _raw_batches(self) -> Iterator[tuple[int, RawBatch]]:
        left = self.data.max_samples
        for at, source in enumerate(self.sources):
            raw = self._open(source, self.say)
            if left is not None and source.role == "train":
                rows = list(islice(_rows(raw), left))
                left -= len(rows)
                raw = row_batches(source.label, rows, ROWS_PER_BATCH)
            for batch in raw:
                yield at, batch

    def _open(self, source: Source, say: Say) -> Iterator[RawBatch]:
        if source.dataset:
            return row_batches(source.label, dataset_rows(source.dataset, self.data.max_samples), ROWS_PER_BATCH)
        assert source.path is not None
        size = BYTES_PER_TOKEN * self.data.max_seq_length
        return read_batches(source.path, say, size, ROWS_PER_BATCH)

    def _look_at(self, source: Source) -> None:
        """Tell the format from the first rows that can be read."""
        forced = source.format
        head = detection_head(_rows(self._open(source, lambda text: None)), MAX_UNREADABLE_ROWS)
        if not head:
            raise DataError("the file holds no rows", where=source.label)
        values = [row.value for row in head if row.value is not None]
        if len(head) == MAX_UNREADABLE_ROWS and len(values) < DETECTED_ROWS:
            raise _unreadable(head)
        groups = (self.data.split_by, self.data.stratify_by)
        verdict = detect(source.label, values, forced, also_read=groups) if values else None
        self.verdicts[source.label] = verdict
        if verdict:
            self.say(verdict.render(source.label))


def _rows(batches: Iterator[RawBatch]) -> Iterator[Row]:
    for batch in batches:
        yield from rows_of(batch)[0]


def _unreadable(head: list[Row]) -> DataError:
    first = head[0].problem
    return DataError(
        f"none of the first {len(head)} rows can be read" + (f"; the first: {first.reason}" if first else ""),
        where=f"{head[0].path}:{head[0].line}",
    )


def row_sources(read: Inputs) -> list[RowSource]:
    """What workers must know of every source."""
    return [
        RowSource(
            label=source.label,
            format=verdict.format if (verdict := read.verdicts[source.label]) else "text",
            mixed=verdict is not None and not verdict.forced,
            name=source.name,
            loss_weight=source.loss_weight,
            can_be_trained=source.role == "train",
        )
        for source in read.sources
    ]


def num_read(parts: Sequence[Part], sources: Sequence[Source]) -> Counter[str]:
    """Rows that the readers yielded, per source label."""
    read: Counter[str] = Counter()
    for part in parts:
        for source, count in part.num_read.items():
            read[sources[source].label] += count
    return read
