"""Every error a user can meet: what happened, where, what was expected, and the command that mends it.

    HaloForgeError            exit code
    ├── UsageError            2   a flag or an argument does not fit
    ├── ConfigError           2   the configuration is wrong; carries every problem found, not only the first
    ├── ModelNotFound         2   no such model here, or it is not in the cache and the Hub is off
    ├── RunConflict           2   the output directory belongs to another run or another process
    ├── DataError             3   a file or a row cannot be used
    ├── CheckpointError       1   no checkpoint verifies
    ├── TrainingError         1   the run cannot go on (non-finite loss, untrainable batch, ...)
    ├── OutOfMemory           6   the machine's memory is spent
    └── Interrupted           130 stopped by a signal; the same command resumes

Exit codes 4 (gate failed) and 5 (evidence insufficient) are verdicts, not errors: see `ExitCode`.
The command line prints these without a traceback; `HALO_FORGE_DEBUG=1` shows one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


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
