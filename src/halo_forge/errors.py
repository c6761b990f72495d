"""Every error a user can meet: what happened, where, what was expected, and the command that mends it.

    HaloForgeError            exit code
    ├── UsageError            2   a flag or an argument does not fit
    ├── ConfigError           2   the configuration is wrong; carries every problem found, not only the first
    ├── ModelNotFound         2   no such model here, or it is not in the cache and the Hub is off
    ├── RunConflict           2   the output directory belongs to another run or another process
    ├── DataError             3   a file or a row cannot be used
    ├── CheckpointError       1   no checkpoint verifies
    ├── TrainingError         1   the run cannot go on (non-finite loss, untrainable batch, ...)
    ├── StorageError          1   the disk is full, read-only, broken; open files have run out
    ├── OutOfMemory           6   the machine's memory is spent
    └── Interrupted           130 stopped by a signal; the same command resumes

Exit codes 4 (gate failed) and 5 (evidence insufficient) are verdicts, not errors: see `ExitCode`.
The command line prints these without a traceback; `HALO_FORGE_DEBUG=1` shows one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    OK = 0
    RUN_FAILED = 1
    USAGE = 2
    DATA = 3
    GATE_FAILED = 4
    EVIDENCE_INSUFFICIENT = 5
    OUT_OF_MEMORY = 6
    INTERRUPTED = 130


class HaloForgeError(Exception):
    """A failure that is told in words.

    what   one sentence: what was found
    where  file:line, config key or path
    expected  what would have been right
    fix    a command or an edit that mends it
    """

    exit_code = ExitCode.RUN_FAILED

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.fix = what, where, expected, fix
        super().__init__(self.render())

    def __reduce__(self) -> tuple[object, ...]:
        """Errors of worker processes come back whole."""
        return _restored, (type(self), dict(self.__dict__), str(self))

    def render(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  --> {self.where}")
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.fix:
            lines.append(f"  try: {self.fix}")
        return "\n".join(lines)


def _restored(kind: type[HaloForgeError], fields: dict[str, object], text: str) -> HaloForgeError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.__dict__.update(fields)
    return error


class UsageError(HaloForgeError):
    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigProblem:
    """One thing wrong in a configuration. `snippet` shows the line with a caret under the column."""

    message: str
    where: str  # file:line:column, or the flag that set the value
    snippet: str | None = None
    suggestion: str | None = None

    def render(self) -> str:
        lines = [self.message, f"  --> {self.where}"]
        if self.snippet:
            lines.extend(f"  {line}" for line in self.snippet.splitlines())
        if self.suggestion:
            lines.append(f"  try: {self.suggestion}")
        return "\n".join(lines)


class ConfigError(HaloForgeError):
    exit_code = ExitCode.USAGE

    def __init__(self, problems: list[ConfigProblem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration\n" + "\n".join(problem.render() for problem in problems))


class ModelNotFound(HaloForgeError):
    exit_code = ExitCode.USAGE


class RunConflict(HaloForgeError):
    exit_code = ExitCode.USAGE


class DataError(HaloForgeError):
    exit_code = ExitCode.DATA


class RowError(DataError):
    """One row cannot become a training example. Caught by the data stage, which writes it to the ledger.

    code   stable identifier, for instance `no_assistant_turn`
    """

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class CheckpointError(HaloForgeError):
    pass


class TrainingError(HaloForgeError):
    pass


class OutOfMemory(HaloForgeError):
    exit_code = ExitCode.OUT_OF_MEMORY


class Interrupted(HaloForgeError):
    exit_code = ExitCode.INTERRUPTED


_GOES_ON = "the same command then goes on from the last checkpoint"
STORAGE = {
    errno.ENOSPC: ("no space is left on the disk", f"free some space; {_GOES_ON}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some space or ask for more; {_GOES_ON}"),
    errno.EFBIG: ("a file would be larger than is allowed", f"raise `ulimit -f`; {_GOES_ON}"),
    errno.EROFS: (
        "the disk is read-only",
        f"mount it for writing, or give another directory with --output; {_GOES_ON}",
    ),
    errno.EACCES: ("permission denied", f"make it yours, or give another directory with --output; {_GOES_ON}"),
    errno.EPERM: ("not permitted", f"make it yours, or give another directory with --output; {_GOES_ON}"),
    errno.EIO: ("the disk reports an input/output error", f"look at the disk (`dmesg`); {_GOES_ON}"),
    errno.EMFILE: ("this process has too many open files", f"raise `ulimit -n`; {_GOES_ON}"),
    errno.ENFILE: ("the machine has too many open files", f"close some; {_GOES_ON}"),
    errno.ESTALE: ("the network file system lost this file", f"mount it again; {_GOES_ON}"),
}


class StorageError(HaloForgeError):
    pass


def storage_error(error: OSError, place: Path | None = None) -> StorageError | None:
    """The same in words, or None where it is not the disk's. `place` is where to look when the error does not say."""
    if error.errno not in STORAGE:
        return None
    what, fix = STORAGE[error.errno]
    where = error.filename if error.filename is not None else place
    return StorageError(what, where=None if where is None else os.fsdecode(where), fix=fix)


@contextmanager
def storage_in_words(place: Path) -> Iterator[None]:
    """Inside this block an error of the disk is a StorageError that names the file, or else `place`."""
    try:
        yield
    except OSError as error:
        told = storage_error(error, place)
        if told is None:
            raise
        raise told from None
