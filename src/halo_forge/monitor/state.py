"""What a monitor remembers between two readings, in one directory, written so that a kill costs nothing.

<state>/
├── state.json      places in the log, counters, open windows, alarms: replaced as a whole, after each portion of lines
├── windows.jsonl   one line a judged window; what is behind the length that state.json names is cut off
├── alerts/         one file an alarm that was raised or cleared; whoever delivers them may take them away
└── report.json     the last report, and report.html where a page was asked for

Places and counts are in the same file, and a file is replaced in one step: a line is counted exactly when its place is
behind the mark. Texts of the log are in none of these files unless monitor.store_texts is true.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halo_forge.errors import DataError, RunConflict
from halo_forge.monitor.log_parts import Part
from halo_forge.monitor.records import Alert, WindowReport
from halo_forge.monitor.traffic import Traffic
from halo_forge.runs import write_atomic

STATE, WINDOWS, ALERTS = "state.json", "windows.jsonl", "alerts"


@dataclass(slots=True)
class MonitorState:
    """`bound_to`: what the counts belong to (release, log, how windows are cut); another is another state."""

    directory: Path
    bound_to: dict[str, Any]
    traffic: Traffic = field(default_factory=Traffic)
    parts: list[Part] = field(default_factory=list)
    num_lost: int = 0  # parts that vanished with bytes unread
    windows_bytes: int = 0
    num_windows: int = 0
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    is_new: bool = True
    _lock: int | None = None

    def __enter__(self) -> MonitorState:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def commit(self, reports: Sequence[WindowReport] = (), alerts: Sequence[Alert] = ()) -> None:
        """Windows and alerts first, then the state that names them: after a kill in between they are written again,
        under the same names and at the same place. Raises OSError."""
        for alert in alerts:
            write_atomic(self.directory / ALERTS / f"{alert.id}.json", alert.model_dump_json(indent=2) + "\n")
        if reports:
            self.windows_bytes += self._append("".join(report.model_dump_json() + "\n" for report in reports).encode())
            self.num_windows += len(reports)
        write_atomic(self.directory / STATE, json.dumps(self.to_json(), separators=(",", ":")) + "\n")
        self.is_new = False

    def _append(self, data: bytes) -> int:
        with open(self.directory / WINDOWS, "ab") as file:
            file.truncate(self.windows_bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return len(data)

    def windows(self, last: int | None = None) -> list[WindowReport]:
        """The judged windows, oldest first; only the `last` ones where it is given."""
        try:
            with open(self.directory / WINDOWS, "rb") as file:
                lines = file.read(self.windows_bytes).splitlines()
            return [WindowReport.model_validate_json(line) for line in (lines[-last:] if last else lines)]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise _not_a_state(self.directory / WINDOWS, error) from None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1, "bound_to": self.bound_to, "salt": self.salt,
            "windows_bytes": self.windows_bytes, "num_windows": self.num_windows, "num_lost": self.num_lost,
            "parts": [part.to_json() for part in self.parts], "traffic": self.traffic.to_json(),
        }  # fmt: skip


def open_state(directory: Path, bound_to: dict[str, Any]) -> MonitorState:
    """The state in a directory, or a new one there, locked until it is closed.

    Raises RunConflict where another process holds it or it belongs to something else, DataError where it is damaged.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunConflict(
            f"the monitor's state cannot be written: {error.strerror}",
            where=str(directory),
            fix="give another directory with --state",
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise RunConflict(
            "another monitor is using this state",
            where=str(directory),
            fix="wait for it, or give another directory with --state",
        ) from None
    try:
        state = _read(directory, bound_to)
    except BaseException:
        os.close(lock)
        raise
    state._lock = lock
    return state


def _read(directory: Path, bound_to: dict[str, Any]) -> MonitorState:
    path = directory / STATE
    for staging in directory.glob(f".{STATE}.*.tmp"):  # of a writer that was killed; the lock is ours
        staging.unlink(missing_ok=True)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return MonitorState(directory, bound_to)
    except (OSError, ValueError) as error:
        raise _not_a_state(path, error) from None
    try:
        found = value["bound_to"]
        state = MonitorState(
            directory=directory,
            bound_to=found,
            traffic=Traffic.from_json(value["traffic"]),
            parts=[Part(**part) for part in value["parts"]],
            num_lost=value["num_lost"],
            windows_bytes=value["windows_bytes"],
            num_windows=value["num_windows"],
            salt=value["salt"],
            is_new=False,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_a_state(path, error) from None
    differs = [name for name in bound_to if found.get(name) != bound_to[name]]
    if differs:
        said = "; ".join(f"{name}: {found.get(name)}, now {bound_to[name]}" for name in differs)
        raise RunConflict(
            f"this state belongs to something else ({said})",
            where=str(directory),
            fix="give another directory with --state",
        )
    return state


def _not_a_state(path: Path, error: Exception) -> DataError:
    return DataError(
        "this is not the state of a monitor",
        where=str(path),
        expected=f"what halo-forge wrote there ({type(error).__name__})",
        fix="give another directory with --state; the log is then read from its beginning",
    )


def alert_id(window: int, check: str, event: str) -> str:
    return f"{window:08d}-{re.sub(r'[^a-z0-9]+', '-', check.lower())}-{event}"
