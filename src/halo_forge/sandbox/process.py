"""One locked-down process: started, watched from outside until it ends or breaks a limit, ended with all its kin."""

from __future__ import annotations

import json
import os
import select
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, cast

from halo_forge.sandbox.limits import Ending, Limits, Unavailable

CHILD = Path(__file__).with_name("child.py")
NOBODY = 65534
VERDICT_BYTES = 4096
TICK_S = 0.01
READ_BYTES = 1 << 16
LOCKING_S = 2.0
PYTHON = ("-P", "-s", "-S", "-B", "-X", "utf8")
"""No script directory, no user or site packages, no bytecode written, UTF-8."""
FIXED_HASHES = {"PYTHONHASHSEED": "0"}
"""The one variable that Python is started with (sets are then iterated alike every time); the child clears it."""


@dataclass(slots=True)
class Child:
    """`pidfd` tells when it ends, and the process is reaped only by `_end`: until then its number is nobody else's.
    `locked` has a word in it once every door is closed."""

    process: subprocess.Popen[bytes]
    pidfd: int
    locked: FileIO
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    verdict: bytearray = field(default_factory=bytearray)


@contextmanager
def scratch_directory(limits: Limits) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="halo-forge-sandbox-"))
    try:
        if os.geteuid() == 0 and "identity" not in limits.without:
            os.chown(path, NOBODY, NOBODY)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def unnamed_file(content: bytes) -> Iterator[int]:
    """The descriptor of a file with this content, at its start."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def pipe(held: ExitStack) -> tuple[FileIO, FileIO]:
    """(to read, to write); closed when `held` is left."""
    read, write = (os.fdopen(end, mode, 0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    return cast(FileIO, held.enter_context(read)), cast(FileIO, held.enter_context(write))


def start(
    held: ExitStack, order: Mapping[str, Any], scratch: Path, limits: Limits, stdin: int = subprocess.DEVNULL
) -> Child:
    """A process at work on its order (child.py). `held` ends it when it is left, with everything in its session."""
    locked, tell = pipe(held)
    whole = {
        **order, "limits": limits.for_child(), "scratch": str(scratch), "without": sorted(limits.without),
        "locked": tell.fileno(),
    }  # fmt: skip
    passed = [whole[name] for name in ("calls", "answers", "verdict", "locked") if name in whole]
    environment = FIXED_HASHES if "empty_environment" not in limits.without else {**os.environ, **FIXED_HASHES}
    with unnamed_file(json.dumps(whole).encode()) as written:
        process = subprocess.Popen(
            [sys.executable, *PYTHON, str(CHILD), str(written)], cwd=scratch, env=environment, stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[*passed, written], bufsize=0,
            start_new_session="group" not in limits.without,
        )  # fmt: skip
    tell.close()
    child = Child(process, os.pidfd_open(process.pid), locked)
    held.callback(_end, child, limits)
    return child


def _end(child: Child, limits: Limits) -> None:
    with suppress(ProcessLookupError):
        if "group" in limits.without:
            child.process.kill()
        else:
            os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait()
    os.close(child.pidfd)
    for stream in (child.process.stdout, child.process.stderr):
        if stream is not None:
            stream.close()


def watch(
    children: Sequence[Child], main: Child, scratch: Path, limits: Limits, verdict: FileIO | None = None
) -> Ending:
    """Until `main` ends: gather what all of them print and what comes by the verdict pipe, and hold them to the limits
    that the kernel does not know (time, output, disk)."""
    deadline = time.monotonic() + limits.wall_s if "wall_time" not in limits.without else float("inf")
    with selectors.DefaultSelector() as ready:
        for child in children:
            assert child.process.stdout is not None
            assert child.process.stderr is not None
            ready.register(child.process.stdout, selectors.EVENT_READ, child.stdout)
            ready.register(child.process.stderr, selectors.EVENT_READ, child.stderr)
        if verdict is not None:
            ready.register(verdict, selectors.EVENT_READ, main.verdict)
        ready.register(main.pidfd, selectors.EVENT_READ, None)
        while True:
            events = ready.select(TICK_S)
            has_ended = any(key.data is None for key, _ in events)
            for key, _ in events:
                if key.data is not None and not _take(key, limits, is_last=has_ended):
                    ready.unregister(key.fileobj)
            if "output" not in limits.without and _said_too_much(children, limits):
                return "output_limit"
            if has_ended:
                _require_locked(children)
                return "ended"
            if time.monotonic() > deadline:
                return "timed_out"
            if "disk" not in limits.without and _is_too_full(scratch, limits):
                return "disk_limit"


def _said_too_much(children: Sequence[Child], limits: Limits) -> bool:
    return any(
        max(len(child.stdout), len(child.stderr)) > limits.output_bytes or len(child.verdict) > VERDICT_BYTES
        for child in children
    )


def _require_locked(children: Sequence[Child]) -> None:
    """A process that could not close its doors has run nothing: a fault of the machine, not of the code."""
    for child in children:
        if select.select([child.locked], [], [], LOCKING_S)[0] and not child.locked.read(1):
            reason = bytes(child.stderr).decode(errors="replace").strip().splitlines()
            raise Unavailable(f"a sandboxed process could not be set up: {reason[-1] if reason else 'it ended'}")


def _take(key: selectors.SelectorKey, limits: Limits, *, is_last: bool) -> bool:
    """Move what is there; False at its end. When the process is over, what is left in the pipe is at most 64 KB."""
    data = os.read(key.fd, READ_BYTES)
    room = READ_BYTES if "output" in limits.without else limits.output_bytes + 1 - len(key.data)
    key.data.extend(data[:room])
    return bool(data)


def _is_too_full(scratch: Path, limits: Limits) -> bool:
    num_files = num_bytes = 0
    with os.scandir(scratch) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                num_files, num_bytes = num_files + 1, num_bytes + 512 * entry.stat(follow_symlinks=False).st_blocks
            if num_files > limits.max_files or num_bytes > limits.scratch_bytes:
                return True
    return False
