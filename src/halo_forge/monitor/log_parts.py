"""A log and its rotated parts: which file is which, however they were renamed, copied, cut or compressed meanwhile.

A part is known by what was read of it: the hash of its first bytes and of the last bytes before the place where reading
stopped. Names and inodes only help to find it; neither is trusted (an inode is given to the next file, L05).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from halo_forge.monitor.log_lines import UNREADABLE, open_log

MARK_BYTES = 1024
MIN_PART_BYTES = 32
"""A rotated file that is smaller is waited for: it may be a copy that has only begun."""
FORGET_AFTER_SCANS = 10
MAX_LISTINGS = 100
MOVED = "it was moved while it was looked at"
_ROTATED = re.compile(r"[._-](?:\d[\dT:._-]*|old)(?:\.gz)?")


@dataclass(slots=True)
class Part:
    """What is known of one file. `head` is the sha256 of its first `head_bytes`, `tail` of the last MARK_BYTES before
    `offset` (fewer at the beginning). An `is_foreign` part was there before the monitor and is never read."""

    device: int
    inode: int
    head: str = ""
    head_bytes: int = 0
    tail: str = ""
    offset: int = 0
    num_lines: int = 0
    in_long_line: bool = False
    size_bytes: int = 0  # when last seen; of a compressed file, compressed
    mtime_ns: int = 0
    is_compressed: bool = False
    is_foreign: bool = False
    num_missing: int = 0
    is_unfinished: bool = False  # bytes were seen that have not been read

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file as it was listed. Its `head` tells later whether another one has its name and its inode by then."""

    path: Path
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    is_live: bool
    head: bytes

    @property
    def is_gzip(self) -> bool:
        return self.path.name.endswith(".gz") and not self.is_live


@dataclass(frozen=True, slots=True)
class Scan:
    """`found`: parts with their files, to be read in this order. `skipped`: files that were left alone, with the why.
    `lost`: parts whose file is gone with bytes unread. Not `is_settled`: a part was not where it is expected, perhaps
    because of a rotation during this scan; nothing is read before the next one, or lines would be read out of order."""

    found: list[tuple[Part, Candidate]]
    skipped: dict[str, str]
    lost: list[Part]
    is_settled: bool


def candidates(log: Path) -> list[Candidate]:
    """The rotated parts beside a log, oldest first, then the log itself, listed until two listings agree: one that a
    rotation ran through may lack a file that was there all the time."""
    before = _listed(log)
    for _ in range(MAX_LISTINGS):
        files = _listed(log)
        if _is_still(before, files):
            break
        before = files
    return sorted(files.values(), key=_age_of)


def _is_still(before: dict[Path, Candidate], after: dict[Path, Candidate]) -> bool:
    """Whether the same files have the same names. An inode alone says little: the next file may have been given it."""
    return before.keys() == after.keys() and all(
        (before[path].device, before[path].inode) == (file.device, file.inode)
        and _begin_alike(before[path].head, file.head)
        for path, file in after.items()
    )


def _begin_alike(one: bytes, other: bytes) -> bool:
    both = min(len(one), len(other))
    return one[:both] == other[:both]


def _listed(log: Path) -> dict[Path, Candidate]:
    # The log before the listing: a rotation after it is seen by its head, one before it has left a part beside the log.
    live = _as_candidate(log, is_live=True)
    try:
        beside = sorted(os.listdir(log.parent))
    except OSError:
        beside = []
    others = (_as_candidate(log.with_name(name), is_live=False) for name in beside if _is_rotated(name, log))
    return {file.path: file for file in (live, *others) if file}


def _as_candidate(path: Path, *, is_live: bool) -> Candidate | None:
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as handle:
            status = os.fstat(handle.fileno())
            head = handle.read(MARK_BYTES)
    except OSError:
        return None
    return Candidate(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, is_live, head)


def open_candidate(file: Candidate) -> BinaryIO:
    """Its plain bytes. FileNotFoundError where another file has its name by now: rotation does not wait for a scan."""
    handle, _ = open_log(file.path)
    status = os.fstat(handle.fileno())
    if (status.st_dev, status.st_ino) != (file.device, file.inode):
        handle.close()
        raise FileNotFoundError(errno.ENOENT, MOVED, str(file.path))
    return handle


