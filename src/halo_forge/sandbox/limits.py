"""What sandboxed code may use, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ending = Literal["ended", "timed_out", "output_limit", "disk_limit"]
"""How a process came to its end. `ended` covers its own exit, an error and a limit of the kernel (CPU, memory)."""

PROTECTIONS = (
    "closed_files", "empty_environment", "limits", "identity", "landlock", "seccomp", "wall_time", "output", "disk",
    "group",
)  # fmt: skip
"""Each can be left out by a test that shows what it holds; nothing else may."""


class Unavailable(Exception):
    """Foreign code cannot be run safely here, with the reason. Whatever was to be measured is not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one process. No new process and no thread is ever allowed, so there is no number for them.

    scratch_bytes  of all files in the scratch directory, and max_files of their number: looked at every 10 ms
    output_bytes   of standard output and standard error, each
    """

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    scratch_bytes: int = 8 << 20
    max_files: int = 64
    open_files: int = 32
    output_bytes: int = 64 << 10
    without: frozenset[str] = frozenset()

    def for_child(self) -> dict[str, int]:
        return {
            "cpu_s": self.cpu_s, "memory_bytes": self.memory_bytes, "file_bytes": self.file_bytes,
            "open_files": self.open_files,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of a program. `exit_code` is what the program says of itself (negative: the signal that ended it); it decides
    nothing. Output beyond the limit is not kept."""

    ending: Ending
    exit_code: int
    stdout: bytes
    stderr: bytes
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Of tests. bad_tests: the tests themselves cannot be run, which says nothing about the code."""

    status: Literal["passed", "failed", "timed_out", "limit", "bad_tests"]
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"
