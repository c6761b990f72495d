"""Any readable input as one JSONL file of OpenAI messages: what `data prepare` understands, written down.

    {"messages": [{"role", "content", "tool_calls"?, ...}], "tools"?, "slices"?, "tests"?, "weight"?}
    {"text": ...}                                            a document, for continued pretraining

Rows that cannot be converted are told with their place and left out. Converting the result again gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from halo_forge.chat.records import Conversation, MediaPart, Message, TextPart
from halo_forge.config.schema import DataSection
from halo_forge.data.conversion.formats import convert, detect, detection_head
from halo_forge.data.files.rows import Row, shown_path
from halo_forge.data.files.sources import expand_paths, read_rows
from halo_forge.errors import DataError, RowError, UsageError
from halo_forge.runs import Notify, fsync_directory, silent

MAX_TOLD_ROWS = 1000
MAX_UNREADABLE_ROWS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    file: str
    line: int
    code: str
    reason: str


@dataclass(slots=True)
class ConvertCounts:
    """read == written + dropped; fixed rows are among the written. `rows` holds the first thousand bad ones."""

    read: int = 0
    written: int = 0
    fixed: int = 0
    dropped: int = 0
    formats: dict[str, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    rows: list[BadRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "read": self.read, "written": self.written, "fixed": self.fixed, "dropped": self.dropped,
            "formats": self.formats, "reasons": dict(self.reasons), "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip


def convert_file(
    data: DataSection, destination: Path, notify: Notify = silent, *, overwrite: bool = False
) -> ConvertCounts:
    """Write the rows of data.train_file to `destination`, whole or not at all.

    Reads data.format, data.system_prompt, data.max_samples and data.on_bad_row (`fail` stops at the first bad row).
    Raises UsageError where nothing was named or the destination stands in the way, DataError for files that cannot be
    read, and where no row can be converted.
    """
    paths = _sources(data)
    if any(os.path.realpath(path) == os.path.realpath(destination) for path in paths):
        raise UsageError("the result would replace its own source", where=str(destination), fix="give another name")
    if destination.exists() and not overwrite:
        raise UsageError("this file exists", where=str(destination), fix="give another name, or --force")
    counts = ConvertCounts()
    staging = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with open(staging, "wb") as file:
            for line in converted_lines(data, counts, notify):
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if not counts.written:
            raise _nothing(counts, paths)
        os.replace(staging, destination)
    except OSError as error:
        raise DataError(f"the result cannot be written: {error.strerror or error}", where=str(destination)) from None
    finally:
        staging.unlink(missing_ok=True)
    fsync_directory(destination.parent)
    return counts


def converted_lines(data: DataSection, counts: ConvertCounts, notify: Notify = silent) -> Iterator[bytes]:
    """The lines of the result, one at a time; `counts` is filled while they are taken."""
    kind: str | None = None
    for path in _sources(data):
        for row, conversation in _conversations(path, data, counts, notify):
            record = conversation_row(conversation)
            other = "text" if "text" in record else "messages"
            if kind is not None and other != kind:
                words = {"text": "plain texts", "messages": "conversations"}
                raise DataError(
                    f"{words[other]} after {words[kind]}: one file cannot hold both",
                    where=f"{row.path}:{row.line}",
                    fix="convert them into two files; data.sources trains on both",
                )
            kind = other
            counts.written += 1
            yield json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"


def conversation_row(conversation: Conversation) -> dict[str, Any]:
    """The row that is read back as this conversation (but for its place)."""
    first = conversation.messages[0]
    row: dict[str, Any] = (
        {"text": first.text}
        if first.role == "document"
        else {"messages": [_message(message) for message in conversation.messages]}
    )
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    if conversation.slices:
        row["slices"] = dict(conversation.slices)
    if conversation.tests is not None:
        row["tests"] = conversation.tests
    if conversation.weight != 1.0:
        row["weight"] = conversation.weight
    return row


def _message(message: Message) -> dict[str, Any]:
    content: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.reasoning is not None:
        content["reasoning_content"] = message.reasoning
    if message.tool_calls:
        content["tool_calls"] = [
            ({"id": call.call_id} if call.call_id else {})
            | {
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    optional = {"name": message.name, "tool_call_id": message.call_id, "weight": message.weight}
    return content | {key: value for key, value in optional.items() if value is not None}


def _content(message: Message) -> str | list[dict[str, str]]:
    if not any(isinstance(part, MediaPart) for part in message.parts):
        return message.text
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": part.kind, "path": part.path}
        for part in message.parts
        if isinstance(part, TextPart | MediaPart)
    ]


# ------------------------------------------------------------------------------------------------ reading


def _sources(data: DataSection) -> list[Path]:
    names = [data.train_file] if isinstance(data.train_file, str) else list(data.train_file or [])
    if not names:
        raise UsageError("there is nothing to convert", where="data.train_file", fix="halo-forge data convert FILE")
    return expand_paths(names)


def _conversations(
    path: Path, data: DataSection, counts: ConvertCounts, notify: Notify
) -> Iterator[tuple[Row, Conversation]]:
    def say(text: str) -> None:
        notify("note", {"text": text})

    label = shown_path(path)
    rows = _counted(read_rows(path, say), data.max_samples, counts)
    head = detection_head(rows, MAX_UNREADABLE_ROWS)
    values = [row.value for row in head if row.value is not None]
    if not values:
        for row in head:
            _told(row, row.problem, data, counts)
        return
    verdict = detect(label, values, data.format)
    counts.formats[label] = verdict.format
    say(verdict.render(label))
    for row in chain(head, rows):
        problem = row.problem
        if problem is None:
            try:
                converted = convert(row, verdict.format, data.system_prompt)
            except RowError as refusal:
                problem = refusal
            except UnicodeEncodeError:
                problem = RowError("lone_surrogate", "half of a surrogate pair is no character")
            else:
                counts.fixed += bool(converted.fixes)
                counts.reasons.update(converted.fixes)
                yield row, converted.conversation
                continue
        _told(row, problem, data, counts)


def _counted(rows: Iterator[Row], limit: int | None, counts: ConvertCounts) -> Iterator[Row]:
    while limit is None or counts.read < limit:
        row = next(rows, None)
        if row is None:
            return
        counts.read += 1
        yield row


def _told(row: Row, problem: RowError | None, data: DataSection, counts: ConvertCounts) -> None:
    code, reason = (problem.code, problem.reason) if problem else ("bad_json", "the row cannot be read")
    if data.on_bad_row == "fail":
        raise DataError(
            f"{reason} ({code})",
            where=f"{row.path}:{row.line}",
            fix="mend the row, or set data.on_bad_row: skip to leave such rows out",
        )
    counts.dropped += 1
    counts.reasons[code] += 1
    if len(counts.rows) < MAX_TOLD_ROWS:
        counts.rows.append(BadRow(file=row.path, line=row.line, code=code, reason=reason))


def _nothing(counts: ConvertCounts, paths: list[Path]) -> DataError:
    first = counts.rows[0] if counts.rows else None
    return DataError(
        "no row could be converted" + (f"; the first: {first.reason} ({first.code})" if first else ""),
        where=f"{first.file}:{first.line}" if first else shown_path(paths[0]),
        fix=f"halo-forge data check {shown_path(paths[0])}",
    )