def _age_of(file: Candidate) -> tuple[bool, int, int, str]:
    """Oldest first. Of parts written last in one tick of the clock, prod.jsonl.2 is older than prod.jsonl.1."""
    number = re.search(r"\.(\d{1,4})(?:\.gz)?$", file.path.name)
    return file.is_live, file.mtime_ns, -int(number[1]) if number else 0, file.path.name


def _is_rotated(name: str, log: Path) -> bool:
    """prod.jsonl.1, prod.jsonl.2.gz, prod.jsonl-20260131, and with the ending kept: prod-20260131.jsonl(.gz)."""
    if name.startswith(log.name):
        return _ROTATED.fullmatch(name.removeprefix(log.name)) is not None
    if log.suffix and name.startswith(log.stem):
        rest = name.removeprefix(log.stem)
        ending = ".gz" if rest.endswith(".gz") else ""
        middle = rest.removesuffix(".gz")
        return middle.endswith(log.suffix) and bool(_ROTATED.fullmatch(middle.removesuffix(log.suffix) + ending))
    return False


def scan(log: Path, parts: list[Part], *, is_first: bool) -> Scan:
    """Match the files that are there with the parts that are known; parts of files that are new are added to `parts`.

    is_first  nothing is known yet: rotated files that are there already are history, and stay unread
    """
    files = candidates(log)
    parts[:] = [part for part in parts if part.offset or part.is_foreign]  # of which nothing was read is not known
    matched: dict[int, Candidate] = {}
    free = list(files)
    for same_inode in (True, False):
        for at, part in enumerate(parts):
            if at in matched:
                continue
            for file in free:
                if ((part.device, part.inode) == (file.device, file.inode)) is same_inode and is_same(part, file):
                    matched[at] = file
                    free.remove(file)
                    break
    lost = [part for at, part in enumerate(parts) if at not in matched and not part.is_foreign]
    live = next((file for file in files if file.is_live), None)
    why_not = {file.path.name: _why_not(file, files, live, lost) for file in free}
    skipped = {name: why for name, why in why_not.items() if why}
    # What was compared with the log holds only if the log was not cut in the meantime.
    was_cut = any(file.is_live and not is_same(parts[at], file) for at, file in matched.items())
    is_settled = not was_cut and MOVED not in skipped.values() and all(part.num_missing for part in lost)
    for file in free if is_settled else []:
        if file.path.name in skipped or not file.size_bytes:
            continue
        part = Part(file.device, file.inode)
        if is_first and not file.is_live:
            part.is_foreign = True
            mark_compressed(part, file, file.size_bytes)
            see(part, file)
        matched[len(parts)] = file
        parts.append(part)
    for at, file in matched.items():
        if not file.is_gzip:  # a compressed one is seen when it was read
            see(parts[at], file)
    found = _in_order(parts, matched) if is_settled else []
    return Scan(found, skipped, _age(parts, matched), is_settled)


def _in_order(parts: list[Part], matched: dict[int, Candidate]) -> list[tuple[Part, Candidate]]:
    pairs = [(parts[at], file) for at, file in matched.items() if not parts[at].is_foreign]
    return sorted(pairs, key=lambda pair: _age_of(pair[1]))


def _age(parts: list[Part], matched: dict[int, Candidate]) -> list[Part]:
    """Forget parts whose file has been gone for long; returns those of them that had not been read to their end."""
    gone = []
    for at, part in enumerate(parts):
        part.num_missing = 0 if at in matched else part.num_missing + 1
        if part.num_missing >= FORGET_AFTER_SCANS:
            gone.append(part)
    for part in gone:
        parts.remove(part)
    return [part for part in gone if part.is_unfinished]


def is_same(part: Part, file: Candidate) -> bool:
    """Whether the file is the part, by its bytes."""
    unchanged = (part.device, part.inode, part.size_bytes, part.mtime_ns) == (
        file.device, file.inode, file.size_bytes, file.mtime_ns
    )  # fmt: skip
    if unchanged and not file.is_live:
        return True
    if part.is_foreign and file.is_live:
        return False
    if not file.is_gzip and not part.is_foreign and file.size_bytes < part.offset:
        return False
    try:
        with open_candidate(file) as handle:
            return is_same_bytes(part, handle)
    except (OSError, *UNREADABLE):
        return False


def is_same_bytes(part: Part, handle: BinaryIO) -> bool:
    if _mark(handle, 0, part.head_bytes) != part.head:
        return False
    start = max(0, part.offset - MARK_BYTES)
    return part.is_foreign or not part.tail or _mark(handle, start, part.offset - start) == part.tail


