"""What happened to a model's versions, and which version an alias names: one log and some one-line files.

    <name>/log.jsonl        append-only; each line carries the sha256 of the line before it
    <name>/aliases/<alias>  "v3", replaced by a rename
    <name>/latest           the newest version, for whoever reads today's and older registries alike

The log is written before the aliases: a publisher that is killed in between leaves a last line whose effect is still to
come, and the next writer brings it about. A last line that is torn was never in effect; the next writer removes it and
says so in its own. Versions that no line names (their publisher was killed, or they are older than the log) are added.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from halo_forge.artifacts import Record
from halo_forge.errors import HaloForgeError, UsageError
from halo_forge.publish.manifest import MANIFEST_NAME
from halo_forge.runs import fsync_directory, sha256_bytes, sha256_file, write_atomic

LOG, LOCK, LATEST, ALIASES = "log.jsonl", ".lock", "latest", "aliases"
FIRST = "0" * 64
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,31}")

Action = Literal["publish", "found", "alias", "rollback", "sign", "gc"]


class LogLine(Record):
    """`aliases`: alias -> (version before, version after); None: there was none, or it was taken away.
    `before_sha256`: of the bytes of the line before, zeros in the first."""

    number: int
    at: str
    who: str
    action: Action
    version: int | None = None
    manifest_sha256: str | None = None
    aliases: dict[str, tuple[int | None, int | None]] = Field(default_factory=dict)
    note: str = ""
    before_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """`torn_bytes`: length of an unfinished last line. `problems`: what breaks the chain, one sentence each."""

    lines: tuple[LogLine, ...] = ()
    whole_bytes: int = 0
    torn_bytes: int = 0
    head_sha256: str = FIRST
    problems: tuple[str, ...] = ()

    def aliases(self) -> dict[str, int]:
        """Where every alias points after the last line."""
        after: dict[str, int | None] = {}
        for line in self.lines:
            after |= {alias: change[1] for alias, change in line.aliases.items()}
        return {alias: version for alias, version in after.items() if version is not None}

    def stack(self, alias: str) -> list[int]:
        """The versions that an alias went through, oldest first, without those that were rolled back."""
        versions: list[int] = []
        for line in self.lines:
            after = line.aliases[alias][1] if alias in line.aliases else None
            if after is None:
                continue
            if line.action == "rollback" and after in versions:
                versions = versions[: len(versions) - versions[::-1].index(after)]
            else:
                versions.append(after)
        return versions

    def published(self) -> dict[int, str]:
        """version -> sha256 of its manifest, of every version that a line tells of."""
        told = (line for line in self.lines if line.action in ("publish", "found"))
        return {line.version: line.manifest_sha256 or "" for line in told if line.version is not None}


# ---------------------------------------------------------------------------------------------- reading


def read_log(home: Path) -> Log:
    """Everything up to the last whole line, with the chain checked. No file is an empty log."""
    try:
        data = (home / LOG).read_bytes()
    except FileNotFoundError:
        return Log()
    whole = data[: data.rfind(b"\n") + 1]
    lines, problems, head = [], [], FIRST
    for number, raw in enumerate(whole.splitlines()):
        try:
            line = LogLine.model_validate_json(raw)
        except ValueError:
            problems.append(f"log: line {number + 1} is not a line of this log")
            head = sha256_bytes(raw)
            continue
        if line.before_sha256 != head or line.number != number:
            problems.append(f"log: line {number + 1} does not follow the line before it")
        lines.append(line)
        head = sha256_bytes(raw)
    return Log(
        lines=tuple(lines),
        whole_bytes=len(whole),
        torn_bytes=len(data) - len(whole),
        head_sha256=head,
        problems=tuple(problems),
    )


def require_alias(alias: str) -> str:
    if _ALIAS.fullmatch(alias) is None or _VERSION.fullmatch(alias) or alias == LATEST:
        raise UsageError(
            f"{alias!r} cannot be an alias",
            expected="1 to 32 of a-z 0-9 . _ -, the first a letter; neither a version (v3) nor `latest`",
        )
    return alias


def read_alias(home: Path, alias: str) -> int | None:
    """The version that an alias names, or None. `latest` is one of them."""
    path = home / LATEST if alias == LATEST else home / ALIASES / require_alias(alias)
    with suppress(OSError, UnicodeDecodeError):
        match = _VERSION.fullmatch(path.read_text(encoding="ascii").strip())
        return int(match[1]) if match else None
    return None


def read_aliases(home: Path) -> dict[str, int]:
    names = sorted(path.name for path in (home / ALIASES).glob("*") if _ALIAS.fullmatch(path.name))
    found = {name: read_alias(home, name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def taken_versions(home: Path) -> list[int]:
    if not home.is_dir():
        return []
    matches = (_VERSION.fullmatch(entry.name) for entry in home.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def complete_versions(home: Path) -> list[int]:
    """Numbers of the versions that a reader may use, ascending."""
    return [number for number in taken_versions(home) if (home / f"v{number}" / MANIFEST_NAME).is_file()]


def history_problems(home: Path) -> list[str]:
    """What the log, the aliases and the versions say against each other. Waits for a writer that is at work."""
    with _shared_lock(home):
        log = read_log(home)
        problems = list(log.problems)
        for version, manifest_sha256 in log.published().items():
            path = home / f"v{version}" / MANIFEST_NAME
            if not path.is_file():
                problems.append(f"log: v{version} was published and is not here")
            elif sha256_file(path) != manifest_sha256:
                problems.append(f"log: the manifest of v{version} is not the one that was published")
        logged, found = log.aliases(), read_aliases(home)
        pending = log.lines[-1].aliases if log.lines else {}
        for alias in sorted(logged.keys() | found.keys()):
            told, named = logged.get(alias), found.get(alias)
            if told != named and named != pending.get(alias, (told, None))[0]:
                problems.append(f"alias {alias} names {_words(named)}, the log says {_words(told)}")
            elif named is not None and named not in complete_versions(home):
                problems.append(f"alias {alias} names v{named}, which is not here")
    return problems


def _words(version: int | None) -> str:
    return "nothing" if version is None else f"v{version}"


@contextmanager
def _shared_lock(home: Path) -> Iterator[None]:
    try:
        descriptor = os.open(home / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody ever wrote a log here, or not for us to read
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------- writing


@dataclass(slots=True)
class Writer:
    """The one who holds the lock. `log` is what is on disk."""

    home: Path
    log: Log
    mended: str = ""
    _aliases: dict[str, int] = field(default_factory=dict)

    def alias(self, name: str) -> int | None:
        return self._aliases.get(name)

    def append(
        self,
        action: Action,
        *,
        version: int | None = None,
        manifest_sha256: str | None = None,
        moves: Mapping[str, int | None] | None = None,
        note: str = "",
    ) -> LogLine:
        """One durable line, and then its aliases. A disk that is full leaves the log as it was (an OSError)."""
        line = LogLine(
            number=len(self.log.lines),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            who=_who(),
            action=action,
            version=version,
            manifest_sha256=manifest_sha256,
            aliases={alias: (self._aliases.get(alias), after) for alias, after in (moves or {}).items()},
            note="; ".join(part for part in (note, self.mended) if part),
            before_sha256=self.log.head_sha256,
        )
        raw = line.model_dump_json().encode()
        _append_line(self.home / LOG, raw + b"\n", self.log.whole_bytes)
        self.mended = ""
        self.log = Log(
            lines=(*self.log.lines, line),
            whole_bytes=self.log.whole_bytes + len(raw) + 1,
            head_sha256=sha256_bytes(raw),
        )
        self.bring_about(line)
        return line

    def bring_about(self, line: LogLine) -> None:
        for alias, (_, after) in line.aliases.items():
            if read_alias(self.home, alias) == after:
                continue
            path = self.home / ALIASES / require_alias(alias)
            if after is None:
                path.unlink(missing_ok=True)
            else:
                write_atomic(path, f"v{after}\n")
        self._aliases = self.log.aliases()


@contextmanager
def writing(home: Path, own: int | None = None) -> Iterator[Writer]:
    """The model's lock, with everything that a killed writer left undone mended first.

    own  the version that this writer is about to log itself
    Raises HaloForgeError for a log whose chain is broken: nothing is added to a log that was changed."""
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        log = read_log(home)
        if log.problems:
            raise HaloForgeError(
                f"the log of this model was changed: {log.problems[0]}",
                where=str(home / LOG),
                expected="lines that each carry the hash of the one before",
                fix="restore it from a backup, or move it away: a new one begins with the versions that are here",
            )
        writer = Writer(home, log)
        if log.torn_bytes:
            writer.mended = f"a torn line of {log.torn_bytes} bytes before this one was removed"
        if log.lines:
            writer.bring_about(log.lines[-1])
        told = log.published()
        for version in complete_versions(home):
            if version not in told and version != own:
                manifest = home / f"v{version}" / MANIFEST_NAME
                writer.append("found", version=version, manifest_sha256=sha256_file(manifest))
        yield writer
    finally:
        os.close(descriptor)


def point_latest(home: Path) -> None:
    """Let `latest` name the newest version. Only under the lock, so that it never goes back."""
    newest = complete_versions(home)[-1]
    if read_alias(home, LATEST) != newest:
        write_atomic(home / LATEST, f"v{newest}\n")


def record_publication(home: Path, version: int, aliases: list[str], note: str = "") -> None:
    """Log a version that is in its place, and let the aliases name it. Never lets an alias go back to an older one, and
    does nothing for a version that was logged by its publisher before (it may have been rolled back since)."""
    with writing(home, own=version) as writer:
        if not any(line.action == "publish" and line.version == version for line in writer.log.lines):
            writer.append(
                "publish",
                version=version,
                manifest_sha256=sha256_file(home / f"v{version}" / MANIFEST_NAME),
                moves={alias: version for alias in aliases if (writer.alias(alias) or 0) < version},
                note=note,
            )
        point_latest(home)


def _append_line(path: Path, data: bytes, whole_bytes: int) -> None:
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(descriptor, whole_bytes)  # a torn line goes
        os.lseek(descriptor, whole_bytes, os.SEEK_SET)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(28, "No space left on device", str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, whole_bytes)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        fsync_directory(path.parent)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user that no passwd file names
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
