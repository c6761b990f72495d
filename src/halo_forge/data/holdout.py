"""How often a holdout was looked at. Every look adapts people and gates to it, so looks are counted, per content.

One file per holdout, `holdouts/<sha256>.jsonl` in the cache directory, one line a use: {"at", "purpose", "run"}. The
count belongs to the rows, not to a run directory: ten runs over one holdout have looked at it ten times.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from halo_forge.errors import DataError
from halo_forge.runs import cache_directory

DIRECTORY = "holdouts"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class HoldoutUses:
    """`num` uses by `runs` different runs; `first` and `last` are ISO times, None without a use. `unreadable` lines
    (a crash in the middle of one) are uses too, of an unknown run, and are counted in `num`."""

    num: int
    runs: int
    first: str | None
    last: str | None
    unreadable: int = 0

    def words(self) -> str:
        """One sentence for reports."""
        if not self.num:
            return "this holdout has not been used yet"
        times = "once" if self.num == 1 else f"{self.num} times"
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        return f"this holdout has been used {times} by {runs}; every look adapts you to it"


def record_use(holdout_sha256: str, purpose: str, run: str, cache_dir: Path | None = None) -> HoldoutUses:
    """Count one look at a holdout, durably, and return all of them with this one.

    purpose  what it was looked at for (`evaluate`)
    run      what identifies the run: the path of its directory

    Several processes may record at once; a line that a crash left torn is closed first. Raises DataError where the
    cache cannot be written, because a look that is not counted is not seen by the next.
    """
    path = _path(holdout_sha256, cache_dir)
    use = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "purpose": purpose, "run": run}
    line = json.dumps(use).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # the look back at the last byte and the write belong together
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line
            while line:
                line = line[os.write(file, line) :]
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise DataError(
            f"this use of the holdout cannot be counted: {error.strerror or error}",
            where=str(path),
            fix="make the cache directory writable, or name another: HALO_FORGE_CACHE=DIRECTORY",
        ) from None
    return uses(holdout_sha256, cache_dir)


def uses(holdout_sha256: str, cache_dir: Path | None = None) -> HoldoutUses:
    """All recorded uses of a holdout. Raises DataError where the record exists and cannot be read."""
    path = _path(holdout_sha256, cache_dir)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return HoldoutUses(0, 0, None, None)
    except OSError as error:
        raise DataError(f"the uses of the holdout cannot be read: {error.strerror or error}", where=str(path)) from None
    times: list[str] = []
    runs: set[str] = set()
    unreadable = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            use = json.loads(line)
            times.append(str(use["at"]))
            runs.add(str(use["run"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            unreadable += 1
    return HoldoutUses(
        num=len(times) + unreadable, runs=len(runs) or (1 if unreadable else 0), first=min(times, default=None),
        last=max(times, default=None), unreadable=unreadable,
    )  # fmt: skip


def _path(holdout_sha256: str, cache_dir: Path | None) -> Path:
    if not _SHA256.match(holdout_sha256):
        raise DataError("this is not the hash of a holdout", where=ascii(holdout_sha256[:80]), expected="a sha256")
    if cache_dir is None:
        cache_dir = cache_directory()
    return cache_dir / DIRECTORY / f"{holdout_sha256}.jsonl"
