"""What changed between two prepared data sets, for the person who has to explain it.

Conversations are compared by id, which is the hash of what is said, so a row that moved to another file is the same
row and one whose answer was mended is another. Memory is nine bytes a row: files are streamed, and only the few rows
that are shown are read whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.artifacts import PreparedData
from halo_forge.chat.store import conversation_from_line
from halo_forge.data.ledger import redacted
from halo_forge.data.split import SPLITS
from halo_forge.errors import DataError
from halo_forge.runs import read_artifact

MANIFEST = "data/manifest.json"
MAX_EXAMPLES = 5
EXCERPT_CHARS = 400
_ID = re.compile(rb'"id":\s*"([0-9a-f]{16})[0-9a-f]{48}"')
_ENCODING = {"template_sha256": "chat template", "tokenizer_sha256": "tokenizer", "model_name": "model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A value on both sides; None where a side does not have it, or did not record it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChange:
    """`kind` is added, removed, changed (other bytes) or counted (same bytes, other counts)."""

    path: str
    kind: str
    kept: Change
    dropped: Change
    train_tokens: Change
    train_supervised_tokens: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRow:
    """`reason` says what the other side's ledger has on this row, if it was dropped there."""

    file: str
    line: int
    excerpt: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChange:
    """Conversations with one fate. `before` and `after` are splits; None = not there."""

    before: str | None
    after: str | None
    rows: int
    examples: tuple[ExampleRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDiff:
    a: str
    b: str
    settings: tuple[Change, ...]
    encoding: tuple[Change, ...]
    sources: tuple[SourceChange, ...]
    rows: tuple[RowChange, ...]
    num_same: int
    reasons: tuple[Change, ...]
    splits: tuple[Change, ...]  # name, {rows, tokens, supervised_tokens} on both sides
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.settings or self.encoding or self.sources or self.rows or self.reasons or self.splits)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_empty": self.is_empty}

    def words(self) -> str:
        """A changelog in plain text, ready for a release note."""
        lines = [f"Data: {self.a} -> {self.b}"]
        if self.is_empty:
            lines.append("nothing changed")
        for title, section in (
            ("Rows", [*_split_words(self.splits), *_row_words(self.rows)]),
            ("Sources", [_source_words(change) for change in self.sources]),
            ("Why rows were dropped or mended", [_count_words(change) for change in self.reasons]),
            ("Settings", [_value_words(change) for change in self.settings]),
            ("Model side", [_value_words(change) for change in self.encoding]),
            ("Notes", list(self.notes)),
        ):
            if section:
                lines += ["", title, *(f"  {line}" for line in section)]
        return "\n".join(lines)


def diff_prepared(a: Path, b: Path) -> PreparedDiff:
    """Compare the prepared data of two run directories. Raises DataError where one of them holds none, or where a
    file cannot be read; a file that no longer has the hash it was frozen with is told in the notes."""
    before, after = read_artifact(a / MANIFEST, PreparedData), read_artifact(b / MANIFEST, PreparedData)
    notes: list[str] = []
    rows, num_same = _row_changes((a, before), (b, after), notes)
    settings = _setting_changes(a, b, before, after)
    told = {change.name.removeprefix("data.") for change in settings}
    encoding = tuple(change for change in _encoding_changes(before, after) if change.name not in told)
    return PreparedDiff(
        a=str(a), b=str(b), settings=settings, encoding=encoding,
        sources=_source_changes(before, after), rows=rows, num_same=num_same,
        reasons=_changes(before.reasons, after.reasons, 0), splits=_split_changes(before, after), notes=tuple(notes),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ manifests


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], absent: Any = None) -> tuple[Change, ...]:
    return tuple(
        Change(name=name, before=before.get(name, absent), after=after.get(name, absent))
        for name in dict.fromkeys((*before, *after))
        if before.get(name, absent) != after.get(name, absent)
    )


def _setting_changes(a: Path, b: Path, before: PreparedData, after: PreparedData) -> tuple[Change, ...]:
    """Settings by the hashes in provenance.inputs, with their values where both runs kept their configuration."""
    named = [
        {name: sha256 for name, sha256 in prepared.provenance.inputs.items() if name.startswith(("data.", "code"))}
        for prepared in (before, after)
    ]
    values = [_data_settings(directory) for directory in (a, b)]
    changes: dict[str, Change] = {}
    for change in _changes(*named):
        key = change.name
        known = [side.get(key) if side is not None else None for side in values]
        if all(side is not None and key in side for side in values):
            changes[key] = Change(name=key, before=known[0], after=known[1])
        else:
            changes[key] = Change(name=key, before=_recorded(change.before), after=_recorded(change.after))
    if values[0] is not None and values[1] is not None:  # what changes no byte of the result, and file names
        shared = values[0].keys() & values[1].keys()  # an older release has fewer keys; that is no change
        for change in _changes(*({key: side[key] for key in side if key in shared} for side in (values[0], values[1]))):
            changes.setdefault(change.name, change)
    return tuple(changes.values())


