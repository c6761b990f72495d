"""Conversations and examples on disk: JSONL for people, Parquet for training.

Bytes are a function of the records alone, so that equal data has an equal hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from halo_forge.chat.records import Conversation, Example, MediaPart, Message, Part, SourceRef, TextPart, ToolCall
from halo_forge.errors import DataError
from halo_forge.runs import sha256_bytes, write_atomic

_EXAMPLE_SCHEMA = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
    ]
)


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> str:
    """One line a conversation; returns the sha256 of the file. Raises DataError for values JSON does not hold."""
    data = b"".join(_conversation_line(conversation) for conversation in conversations)
    write_atomic(path, data)
    return sha256_bytes(data)


def read_conversations(path: Path, limit: int | None = None) -> list[Conversation]:
    """What `write_conversations` wrote, field by field; at most the first `limit`. Raises DataError that names file
    and line."""
    conversations: list[Conversation] = []
    for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1):
        if limit is not None and len(conversations) >= limit:
            break
        if not line:
            continue
        try:
            conversations.append(_conversation_from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                "this line is not a conversation record",
                where=f"{path}:{number}",
                expected=f"what the data stage writes ({type(error).__name__}: {error})",
                fix="run the data stage again",
            ) from None
    return conversations


def write_examples(path: Path, examples: Iterable[Example]) -> str:
    """A Parquet file with a row an example, in order; returns the sha256 of the file."""
    rows = list(examples)
    columns = [
        pa.array([example.conversation_id for example in rows], pa.string()),
        _list_column([example.input_ids for example in rows], np.int32),
        _list_column([example.loss_weights for example in rows], np.float32),
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(columns, schema=_EXAMPLE_SCHEMA), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    write_atomic(path, data)
    return sha256_bytes(data)


def read_examples(path: Path) -> ExampleStore:
    """Opens the file and checks its columns; tokens are read when first needed. Raises DataError."""
    try:
        schema, num_rows = pq.read_schema(path), pq.read_metadata(path).num_rows
    except FileNotFoundError:
        raise DataError("no examples here", where=str(path), fix="run the data stage") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError("this is not a Parquet file", where=str(path), expected=str(error)) from None
    if not schema.equals(_EXAMPLE_SCHEMA):
        raise DataError(
            "this file does not hold examples",
            where=str(path),
            expected=", ".join(f"{field.name}: {field.type}" for field in _EXAMPLE_SCHEMA),
            fix="run the data stage again",
        )
    return ExampleStore(path, num_rows)


class ExampleStore:
    """Examples of one file by number. Arrays handed out are views of one buffer: do not write to them.

    lengths         int64 [num_examples], tokens
    num_supervised  int64 [num_examples], tokens with a loss weight above 0
    """

    def __init__(self, path: Path, num_examples: int) -> None:
        self.path = path
        self._num_examples = num_examples

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        ids, weights, starts, names = self._columns
        place = slice(int(starts[index]), int(starts[index + 1]))
        return Example(input_ids=ids[place], loss_weights=weights[place], conversation_id=names[index])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self._columns[2])

    @cached_property
    def num_supervised(self) -> np.ndarray:
        _, weights, starts, _ = self._columns
        trained = np.concatenate(([0], np.cumsum(weights > 0)))
        return trained[starts[1:]] - trained[starts[:-1]]

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        table = pq.read_table(self.path, memory_map=True)
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in table["input_ids"].chunks]
        starts = np.concatenate(([0], np.cumsum(np.concatenate(lengths)))) if lengths else np.zeros(1, np.int64)
        ids, weights = (_flat(table[name]) for name in ("input_ids", "loss_weights"))
        if len(ids) != starts[-1] or len(weights) != starts[-1]:
            raise DataError(
                "ids and loss weights differ in length", where=str(self.path), fix="run the data stage again"
            )
        return ids, weights, starts.astype(np.int64), table["conversation_id"].to_pylist()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError("no conversations here", where=str(path), fix="run the data stage") from None


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    # A copy on purpose: Arrow's memory is read-only, and torch refuses to share such arrays without a warning.
    chunks = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate(chunks) if chunks else np.zeros(0, column.type.value_type.to_pandas_dtype())


def _list_column(arrays: list[np.ndarray], dtype: type[np.generic]) -> pa.Array:
    starts = np.concatenate(([0], np.cumsum([len(array) for array in arrays]))).astype(np.int32)
    values = np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(values))


def _conversation_line(conversation: Conversation) -> bytes:
    row = {
        "id": conversation.id,
        "messages": [_message_to_json(message) for message in conversation.messages],
        "tools": list(conversation.tools),
        "slices": conversation.slices,
        "weight": conversation.weight,
        "source": {"path": conversation.source.path, "line": conversation.source.line},
    }
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:
        where = f"{conversation.source.path}:{conversation.source.line}"
        raise DataError("this row holds a value that JSON has no form for", where=where, expected=str(error)) from None
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: only the escaped form can carry it
        return json.dumps(row, ensure_ascii=True).encode() + b"\n"


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
        return {"type": part.kind, "path": part.path}
    return {
        "type": "call",
        "name": part.name,
        "arguments": part.arguments,
        **({"call_id": part.call_id} if part.call_id is not None else {}),
    }


def _conversation_from_json(row: dict[str, Any]) -> Conversation:
    return Conversation(
        id=row["id"],
        messages=tuple(
            Message(**{**message, "parts": tuple(map(_part_from_json, message["parts"]))})
            for message in row["messages"]
        ),
        tools=tuple(row["tools"]),
        slices=row["slices"],
        weight=row["weight"],
        source=SourceRef(path=row["source"]["path"], line=row["source"]["line"]),
    )


def _part_from_json(row: dict[str, Any]) -> Part:
    match row["type"]:
        case "text":
            return TextPart(text=row["text"])
        case "image" | "audio":
            return MediaPart(kind=row["type"], path=row["path"])
        case "call":
            return ToolCall(name=row["name"], arguments=row["arguments"], call_id=row.get("call_id"))
    raise ValueError(f"unknown part {row['type']!r}")
