"""Conversations and examples on disk: JSONL for people, memory-mapped Arrow for training.

Bytes are a function of the records alone, so that equal data has an equal hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from halo_forge.chat.records import (
    Conversation,
    Example,
    MediaPart,
    Medium,
    Message,
    Part,
    SourceRef,
    TextPart,
    ToolCall,
)
from halo_forge.errors import DataError
from halo_forge.runs import fsync_directory, sha256_bytes, write_atomic

EXAMPLES_PER_BATCH = 1000
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
EXAMPLE_SCHEMA = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
        ("num_supervised", pa.int32()),
        ("source", pa.string()),
        ("media", pa.string()),  # JSON of the example's media, "" without any
    ]
)


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> str:
    """One line a conversation; returns the sha256 of the file. Raises DataError for values JSON does not hold."""
    data = b"".join(conversation_line(conversation) for conversation in conversations)
    write_atomic(path, data)
    return sha256_bytes(data)


def read_conversations(path: Path, limit: int | None = None) -> list[Conversation]:
    """What `write_conversations` wrote, field by field; at most the first `limit`. Raises DataError that names file
    and line."""
    conversations: list[Conversation] = []
    for number, line in enumerate(_lines(path), start=1):
        if limit is not None and len(conversations) >= limit:
            break
        if not line.strip():
            continue
        try:
            conversations.append(conversation_from_line(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                "this line is not a conversation record",
                where=f"{path}:{number}",
                expected=f"what the data stage writes ({type(error).__name__}: {error})",
                fix="run the data stage again",
            ) from None
    return conversations


def conversation_from_line(line: bytes) -> Conversation:
    """What `conversation_line` wrote."""
    return conversation_from_record(json.loads(line))


class ExampleWriter:
    """An example file written batch by batch. `close` makes it durable and returns its sha256; a file that was not
    closed has another name and counts for nothing."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = _HashedFile(open(self._staging, "wb"))  # noqa: SIM115 (closed by close or abandon)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), EXAMPLE_SCHEMA)

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._writer.write_batch(batch)

    def close(self) -> str:
        self._writer.close()
        self._file.close()
        os.replace(self._staging, self.path)
        fsync_directory(self.path.parent)
        return self._file.digest.hexdigest()

    def abandon(self) -> None:
        self._file.raw.close()
        self._staging.unlink(missing_ok=True)


class _HashedFile(io.RawIOBase):
    """A file that hashes what passes through it on its way to the disk."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.digest = raw, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.raw.write(view)
        return view.nbytes

    def close(self) -> None:
        if not self.raw.closed:
            self.raw.flush()
            os.fsync(self.raw.fileno())
            self.raw.close()
        super().close()


def write_examples(path: Path, examples: Iterable[Example]) -> str:
    """An Arrow file with a row an example, in order; returns the sha256 of the file."""
    writer = ExampleWriter(path)
    rows = list(examples)
    for start in range(0, len(rows), EXAMPLES_PER_BATCH):
        chunk = rows[start : start + EXAMPLES_PER_BATCH]
        columns = [
            pa.array([example.conversation_id for example in chunk], pa.string()),
            _list_column([example.input_ids for example in chunk], np.int32),
            _list_column([example.loss_weights for example in chunk], np.float32),
            pa.array([example.num_supervised_tokens for example in chunk], pa.int32()),
            pa.array([example.source for example in chunk], pa.string()),
            pa.array([media_text(example.media) for example in chunk], pa.string()),
        ]
        writer.write(pa.RecordBatch.from_arrays(columns, schema=EXAMPLE_SCHEMA))
    return writer.close()


def read_examples(path: Path) -> ExampleStore:
    """Opens the file and checks its columns; tokens are read from disk when they are used. Raises DataError."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise DataError("no examples here", where=str(path), fix="run the data stage") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError("this is not an Arrow file", where=str(path), expected=str(error)) from None
    if not reader.schema.equals(EXAMPLE_SCHEMA):
        raise DataError(
            "this file does not hold examples",
            where=str(path),
            expected=", ".join(f"{field.name}: {field.type}" for field in EXAMPLE_SCHEMA),
            fix="run the data stage again",
        )
    return ExampleStore(path, [reader.get_batch(number) for number in range(reader.num_record_batches)])


