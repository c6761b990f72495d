"""The rows of a file in batches that go to worker processes: lines that nobody has parsed yet, or rows.

Whoever reads lines only looks for their ends, a microsecond a row, so that one process keeps many workers busy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from halo_forge.data.files.compressed import Peekable
from halo_forge.data.files.json_rows import line_row, too_long
from halo_forge.data.files.rows import EXCERPT_SOURCE_CHARS, MAX_ROW_CHARS, Row, Say

ROWS_PER_BATCH = 1000
MAX_BATCH_BYTES = 8 * 2**20
"""A batch of long rows ends before its number of rows, so that a few batches in flight stay small."""
BLOCK_BYTES = 2**18
MAX_LINE_BYTES = MAX_ROW_CHARS


@dataclass(frozen=True, slots=True, kw_only=True)
class RawBatch:
    """Consecutive rows of one file.

    kind    lines: `data` holds whole lines of JSONL (UTF-8 as it stands in the file, line ends as \\n), the first of
            which is line `first_line`; rows: `rows` holds what a reader has parsed
    path    the file as reports call it
    """

    kind: Literal["lines", "rows"]
    path: str
    first_line: int = 1
    data: bytes = b""
    rows: tuple[Row, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the batch; blank lines and a last line without an end count as one."""
        return len(self.rows) or self.data.count(b"\n") + (not self.data.endswith(b"\n"))

    @property
    def num_bytes(self) -> int:
        return len(self.data) or sum(_size(row.value) for row in self.rows)


def rows_of(batch: RawBatch) -> tuple[list[Row], list[str]]:
    """(the rows of a batch, notes about it). Blank lines are passed over; `read_batches` tells their number."""
    if batch.kind == "rows":
        return list(batch.rows), []
    lines = batch.data.split(b"\n")
    ended = not lines[-1]
    if ended:
        lines.pop()
    rows: list[Row] = []
    for number, line in enumerate(lines, start=batch.first_line):
        fixes: tuple[str, ...] = ()
        if number == 1 and line.startswith(b"\xef\xbb\xbf"):
            line, fixes = line[3:], ("bom_removed",)
        if not line.strip(b" \t"):
            continue
        if len(line) > MAX_LINE_BYTES:
            rows.append(_long_row(batch.path, number, line))
            continue
        text = line.decode("utf-8", "surrogateescape")
        is_last = not ended and number == batch.first_line + len(lines) - 1
        rows.append(line_row(batch.path, number, text, fixes, ended=not is_last))
    return rows, []


def _long_row(path: str, number: int, line: bytes) -> Row:
    raw = line[: 4 * EXCERPT_SOURCE_CHARS].decode("utf-8", "replace")[:EXCERPT_SOURCE_CHARS]
    return Row(path=path, line=number, problem=too_long(), raw=raw)


def line_batches(path: str, file: Peekable, say: Say, rows_per_batch: int = ROWS_PER_BATCH) -> Iterator[RawBatch]:
    """The lines of a JSONL file, at most `rows_per_batch` and about 8 MiB a batch, blank ones among them.

    Lines end with \\n, \\r\\n or \\r. What is longer than 16 MiB is a row of its own that says so; it is never held.
    """
    num_blank, number = 0, 1
    held: list[bytes] = []
    num_lines = num_bytes = 0
    for block in _blocks(file):
        if num_lines and (block is None or num_bytes >= MAX_BATCH_BYTES):
            yield RawBatch(kind="lines", path=path, first_line=number, data=b"".join(held))
            number, held, num_lines, num_bytes = number + num_lines, [], 0, 0
        if block is None:
            continue
        if isinstance(block, _Endless):
            yield RawBatch(kind="rows", path=path, rows=(_long_row(path, number, block.head),))
            number += 1
            continue
        num_blank += _num_blank(block)
        for piece, count in _pieces(block, rows_per_batch, num_lines):
            held.append(piece)
            num_lines, num_bytes = num_lines + count, num_bytes + len(piece)
            if num_lines >= rows_per_batch:
                yield RawBatch(kind="lines", path=path, first_line=number, data=b"".join(held))
                number, held, num_lines, num_bytes = number + num_lines, [], 0, 0
    if num_lines:
        yield RawBatch(kind="lines", path=path, first_line=number, data=b"".join(held))
    if num_blank:
        say(f"{path}: passed over {num_blank} blank line{'s' if num_blank > 1 else ''}")


@dataclass(frozen=True, slots=True)
class _Endless:
    """A line that is longer than MAX_LINE_BYTES; only its beginning is kept."""

    head: bytes


def _blocks(file: Peekable) -> Iterator[bytes | _Endless | None]:
    """Whole lines, block after block; None before a line that is too long and at the end of all."""
    pending: list[bytes] = []  # joined once: to add block after block to 16 MiB would copy half a gigabyte
    num_pending, ended = 0, False
    while not ended:
        block = file.read(BLOCK_BYTES)
        if block.endswith(b"\r"):
            block += file.read(1)  # or \r\n would be two ends
        ended = not block
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*pending, block[:cut]])
            pending, num_pending = [block[cut:]], len(block) - cut
        elif num_pending + len(block) > MAX_LINE_BYTES:
            head = b"".join(pending)[: 4 * EXCERPT_SOURCE_CHARS]
            rest, ended = _rest_of_endless(file)
            pending, num_pending = [rest], len(rest)
            yield None
            yield _Endless(head)
        else:
            pending.append(block)
            num_pending += len(block)
    if num_pending:
        yield b"".join(pending)
    yield None


def _rest_of_endless(file: Peekable) -> tuple[bytes, bool]:
    """(what stands after the line's end, whether the file ended)."""
    while block := file.read(BLOCK_BYTES):
        if block.endswith(b"\r"):
            block += file.read(1)
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block
        cut = block.find(b"\n") + 1
        if cut:
            return block[cut:], False
    return b"", True


def _num_blank(block: bytes) -> int:
    if block[:1] not in b"\n \t" and not any(start in block for start in (b"\n\n", b"\n ", b"\n\t")):
        return 0
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return sum(not line.strip(b" \t") for line in lines)


def _pieces(block: bytes, rows_per_batch: int, num_held: int) -> Iterator[tuple[bytes, int]]:
    """(whole lines, how many), cut where a batch is full; the last line of a file may have no end."""
    start, room = 0, rows_per_batch - num_held
    left = block.count(b"\n") + (not block.endswith(b"\n"))
    while left > room:
        end = start
        for _ in range(room):
            end = block.index(b"\n", end) + 1
        yield block[start:end], room
        start, left, room = end, left - room, rows_per_batch
    if left:
        yield block[start:], left


def row_batches(path: str, rows: Iterable[Row], rows_per_batch: int = ROWS_PER_BATCH) -> Iterator[RawBatch]:
    """Rows of any reader in batches of at most `rows_per_batch` and about 8 MiB."""
    held: list[Row] = []
    size = 0
    for row in rows:
        held.append(row)
        size += _size(row.value)
        if len(held) == rows_per_batch or size > MAX_BATCH_BYTES:
            yield RawBatch(kind="rows", path=path, rows=tuple(held))
            held, size = [], 0
    if held:
        yield RawBatch(kind="rows", path=path, rows=tuple(held))


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return 8
