"""Standard input as a file: kept under its content's hash, so that a run can read it as often as it needs to."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from halo_forge.errors import DataError
from halo_forge.runs import cache_directory

STDIN = "-"
MAX_STDIN_BYTES = 16 * 2**30
KEPT_S = 7 * 24 * 3600
BLOCK_BYTES = 2**20


def spooled_stdin(stream: BinaryIO | None = None, max_bytes: int = MAX_STDIN_BYTES) -> Path:
    """A file with all that standard input holds, below the cache directory; the same bytes give the same file.

    Raises DataError where nothing is piped in or it is larger than `max_bytes`. Files of former runs go after a week.
    """
    if stream is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise DataError(
                "nothing is piped into standard input", where="stdin", expected="rows: halo-forge data check - < FILE"
            )
        stream = sys.stdin.buffer
    directory = cache_directory() / "stdin"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _forget_old(directory)
        return _spooled(stream, directory, max_bytes)
    except OSError as error:
        raise DataError(
            f"standard input cannot be kept: {error.strerror or error}",
            where=str(directory),
            fix="point HALO_FORGE_CACHE at a directory with room, or write the rows to a file",
        ) from None


def _spooled(stream: BinaryIO, directory: Path, max_bytes: int) -> Path:
    digest, size = hashlib.sha256(), 0
    descriptor, staging = tempfile.mkstemp(prefix=".", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            while block := stream.read(BLOCK_BYTES):
                size += len(block)
                if size > max_bytes:
                    raise DataError(
                        f"standard input holds more than {max_bytes / 2**30:g} GiB",
                        where="stdin",
                        fix="write the rows to a file and name it",
                    )
                digest.update(block)
                file.write(block)
        path = directory / f"stdin-{digest.hexdigest()}"
        os.replace(staging, path)
        return path
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise


def _forget_old(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_file() and time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)
