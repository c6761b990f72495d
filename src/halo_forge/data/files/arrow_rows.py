"""Rows of Parquet and Arrow files.

Their columns are typed, so that a struct has every field that any row has: a tool call without the argument `unit`
comes back with `unit: null`. Within tools and tool calls such nulls are taken as absent, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halo_forge.data.files.compressed import FREE_BYTES, MAX_RATIO
from halo_forge.data.files.rows import Row, Say, checked_row
from halo_forge.errors import DataError

BATCH_ROWS = 256
SUSPICIOUS_RATIO = 20
MAX_EXPANDED_BYTES = 256 * 2**20
TOOL_KEYS = frozenset({"tools", "tool_calls", "functions", "function_call"})
LIST_KEYS = frozenset({"messages", "conversations", "conversation", "items", "prompt", "completion", "chosen"})


def parquet_rows(path: str, file: Path, say: Say) -> Iterator[Row]:
    """One row per record; `line` is the row's number. Raises DataError where the file is damaged or a bomb."""
    import pyarrow.parquet

    with _told("Parquet", path), pyarrow.parquet.ParquetFile(file) as table:
        batch_rows = _batch_rows(path, file.stat().st_size, table.metadata)
        yield from _batch_values(path, table.iter_batches(batch_size=batch_rows), say)


def arrow_rows(path: str, file: Path, say: Say) -> Iterator[Row]:
    """One row per record of an Arrow file, random access or stream (as datasets' save_to_disk writes it)."""
    import pyarrow
    import pyarrow.ipc

    with _told("Arrow", path), open(file, "rb") as plain:
        random_access = plain.read(6) == b"ARROW1"
        with pyarrow.memory_map(str(file)) if random_access else pyarrow.OSFile(str(file)) as source:
            yield from _batch_values(path, _sound_batches(source, random_access), say)


def _sound_batches(source: Any, random_access: bool) -> Iterator[Any]:
    import pyarrow.ipc

    if random_access:
        table = pyarrow.ipc.open_file(source)
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        batches = iter(pyarrow.ipc.open_stream(source))
    for batch in batches:
        batch.validate(full=True)  # offsets of a hostile file lead out of its buffers
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


@contextmanager
def _told(kind: str, path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        expected = "the bytes PAR1 at its start and end" if kind == "Parquet" else "an Arrow IPC file or stream"
        raise DataError(
            f"the {kind} file cannot be read: {reason}", where=path, expected=f"a whole {kind} file: {expected}",
            fix="download or write it again",
        ) from None  # fmt: skip


def _batch_rows(path: str, num_file_bytes: int, metadata: Any) -> int:
    """Rows to read at once: few where a small file repeats long values. Raises DataError for a bomb."""
    expanded, batch_rows = 0, BATCH_ROWS
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            num_bytes = chunk.total_uncompressed_size
            expanded += num_bytes
            if num_bytes > SUSPICIOUS_RATIO * max(chunk.total_compressed_size, 1) and num_bytes > 2**20:
                batch_rows = min(batch_rows, max(1, MAX_EXPANDED_BYTES // num_bytes))
    if expanded > max(FREE_BYTES, MAX_RATIO * num_file_bytes):
        raise DataError(
            f"this Parquet file expands to more than {MAX_RATIO} times its size",
            where=path,
            fix="write it again without compression if you trust it",
        )
    return batch_rows


def _batch_values(path: str, batches: Iterator[Any], say: Say) -> Iterator[Row]:
    number = 0
    told = False
    for batch in batches:
        names = batch.schema.names
        if len(set(names)) != len(names):
            raise DataError("two columns have the same name", where=path, expected="every column once")
        holds_tools = any(_typed_tools(field) for field in batch.schema)
        for value in batch.to_pylist():
            number += 1
            if holds_tools:
                mended = without_absent(value)
                if mended != value and not told:
                    say(f"{path}: nulls within tools and tool calls are taken as absent; typed columns cannot tell")
                    told = True
                value = mended
            yield checked_row(path, number, value)


def _typed_tools(field: Any) -> bool:
    """Whether tools or tool calls are structs somewhere in this column; as JSON text they lose nothing."""
    return any(name in str(field.type) or field.name == name for name in TOOL_KEYS) and "struct<" in str(field.type)


def without_absent(row: dict[str, Any]) -> dict[str, Any]:
    """The row without null fields inside its tools and tool calls; all other nulls stay."""
    cleaned: dict[str, Any] = {}
    for key, value in row.items():
        if key in TOOL_KEYS:
            cleaned[key] = _pruned(value)
        elif key in LIST_KEYS and isinstance(value, list):
            cleaned[key] = [without_absent(item) if isinstance(item, dict) else item for item in value]
        else:
            cleaned[key] = value
    return cleaned


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(child) for key, child in value.items() if child is not None}
    return [_pruned(child) for child in value] if isinstance(value, list) else value
