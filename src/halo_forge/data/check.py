"""What the data stage would do with rows, without a model and without keeping anything."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from halo_forge.artifacts import DuplicateReport, Finding
from halo_forge.chat.records import Conversation
from halo_forge.chat.store import conversation_from_line
from halo_forge.config.schema import Config, DataSection, RowFormat
from halo_forge.data.decisions import Rows, decide
from halo_forge.data.entries import entries_of, write_ledger
from halo_forge.data.files.rows import Say
from halo_forge.data.inputs import Inputs, list_sources, row_sources
from halo_forge.data.ledger import Summary, Totals
from halo_forge.data.overlap.benchmark_items import benchmarks_of
from halo_forge.data.overlap.contamination import BenchmarkIndex
from halo_forge.data.prepared_report import call_notes, findings, flag_notes, style_notes
from halo_forge.data.reasons import action_table
from halo_forge.data.row_work import WorkOrder
from halo_forge.data.workers import PartMaker
from halo_forge.domains.media import open_media
from halo_forge.errors import DataError
from halo_forge.runs import Notify, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """`rows` lists every dropped, fixed or flagged row: {"file", "line", "code", "reason", "action", "excerpt"}.
    `sources`: {"path", "format", "columns", "read", "kept", "fixed", "dropped"}. `bad_frac` is the share of damaged
    rows (duplicates are not damage); `usable` says whether a run would accept it."""

    read: int
    kept: int
    fixed: int
    dropped: int
    reasons: dict[str, int]
    rows: tuple[dict[str, Any], ...]
    sources: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    duplicates: DuplicateReport | None
    bad_frac: float
    usable: bool

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["findings"] = [finding.model_dump(mode="json") for finding in self.findings]
        found["duplicates"] = self.duplicates.model_dump(mode="json") if self.duplicates else None
        return found


@dataclass(slots=True, kw_only=True)
class Examined:
    """All rows of a configuration, decided on, with their parts still on disk."""

    rows: Rows
    read: Inputs
    summary: Summary
    findings: tuple[Finding, ...]
    notes: list[str]


def examine(config: Config, directory: Path, tokenizer: Any = None, notify: Notify = silent) -> Examined:
    """Read, convert, inspect and decide as `prepare` would; without a tokenizer there are no tokens and no rows that
    are too long. Parts go to `directory`."""
    data, actions = config.data, action_table(config.data)
    listed = list_sources(data)
    notes: list[str] = []
    say = _teller(notes, notify)
    read = Inputs(listed, data, say)
    benchmarks = benchmarks_of(data)
    index = BenchmarkIndex.build(benchmarks) if benchmarks else None
    media = open_media(config, tokenizer) if tokenizer is not None else None
    order = WorkOrder(data=data, actions=actions, benchmarks=index, tokenizer=tokenizer, media=media)
    with PartMaker(directory, order, row_sources(read), data.num_workers, notify, lambda: None) as workers:
        parts = list(workers.parts(read.batches()))
    for note in dict.fromkeys(note for part in parts for note in part.notes):
        say(note)
    rows = Rows.of(parts, listed)
    decide(rows, data, actions, notify)
    summary, told = write_ledger(rows, None)
    for note in [*rows.notes, *style_notes(rows), *call_notes(rows), *flag_notes(summary)]:
        say(note)
    return Examined(rows=rows, read=read, summary=summary, findings=findings(config, summary, told), notes=notes)


def _teller(notes: list[str], notify: Notify) -> Say:
    def say(text: str) -> None:
        notes.append(text)
        notify("note", {"text": text})

    return say


def check(config: Config, notify: Notify = silent) -> CheckReport:
    """Read and convert every row as `prepare` would. Raises DataError for a file that cannot be read at all."""
    with tempfile.TemporaryDirectory(prefix="halo-forge-check-") as directory:
        found = examine(config, Path(directory), None, notify)
        rows = tuple(_told_rows(found.rows))
    summary, totals = found.summary, found.summary.totals()
    bad_frac = summary.num_damaged / max(summary.num_read, 1)
    return CheckReport(
        read=totals.read, kept=totals.kept, fixed=totals.fixed, dropped=totals.dropped,
        reasons=summary.reason_counts(), rows=rows, sources=_sources(found), notes=tuple(found.notes),
        findings=found.findings, duplicates=found.rows.duplicates, bad_frac=bad_frac,
        usable=totals.kept > 0 and bad_frac <= config.data.max_bad_fraction,
    )  # fmt: skip


def check_file(paths: str | Sequence[str], format: RowFormat = "auto", notify: Notify = silent) -> CheckReport:
    """`check` for files, with every other setting at its default."""
    files = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    return check(Config(data=DataSection(train_file=files, format=format)), notify)


def conversation_of_row(config: Config, row: int, notify: Notify = silent) -> Conversation:
    """The conversation of the row-th row (from 1, over all training sources in order), for the mask viewer.

    Raises DataError naming the place where that row cannot be used, or how many rows there are.
    """
    # Only this row matters: what other rows are like, or what it repeats, is no reason not to show it.
    data = config.data.model_copy(
        update={"max_samples": row, "near_duplicate_threshold": None, "validation_file": None, "holdout_file": None}
    )
    alone = config.model_copy(update={"data": data})
    with tempfile.TemporaryDirectory(prefix="halo-forge-row-") as directory:
        found = examine(alone, Path(directory), None, notify)
        rows = found.rows
        if row < 1 or row > len(rows):
            raise DataError(
                f"there is no row {row}", where=found.read.sources[0].label, expected=f"1 to {len(rows)}"
            )  # fmt: skip
        part = rows.parts[-1]
        table = part.read(("conversation", "code", "reason"))
        at = row - 1 - (len(rows) - part.num_rows)
        line, code = table["conversation"][at].as_py(), table["code"][at].as_py()
        if line is None:
            raise DataError(f"{table['reason'][at].as_py()} ({code})", where=rows.place(row - 1))
        return conversation_from_line(line)


def _told_rows(rows: Rows) -> list[dict[str, Any]]:
    told = []
    start = 0
    for part in rows.parts:
        for item in entries_of(rows, part, start):
            told.append({key: value for key, value in item.entry.to_dict().items() if key != "split"})
        start += part.num_rows
    return told


def _sources(found: Examined) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "path": label,
            "format": verdict.format if verdict else "unknown",
            "columns": list(verdict.columns) if verdict else [],
            **asdict(found.summary.by_file.get(label, Totals())),
        }
        for label, verdict in found.read.verdicts.items()
    )