class ExampleStore:
    """Examples of one file by number, memory-mapped: what is not used is never read, and processes share what is.

    lengths         int64 [num_examples], tokens
    num_supervised  int64 [num_examples], tokens with a loss weight above 0
    Arrays handed out are read-only views of the file.
    """

    def __init__(self, path: Path, batches: list[pa.RecordBatch]) -> None:
        self.path = path
        self._batches = [_Columns.of(batch, path) for batch in batches]
        self._starts = np.concatenate(([0], np.cumsum([batch.num_rows for batch in batches]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._batches[number].example(index - int(self._starts[number]))

    @cached_property
    def lengths(self) -> np.ndarray:
        return _joined([np.diff(columns.starts) for columns in self._batches])

    @cached_property
    def num_supervised(self) -> np.ndarray:
        return _joined([columns.num_supervised for columns in self._batches])


@dataclass(frozen=True, slots=True)
class _Columns:
    """One record batch as numpy views. `starts` are offsets into `ids` and `weights`."""

    names: pa.StringArray
    ids: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    num_supervised: np.ndarray
    sources: pa.StringArray
    media: pa.StringArray

    @staticmethod
    def of(batch: pa.RecordBatch, path: Path) -> _Columns:
        ids, weights = batch["input_ids"], batch["loss_weights"]
        starts = ids.offsets.to_numpy()
        if not np.array_equal(starts, weights.offsets.to_numpy()):
            raise DataError("ids and loss weights differ in length", where=str(path), fix="run the data stage again")
        columns = ids.values.to_numpy(), weights.values.to_numpy(), starts, batch["num_supervised"].to_numpy()
        return _Columns(batch["conversation_id"], *columns, batch["source"], batch["media"])

    def example(self, row: int) -> Example:
        place = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return Example(
            input_ids=self.ids[place],
            loss_weights=self.weights[place],
            conversation_id=self.names[row].as_py(),
            source=self.sources[row].as_py(),
            media=media_from_text(self.media[row].as_py()),
        )


def media_text(media: Sequence[Medium]) -> str:
    """An example's media as its column holds them."""
    return _JSON.encode([asdict(medium) for medium in media]) if media else ""


def media_from_text(text: str) -> tuple[Medium, ...]:
    """What `media_text` wrote."""
    return tuple(Medium(**medium) for medium in json.loads(text)) if text else ()


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except FileNotFoundError:
        raise DataError("no conversations here", where=str(path), fix="run the data stage") from None


def _list_column(arrays: list[np.ndarray], dtype: type[np.generic]) -> pa.Array:
    starts = np.concatenate(([0], np.cumsum([len(array) for array in arrays]))).astype(np.int32)
    values = np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(values))


def conversation_line(conversation: Conversation) -> bytes:
    """The conversation's line in a split file, with its line end. Raises DataError for values JSON does not hold."""
    source = conversation.source
    try:
        messages = ", ".join(map(_message_line, conversation.messages))
        tools = _JSON.encode(list(conversation.tools)) if conversation.tools else "[]"
        slices = _JSON.encode(conversation.slices) if conversation.slices else "{}"
        tests = f'"tests": {_JSON.encode(conversation.tests)}, ' if conversation.tests is not None else ""
        text = (
            f'{{"id": {quoted(conversation.id)}, "messages": [{messages}], "tools": {tools}, "slices": {slices}, '
            f'"weight": {_JSON.encode(conversation.weight)}, {tests}'
            f'"source": {{"path": {quoted(source.path)}, "line": {source.line}}}}}'
        )
    except (ValueError, TypeError) as error:
        where = f"{source.path}:{source.line}"
        raise DataError("this row holds a value that JSON has no form for", where=where, expected=str(error)) from None
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: only the escaped form can carry it
        return json.dumps(json.loads(text), ensure_ascii=True).encode() + b"\n"


def _message_line(message: Message) -> str:
    """JSON of `_message_to_json`, for the usual message without a detour: most of the time of a million rows."""
    if message.reasoning is None and message.name is None and message.call_id is None and message.weight is None:
        parts = message.parts
        if len(parts) == 1 and type(part := parts[0]) is TextPart:
            return f'{{"role": "{message.role}", "parts": [{{"type": "text", "text": {quoted(part.text)}}}]}}'
    return _JSON.encode(_message_to_json(message))


def _message_to_json(message: Message) -> dict[str, Any]:
    optional = {
        "reasoning": message.reasoning,
        "name": message.name,
        "call_id": message.call_id,
        "weight": message.weight,
    }
    return {
        "role": message.role,
        "parts": [_part_to_json(part) for part in message.parts],
        **{name: value for name, value in optional.items() if value is not None},
    }


def _part_to_json(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, MediaPart):
        return {"type": part.kind, "path": part.path, **({"sha256": part.sha256} if part.sha256 else {})}
    return {
        "type": "call",
        "name": part.name,
        "arguments": part.arguments,
        **({"call_id": part.call_id} if part.call_id is not None else {}),
    }


def conversation_from_record(row: dict[str, Any]) -> Conversation:
    """A line of a split file, parsed."""
    return Conversation(
        id=row["id"],
        messages=tuple(
            Message(**{**message, "parts": tuple(map(_part_from_json, message["parts"]))})
            for message in row["messages"]
        ),
        tools=tuple(row["tools"]),
        slices=row["slices"],
        weight=row["weight"],
        tests=row.get("tests"),
        source=SourceRef(path=row["source"]["path"], line=row["source"]["line"]),
    )


def _part_from_json(row: dict[str, Any]) -> Part:
    match row["type"]:
        case "text":
            return TextPart(text=row["text"])
        case "image" | "audio":
            return MediaPart(kind=row["type"], path=row["path"], sha256=row.get("sha256", ""))
        case "call":
            return ToolCall(name=row["name"], arguments=row["arguments"], call_id=row.get("call_id"))
    raise ValueError(f"unknown part {row['type']!r}")
