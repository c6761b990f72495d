"""The traffic seen so far: counters, open windows and alarms. Lines go in, judged windows come out. No file is touched.

A row belongs to one window: the next of `window_rows` rows, or the one of its own time. Windows of time stay open for
LATENESS_S after the newest time seen; what comes later still is counted into the oldest window that is open.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.monitor.alarms import next_alarms
from halo_forge.monitor.drift import drift_checks
from halo_forge.monitor.production_log import MAX_LINE_BYTES, BadLine, LoggedRow, line_to_row
from halo_forge.monitor.records import Alarm, Reference, WindowReport
from halo_forge.monitor.topics import topics_of
from halo_forge.monitor.window import Instruments, Window

NUM_BAD_LINES_NAMED = 10
LATENESS_S = 3600.0
AHEAD_S = 86_400.0
"""A time farther ahead of this machine's clock is a broken clock's: such a row counts as one without time."""


@dataclass(slots=True)
class Traffic:
    """`windows`: number -> open window. `watermark_s` is the newest time seen."""

    num_rows: int = 0
    num_lines: int = 0
    num_duplicates: int = 0
    num_late: int = 0
    num_without_time: int = 0
    bad_lines: Counter[str] = field(default_factory=Counter)
    first_bad_lines: list[int] = field(default_factory=list)
    windows: dict[int, Window] = field(default_factory=dict)
    next_window: int = 1
    watermark_s: float | None = None
    alarms: dict[str, Alarm] = field(default_factory=dict)

    def read(self, lines: Iterable[tuple[int, bytes | None]]) -> list[LoggedRow]:
        """Rows of lines, each given with its number; a line of None was too long. Blank lines are no rows."""
        rows = []
        for number, line in lines:
            self.num_lines += 1
            if line is not None and not line.strip():
                continue
            try:
                if line is None:
                    raise BadLine(f"longer than {MAX_LINE_BYTES >> 20} MB")
                rows.append(line_to_row(line))
            except BadLine as error:
                self.bad_lines[str(error)] += 1
                if len(self.first_bad_lines) < NUM_BAD_LINES_NAMED:
                    self.first_bad_lines.append(number)
        return rows

    def add(
        self, rows: list[LoggedRow], instruments: Instruments, reference: Reference, limits: MonitorSection | None
    ) -> list[WindowReport]:
        """Count rows; returns the windows that are complete, judged. `limits` None keeps one window open for all."""
        closed: list[WindowReport] = []
        waiting: dict[int, list[LoggedRow]] = {}
        for row in rows:
            key = self._window_of(row, limits)
            window = self.windows.setdefault(key, Window(key))
            if window.is_duplicate(row, instruments.salt):
                window.num_duplicates += 1
                self.num_duplicates += 1
                continue
            waiting.setdefault(key, []).append(row)
            self.num_rows += 1
            due = self._due(limits, window.num_rows + len(waiting[key]))
            if due:
                for number in due:
                    self.windows[number].add(waiting.pop(number, []), instruments)
                    closed.append(self._close(number, reference, limits))  # type: ignore[arg-type]
        for number, held in waiting.items():
            self.windows[number].add(held, instruments)
        return closed

    def _window_of(self, row: LoggedRow, limits: MonitorSection | None) -> int:
        if limits is None or limits.window_hours is None:
            return self.next_window
        length_s = limits.window_hours * 3600
        seconds = row.time_s
        if seconds is None or seconds > time.time() + AHEAD_S:
            self.num_without_time += 1
            seconds = self.watermark_s if self.watermark_s is not None else time.time()
        self.watermark_s = max(seconds, self.watermark_s or seconds)
        number = math.floor(seconds / length_s)
        if (number + 1) * length_s + LATENESS_S <= self.watermark_s:
            number = min(self.windows, default=math.floor(self.watermark_s / length_s))
            self.windows.setdefault(number, Window(number)).num_late += 1
            self.num_late += 1
        return number

    def _due(self, limits: MonitorSection | None, num_rows: int) -> list[int]:
        """Numbers of the windows that are complete."""
        if limits is None:
            return []
        if limits.window_hours is None:
            return [self.next_window] if num_rows >= limits.window_rows else []
        if self.watermark_s is None:
            return []
        complete = math.floor((self.watermark_s - LATENESS_S) / (limits.window_hours * 3600))
        return sorted(number for number in self.windows if number < complete)

    def _close(self, number: int, reference: Reference, limits: MonitorSection) -> WindowReport:
        window = self.windows.pop(number)
        self.next_window = max(self.next_window, number + 1) if limits.window_hours is None else self.next_window
        report = judge_window(window, reference, limits)
        if report.checks:
            self.alarms, raised, cleared = next_alarms(self.alarms, report.number, report.checks, limits)
            report = report.model_copy(update={"raised": raised, "cleared": cleared})
        return report

    def to_json(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows, "num_lines": self.num_lines, "num_duplicates": self.num_duplicates,
            "num_late": self.num_late, "num_without_time": self.num_without_time,
            "bad_lines": dict(sorted(self.bad_lines.items())), "first_bad_lines": self.first_bad_lines,
            "windows": [self.windows[number].to_json() for number in sorted(self.windows)],
            "next_window": self.next_window, "watermark_s": self.watermark_s,
            "alarms": [alarm.model_dump() for _, alarm in sorted(self.alarms.items())],
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Traffic:
        """Raises KeyError, TypeError or ValueError for what `to_json` does not write."""
        windows = [Window.from_json(window) for window in value["windows"]]
        alarms = [Alarm.model_validate(alarm) for alarm in value["alarms"]]
        return cls(
            **{
                **value,
                "bad_lines": Counter(value["bad_lines"]),
                "windows": {window.number: window for window in windows},
                "alarms": {alarm.name: alarm for alarm in alarms},
            }
        )


def judge_window(window: Window, reference: Reference, limits: MonitorSection) -> WindowReport:
    """A window with fewer than `min_rows` rows is recorded without checks: it raises and clears nothing."""
    checks = drift_checks(reference, window, limits)[0] if window.num_rows >= limits.min_rows else ()
    start, end = window.span()
    knows_new = any(check.name == "new topics" and check.significant for check in checks)
    return WindowReport(
        number=window.number,
        start=start,
        end=end,
        num_rows=window.num_rows,
        num_duplicates=window.num_duplicates,
        num_late=window.num_late,
        checks=checks,
        topics=topics_of(window.gatherings, window.num_rows, window.words) if knows_new else (),
    )
