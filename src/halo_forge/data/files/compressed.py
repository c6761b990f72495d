"""A file's bytes, unpacked as they are read: gzip, bzip2, xz and zstd, within a ratio that no honest text reaches.

What a file is packed with is told by its first bytes, never by its name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, cast

from halo_forge.data.files.rows import shown_path
from halo_forge.errors import DataError

Packing = Literal["gzip", "bzip2", "xz", "zstd"]

SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")
MAGIC: tuple[tuple[bytes, Packing], ...] = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
)  # fmt: skip
UNPACK = {"gzip": "gunzip -k", "bzip2": "bunzip2 -k", "xz": "unxz -k", "zstd": "unzstd -k"}
MAX_RATIO = 200
FREE_BYTES = 16 * 2**20
"""Expanding to less than this is harmless at any ratio."""
MAX_XZ_MEMORY_BYTES = 256 * 2**20
BUFFER_BYTES = 2**18


class Peekable(Protocol):
    """A buffered stream of bytes, plain or unpacked."""

    def read(self, size: int = -1, /) -> bytes: ...
    def readline(self, size: int | None = -1, /) -> bytes: ...
    def peek(self, size: int = 0, /) -> bytes: ...


class _Pieces(io.RawIOBase):
    """Bytes from a bz2 or lzma decompressor, one stream after another, in pieces of what is asked for."""

    def __init__(self, file: BinaryIO, new_decompressor: Callable[[], Any]) -> None:
        self.file, self.new_decompressor = file, new_decompressor
        self.decompressor = new_decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if self.decompressor.eof:
                data = self.decompressor.unused_data.lstrip(b"\0") or self.file.read(BUFFER_BYTES).lstrip(b"\0")
                if not data:
                    return 0
                self.decompressor = self.new_decompressor()
            elif self.decompressor.needs_input:
                data = self.file.read(BUFFER_BYTES)
                if not data:
                    raise EOFError("it ends in the middle")
            piece = self.decompressor.decompress(data, len(buffer))
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)

    def close(self) -> None:
        self.file.close()
        super().close()


class _Guarded(io.RawIOBase):
    """Unpacked bytes that stop before a bomb fills the machine."""

    def __init__(self, inner: Any, path: Path, packing: Packing) -> None:
        self.inner, self.path, self.packing = inner, path, packing
        self.num_bytes, self.max_bytes = 0, max(FREE_BYTES, MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.inner.read(len(buffer))
        self.num_bytes += len(piece)
        if self.num_bytes > self.max_bytes:
            raise DataError(
                f"this {self.packing} file expands to more than {MAX_RATIO} times its size",
                where=shown_path(self.path),
                fix=f"unpack it yourself if you trust it: {UNPACK[self.packing]} FILE",
            )
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.inner.close()
        super().close()


def packing_of(head: bytes) -> Packing | None:
    return next((packing for magic, packing in MAGIC if head.startswith(magic)), None)


def without_suffix(name: str) -> str:
    """A file's name in lower case, without the ending of its packing."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def _unpacked(path: Path, packing: Packing) -> Any:
    if packing == "gzip":
        return gzip.GzipFile(path, "rb")
    file = open(path, "rb")  # noqa: SIM115 - the stream around it closes it
    if packing == "bzip2":
        return _Pieces(file, bz2.BZ2Decompressor)
    if packing == "xz":
        return _Pieces(file, lambda: lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY_BYTES))
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")


@contextmanager
def opened(path: Path) -> Iterator[Peekable]:
    """The file's bytes, unpacked, as a stream that can be peeked into but not rewound. Whatever reading raises
    becomes a DataError."""
    packing: Packing | None = None
    try:
        with open(path, "rb", buffering=BUFFER_BYTES) as stream:
            plain = cast(Peekable, stream)
            packing = packing_of(plain.peek(8)[:8])
            if packing is None:
                yield plain
                return
        with io.BufferedReader(_Guarded(_unpacked(path, packing), path, packing), BUFFER_BYTES) as file:
            yield cast(Peekable, file)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, packing, error) from None
    except OSError as error:
        if packing and error.errno is None:  # how bz2 and arrow complain about bytes
            raise _damaged(path, packing, error) from None
        raise DataError(f"this file cannot be read: {error.strerror or error}", where=shown_path(path)) from None


def _damaged(path: Path, packing: str | None, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return DataError(f"the {packing} file is damaged: {reason}", where=shown_path(path), fix="download it again")
