"""What the data stage would do with a file, without a model and without writing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from halo_forge.chat.records import Conversation
from halo_forge.config.schema import Config, DataSection, RowFormat
from halo_forge.data.collect import Collected, collect, list_sources
from halo_forge.data.ledger import reason_counts, totals_by_file, totals_of
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
    bad_frac: float
    usable: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(config: Config, notify: Notify = silent) -> CheckReport:
    """Read and convert every row as `prepare` would. Raises DataError for a file that cannot be read at all."""
    collected = collect(config, list_sources(config.data), notify, stop_at_bad_row=False)
    entries = [draft.entry() for draft in collected.drafts]
    totals = totals_of(entries)
    bad_frac = sum(entry.is_damage for entry in entries) / max(len(entries), 1)
    rows = tuple(
        {key: value for key, value in entry.to_dict().items() if key != "split"} for entry in entries if entry.codes
    )
    return CheckReport(
        read=sum(collected.num_read.values()), kept=totals.kept, fixed=totals.fixed, dropped=totals.dropped,
        reasons=reason_counts(entries), rows=rows, sources=_sources(collected), notes=tuple(collected.notes),
        bad_frac=bad_frac, usable=totals.kept > 0 and bad_frac <= config.data.max_bad_fraction,
    )  # fmt: skip


def check_file(paths: str | Sequence[str], format: RowFormat = "auto", notify: Notify = silent) -> CheckReport:
    """`check` for files alone, with defaults for everything else."""
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    return check(Config(data=DataSection(train_file=[str(file) for file in files], format=format)), notify)


def conversation_of_row(config: Config, row: int, notify: Notify = silent) -> Conversation:
    """The conversation of the row-th row (from 1, over all training sources in order), for the mask viewer.

    Raises DataError naming the place where that row cannot be used, or how many rows there are.
    """
    limited = config.model_copy(update={"data": config.data.model_copy(update={"max_samples": row})})
    sources = [source for source in list_sources(limited.data) if source.role == "train"]
    drafts = collect(limited, sources, notify, stop_at_bad_row=False).drafts
    if row < 1 or row > len(drafts):
        raise DataError(f"there is no row {row}", where=sources[0].label, expected=f"1 to {len(drafts)}")
    draft = drafts[row - 1]
    if draft.conversation is None and draft.problem:
        raise DataError(f"{draft.problem.reason} ({draft.problem.code})", where=f"{draft.file}:{draft.line}")
    assert draft.conversation is not None
    return draft.conversation


def _sources(collected: Collected) -> tuple[dict[str, Any], ...]:
    totals = totals_by_file(draft.entry() for draft in collected.drafts)
    return tuple(
        {
            "path": label,
            "format": verdict.format if verdict else "unknown",
            "columns": list(verdict.columns) if verdict else [],
            **(asdict(totals[label]) if label in totals else {"read": 0, "kept": 0, "fixed": 0, "dropped": 0}),
        }
        for label, verdict in collected.verdicts.items()
    )