def _why_not(file: Candidate, files: list[Candidate], live: Candidate | None, lost: list[Part]) -> str | None:
    """Why a file that no part matches is not a new one: it repeats what is or was read elsewhere."""
    if file.is_live:
        return None
    if file.is_gzip and any(other.path.name == file.path.name.removesuffix(".gz") for other in files):
        return "the file that it is made of is still there"
    try:
        with open_candidate(file) as handle:
            head = handle.read(64 * MARK_BYTES)
        if len(head) < MIN_PART_BYTES:
            return "hardly begun"
        if live is not None and head == _first_bytes(live.path, len(head)):
            return "a copy of the log itself"
    except FileNotFoundError:
        return MOVED
    except (OSError, *UNREADABLE) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    marks = {hashlib.sha256(head[: part.head_bytes]).hexdigest() for part in lost if part.head_bytes}
    if any(part.head in marks and part.head_bytes <= len(head) for part in lost):
        return "the beginning of a part whose rest is missing"
    return None


def _first_bytes(path: Path, num: int) -> bytes:
    with open(path, "rb") as handle:
        return handle.read(num)


def _mark(handle: BinaryIO, start: int, num: int) -> str:
    handle.seek(start)
    data = handle.read(num)
    return hashlib.sha256(data).hexdigest() if len(data) == num else "too short"


class Recording:
    """A file that remembers the first and the last MARK_BYTES that were read of it, up to where reading stands. Marks
    are made of these: the file itself may have been copied and cut by the time that its lines are counted. Where it
    still holds them (`holds`), it was not cut while they were read, and everything read of it belongs together.

    listed_head  first bytes that the file had when it was listed
    """

    def __init__(self, handle: BinaryIO, listed_head: bytes = b"") -> None:
        self.handle, self.listed_head = handle, listed_head
        self.head = self.tail = b""

    def seek(self, offset: int) -> None:
        descriptor = self.handle.fileno()
        self.head = os.pread(descriptor, min(MARK_BYTES, offset), 0)
        start = max(0, offset - MARK_BYTES)
        self.tail = os.pread(descriptor, offset - start, start)
        self.handle.seek(offset)

    def readline(self, limit: int) -> bytes:
        data = self.handle.readline(limit)
        if len(self.head) < MARK_BYTES:
            self.head = (self.head + data)[:MARK_BYTES]
        self.tail = (self.tail + data[-MARK_BYTES:])[-MARK_BYTES:]
        return data

    def holds(self, marks: tuple[bytes, bytes], offset: int) -> bool:
        """Whether the file has these first bytes and these last ones before `offset`, now and when it was listed."""
        head, tail = marks
        if not _begin_alike(head, self.listed_head):
            return False
        descriptor = self.handle.fileno()
        return (
            os.pread(descriptor, len(head), 0) == head and os.pread(descriptor, len(tail), offset - len(tail)) == tail
        )


def mark(part: Part, head: bytes, tail: bytes, offset: int) -> None:
    """Take down how a plain file can be known again: by the first and the last bytes that were read up to `offset`."""
    if part.head_bytes < MARK_BYTES:
        head = head[:offset]
        part.head, part.head_bytes = hashlib.sha256(head).hexdigest(), len(head)
    part.tail = hashlib.sha256(tail).hexdigest()
    part.offset = offset


def mark_compressed(part: Part, file: Candidate, offset: int) -> None:
    """The same for a compressed file that was read to its end; its tail is not looked at again."""
    with open_candidate(file) as handle:
        head = handle.read(MARK_BYTES)
    part.head, part.head_bytes, part.tail, part.offset = hashlib.sha256(head).hexdigest(), len(head), "", offset


def see(part: Part, file: Candidate) -> None:
    part.device, part.inode = file.device, file.inode
    part.size_bytes, part.mtime_ns = file.size_bytes, file.mtime_ns
    part.is_compressed = file.is_gzip
    part.is_unfinished = not file.is_gzip and file.size_bytes > part.offset and not part.is_foreign


def with_data(found: list[tuple[Part, Candidate]]) -> Iterator[tuple[Part, Candidate]]:
    """Parts whose file has something that was not read. A compressed file does not grow: it is read once."""
    for part, file in found:
        if file.is_gzip:
            if not (part.is_compressed and (part.inode, part.size_bytes) == (file.inode, file.size_bytes)):
                yield part, file
        elif file.size_bytes > part.offset:
            yield part, file