def _recorded(sha256: str | None) -> str | None:
    return None if sha256 is None else f"sha256 {sha256[:12]}"


def _data_settings(directory: Path) -> dict[str, Any] | None:
    """`data.<key>` -> value from the run's own record, None where there is none."""
    try:
        data = json.loads((directory / "run.json").read_bytes())["config"]["data"]
        return {f"data.{key}": value for key, value in data.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _encoding_changes(before: PreparedData, after: PreparedData) -> tuple[Change, ...]:
    sides = [
        {name: getattr(prepared, field) for field, name in _ENCODING.items()}
        | {"max_seq_length": prepared.max_seq_length}
        for prepared in (before, after)
    ]
    return _changes(*sides)


def _source_changes(before: PreparedData, after: PreparedData) -> tuple[SourceChange, ...]:
    old, new = ({source.path: source for source in side.sources} for side in (before, after))
    changes = []
    for path in dict.fromkeys((*old, *new)):
        left, right = old.get(path), new.get(path)
        if left == right:
            continue
        kind = "added" if left is None else "removed" if right is None else "changed"
        if left is not None and right is not None and left.sha256 == right.sha256:
            kind = "counted"
        counts = {
            name: Change(name=name, before=getattr(left, name, None), after=getattr(right, name, None))
            for name in ("kept", "dropped", "train_tokens", "train_supervised_tokens")
        }
        changes.append(SourceChange(path=path, kind=kind, **counts))
    return tuple(changes)


def _split_changes(before: PreparedData, after: PreparedData) -> tuple[Change, ...]:
    sides = [
        {
            name: {"rows": report.rows, "tokens": report.tokens, "supervised_tokens": report.supervised_tokens}
            for name, report in prepared.splits.items()
        }
        for prepared in (before, after)
    ]
    return _changes(*sides)


# ------------------------------------------------------------------------------------------------ rows

Side = tuple[Path, PreparedData]


def _row_changes(before: Side, after: Side, notes: list[str]) -> tuple[tuple[RowChange, ...], int]:
    """What became of every conversation, and how many stayed where they were."""
    if _frozen(before[1]) == _frozen(after[1]):
        return (), sum(report.rows for report in before[1].splits.values())
    (old_ids, old_splits), (new_ids, new_splits) = (_places(*side, notes) for side in (before, after))
    shared, at_old, at_new = np.intersect1d(old_ids, new_ids, assume_unique=True, return_indices=True)
    fates: list[tuple[str | None, str | None, np.ndarray]] = []
    for number, name in enumerate(SPLITS):
        fates.append((None, name, np.setdiff1d(new_ids[new_splits == number], shared, assume_unique=True)))
    for number, name in enumerate(SPLITS):
        fates.append((name, None, np.setdiff1d(old_ids[old_splits == number], shared, assume_unique=True)))
    moved = old_splits[at_old] != new_splits[at_new]
    for start, name in enumerate(SPLITS):
        for end, other in enumerate(SPLITS):
            chosen = moved & (old_splits[at_old] == start) & (new_splits[at_new] == end)
            fates.append((name, other, shared[chosen]))
    changes = tuple(
        RowChange(before=start, after=end, rows=len(ids), examples=_examples(ids, start, end, before, after))
        for start, end, ids in fates
        if len(ids)
    )
    return changes, int(len(shared) - moved.sum())


def _frozen(prepared: PreparedData) -> dict[str, str]:
    return {name: report.sha256 for name, report in prepared.splits.items()}


def _places(directory: Path, prepared: PreparedData, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [n], int8 [n]): the ids of one side, sorted, once each, with the split of each."""
    ids, splits = [np.zeros(0, np.uint64)], [np.zeros(0, np.int8)]
    for number, name in enumerate(SPLITS):
        report = prepared.splits.get(name)
        if report is None:
            continue
        digest = hashlib.sha256()
        found = np.fromiter((key for key, _ in _lines(directory / report.conversations, digest)), np.uint64)
        if digest.hexdigest() != report.sha256:
            notes.append(f"{directory / report.conversations} changed after it was frozen")
        ids.append(found)
        splits.append(np.full(len(found), number, np.int8))
    once, first = np.unique(np.concatenate(ids), return_index=True)
    return once, np.concatenate(splits)[first]


def _lines(path: Path, digest: Any = None) -> Iterator[tuple[int, bytes]]:
    """(first 64 bits of the id, line) of every conversation."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if digest is not None:
                    digest.update(line)
                if not line.strip():
                    continue
                match = _ID.search(line)
                if match is None:
                    raise DataError("this line is not a conversation record", where=f"{path}:{number}")
                yield int(match.group(1), 16), line
    except OSError as error:
        raise DataError(
            f"the conversations cannot be read: {error.strerror or error}", where=str(path), fix="run the data stage"
        ) from None


def _examples(ids: np.ndarray, start: str | None, end: str | None, before: Side, after: Side) -> tuple[ExampleRow, ...]:
    """Up to five of these rows, those with the smallest ids. They are read where they stand (last)."""
    wanted = {int(key) for key in np.sort(ids)[:MAX_EXAMPLES]}
    (directory, prepared), other = (after, before) if end is not None else (before, after)
    path = directory / prepared.splits[end or start or ""].conversations
    found: dict[int, ExampleRow] = {}
    for key, line in _lines(path):
        if key in wanted and key not in found:
            conversation = conversation_from_line(line)
            text = " / ".join(" ".join(turn.text.split()) for turn in conversation.messages[:3])
            source = conversation.source
            found[key] = ExampleRow(file=source.path, line=source.line, excerpt=redacted(text[:EXCERPT_CHARS]))
            if len(found) == len(wanted):
                break
    rows = [found[key] for key in sorted(found)]
    if start is None or end is None:
        reasons = _dropped_there(other, {(row.file, row.line) for row in rows})
        rows = [
            ExampleRow(file=row.file, line=row.line, excerpt=row.excerpt, reason=reasons.get((row.file, row.line)))
            for row in rows
        ]
    return tuple(rows)


def _dropped_there(side: Side, places: set[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Codes of those places that the ledger of a side has as dropped."""
    directory, prepared = side
    found: dict[tuple[str, int], str] = {}
    numbers = {line for _, line in places}
    try:
        with open(directory / prepared.ledger, "rb") as file:
            for line in file:
                if b'"dropped"' not in line:
                    continue
                entry = json.loads(line)
                if entry.get("line") in numbers and (entry["file"], entry["line"]) in places:
                    found[(entry["file"], entry["line"])] = str(entry.get("code") or "dropped")
    except (OSError, ValueError, KeyError):
        return found  # the ledger is an explanation; without it the rows are shown all the same
    return found


# ------------------------------------------------------------------------------------------------ words


def _split_words(changes: tuple[Change, ...]) -> list[str]:
    lines = []
    nothing = {"rows": 0, "tokens": 0, "supervised_tokens": 0}
    for change in changes:
        old, new = change.before or nothing, change.after or nothing
        told = ", ".join(
            f"{old[key]:,} -> {new[key]:,} {word}"
            for key, word in (("rows", "rows"), ("tokens", "tokens"), ("supervised_tokens", "trained tokens"))
            if old[key] != new[key]
        )
        lines.append(f"{change.name}: {told}")
    return lines


def _row_words(changes: tuple[RowChange, ...]) -> list[str]:
    lines = []
    for change in changes:
        rows = "1 row" if change.rows == 1 else f"{change.rows:,} rows"
        if change.before is None:
            lines.append(f"{rows} added to {change.after}")
        elif change.after is None:
            lines.append(f"{rows} removed from {change.before}")
        else:
            lines.append(f"{rows} moved from {change.before} to {change.after}")
        for row in change.examples:
            verb = "was" if change.before is None else "now"
            reason = f" ({verb} {row.reason})" if row.reason else ""
            lines.append(f"  {row.file}:{row.line}{reason}  {row.excerpt}")
    return lines


def _source_words(change: SourceChange) -> str:
    if change.kind in ("added", "removed"):
        kept = change.kept.after if change.kind == "added" else change.kept.before
        return f"{change.path}: {change.kind} ({kept:,} rows)"
    counts = [
        f"{count.before:,} -> {count.after:,} {count.name.replace('supervised', 'trained').replace('_', ' ')}"
        for count in (change.kept, change.dropped, change.train_tokens, change.train_supervised_tokens)
        if count.before != count.after
    ]
    what = "other content" if change.kind == "changed" else "same content"
    return f"{change.path}: {', '.join([what, *counts])}"


def _count_words(change: Change) -> str:
    return f"{change.name}: {change.before:,} -> {change.after:,} rows"


def _value_words(change: Change) -> str:
    sides = ["-" if side is None else _short(side) for side in (change.before, change.after)]
    return f"{change.name}: {sides[0]} -> {sides[1]}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"sha256 {text[:12]}" if re.fullmatch(r"[0-9a-f]{64}", text) else text
