"""Lines out of a growing file: whole lines only, from an offset, in bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from halo_forge.monitor.production_log import MAX_LINE_BYTES

GZIP_MAGIC = b"\x1f\x8b"
UNREADABLE = (EOFError, gzip.BadGzipFile, zlib.error)
"""A compressed file that is damaged, or that somebody is still writing."""


@dataclass(frozen=True, slots=True)
class Line:
    """`data` is None for a line that is too long to be read. `end` is the offset after it, `is_torn` that no line feed
    has been written yet; `opens_long` that the rest of a long line is still to be passed over."""

    data: bytes | None
    end: int
    is_torn: bool = False
    opens_long: bool = False


def open_log(path: Path) -> tuple[BinaryIO, bool]:
    """(file of the plain bytes, whether it is compressed)."""
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    magic = file.read(2)
    file.seek(0)
    if magic != GZIP_MAGIC:
        return file, False
    file.close()
    return cast(BinaryIO, gzip.open(path, "rb")), True


class Readable(Protocol):
    def seek(self, offset: int, /) -> object: ...
    def readline(self, limit: int, /) -> bytes: ...


def read_lines(
    file: Readable, offset: int = 0, *, in_long_line: bool = False, max_bytes: int | None = None
) -> Iterator[Line]:
    """Lines from `offset` on. The last one may be torn; nothing is read behind it. Zero bytes before a line are passed
    over: a writer that kept its place while the file was cut to nothing leaves a hole of them.

    in_long_line  the offset is inside a line that was already told to be too long
    """
    limit = max_bytes or MAX_LINE_BYTES
    file.seek(offset)
    if in_long_line:
        rest, offset, closed = _pass_over(file, offset, limit)
        if not closed:
            if rest:
                yield Line(b"", offset, opens_long=True)
            return
        yield Line(b"", offset)
    while data := file.readline(limit + 1):
        offset += len(data)
        kept = data.lstrip(b"\0")
        while len(kept) < len(data) and not kept.endswith(b"\n") and (more := file.readline(limit + 1 - len(kept))):
            offset += len(more)
            data, kept = kept + more, (kept + more).lstrip(b"\0")
        if len(kept) > limit:
            closed = kept.endswith(b"\n")
            if not closed:
                _, offset, closed = _pass_over(file, offset, limit)
            yield Line(None, offset, opens_long=not closed)
        else:
            yield Line(kept, offset, is_torn=not kept.endswith(b"\n"))


def _pass_over(file: Readable, offset: int, limit: int) -> tuple[bool, int, bool]:
    """(whether anything was read, offset, whether the line's end was found)."""
    some = False
    while data := file.readline(limit):
        some, offset = True, offset + len(data)
        if data.endswith(b"\n"):
            return True, offset, True
    return some, offset, False
