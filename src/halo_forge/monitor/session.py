"""Watching with a memory: each call reads what the log has gained since, whatever happened in between."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halo_forge.config.schema import Config
from halo_forge.errors import UsageError, storage_in_words
from halo_forge.monitor.log_lines import GZIP_MAGIC, UNREADABLE, open_log, read_lines
from halo_forge.monitor.log_parts import (
    Candidate,
    Part,
    Recording,
    Scan,
    is_same_bytes,
    mark,
    mark_compressed,
    open_candidate,
    scan,
    see,
    with_data,
)
from halo_forge.monitor.records import Alert, MonitorReport, MonitorVerdict, Reference, WindowReport
from halo_forge.monitor.state import MonitorState, alert_id, open_state
from halo_forge.monitor.watch import (
    LINES_PER_PORTION,
    MIN_REFERENCE_ROWS,
    Embed,
    counted,
    find_reference,
    instruments_for,
    notes_of,
    read_reference,
)
from halo_forge.monitor.window import Instruments
from halo_forge.runs import Notify, provenance, sha256_file, sha256_json, silent

MAX_SCANS = 5
"""Of one reading. A log that rotates under each of them is read on at the next."""


@dataclass(slots=True)
class WatchSession:
    config: Config
    log: Path
    release: str | None
    reference: Reference
    reference_sha256: str
    state: MonitorState
    instruments: Instruments
    notify: Notify
    notes: tuple[str, ...] = ()

    def read(self, check: Callable[[], None] = lambda: None) -> int:
        """Read every whole line that is there and was not counted; returns how many. The state on the disk is advanced
        after each portion. Raises StorageError when it cannot be: what is on the disk then is the state before.

        check  called between portions; what it raises ends the reading there
        """
        num_before = self.state.traffic.num_lines
        with storage_in_words(self.state.directory):
            for _ in range(MAX_SCANS):
                found = scan(self.log, self.state.parts, is_first=self.state.is_new)
                self.state.num_lost += len(found.lost)
                if found.is_settled and self._read_found(found, check):
                    break
            if self.state.is_new:
                self.state.commit()
        torn = sum(part.is_unfinished for part, _ in found.found)
        self.notes = (
            *(f"{name} is left alone: {why}" for name, why in sorted(found.skipped.items())),
            *([f"{torn} files end in half a line, which waits for its rest"] if torn else []),
        )
        return self.state.traffic.num_lines - num_before

    def _read_found(self, found: Scan, check: Callable[[], None]) -> bool:
        """Oldest first. False where a part moved meanwhile: nothing newer is read before the next scan finds it."""
        for part, file in with_data(found.found):
            if file.is_live:
                _require_plain(file.path)
            read = self._read_compressed if file.is_gzip else self._read_plain
            if not read(part, file, check):
                return False
        return True

    def _read_plain(self, part: Part, file: Candidate, check: Callable[[], None]) -> bool:
        try:
            handle, is_gzip = open_log(file.path)
        except OSError:
            return False
        with handle:
            status = os.fstat(handle.fileno())
            moved = is_gzip or (status.st_dev, status.st_ino) != (file.device, file.inode)
            if moved or (part.offset and not is_same_bytes(part, handle)):
                return False
            portion: list[tuple[int, bytes | None]] = []
            offset, in_long = part.offset, part.in_long_line
            recording, marks = Recording(handle, file.head), (b"", b"")
            for line in read_lines(recording, part.offset, in_long_line=part.in_long_line):
                if line.is_torn:
                    break
                marks = recording.head, recording.tail
                if line.data != b"":
                    portion.append((part.num_lines + len(portion) + 1, line.data))
                offset, in_long = line.end, line.opens_long
                if len(portion) >= LINES_PER_PORTION:
                    if not recording.holds(marks, offset):
                        return False
                    self._count(portion, part, marks, (offset, in_long))
                    portion = []
                    check()
            if portion or offset != part.offset:
                if not recording.holds(marks, offset):
                    return False
                self._count(portion, part, marks, (offset, in_long))
            return True

    def _count(
        self, portion: list[tuple[int, bytes | None]], part: Part, marks: tuple[bytes, bytes], place: tuple[int, bool]
    ) -> None:
        reports = self._add(portion)
        part.num_lines += len(portion)
        offset, part.in_long_line = place
        mark(part, *marks, offset)
        part.is_unfinished = part.size_bytes > offset
        self._commit(reports)

    def _read_compressed(self, part: Part, file: Candidate, check: Callable[[], None]) -> bool:
        """A part that was compressed meanwhile: its rest, in one commit, also where its last line has no line feed."""
        reports: list[WindowReport] = []
        offset, in_long = part.offset, part.in_long_line
        portion: list[tuple[int, bytes | None]] = []
        try:
            with open_candidate(file) as handle:
                for line in read_lines(handle, offset, in_long_line=in_long):
                    offset = line.end
                    if line.data != b"":
                        portion.append((part.num_lines + 1, line.data))
                        part.num_lines += 1
                    if len(portion) >= LINES_PER_PORTION:
                        reports += self._add(portion)
                        portion = []
        except UNREADABLE as error:
            self.notify("note", {"text": f"{file.path.name} is damaged, what could be read of it is counted: {error}"})
        except OSError:
            if not portion and not reports:
                return False
        reports += self._add(portion)
        part.in_long_line = False
        try:
            mark_compressed(part, file, offset)
        except (OSError, *UNREADABLE):
            part.offset = offset
        see(part, file)
        self._commit(reports)
        check()
        return True

    def _add(self, portion: list[tuple[int, bytes | None]]) -> list[WindowReport]:
        traffic = self.state.traffic
        return traffic.add(traffic.read(portion), self.instruments, self.reference, self.config.monitor)

    def _commit(self, reports: list[WindowReport]) -> None:
        alerts = [alert for report in reports for alert in self._alerts(report)]
        self.state.commit(reports, alerts)
        for alert in alerts:
            self.notify("alert", {"text": f"alarm {alert.event} in window {alert.window}: {alert.check.words}"})

    def _alerts(self, report: WindowReport) -> list[Alert]:
        return [
            Alert(
                id=alert_id(report.number, check.name, event),
                event=event,  # type: ignore[arg-type]
                release=self.release,
                window=report.number,
                start=report.start,
                end=report.end,
                check=check,
                topics=report.topics if check.name == "new topics" else (),
            )
            for event, names in (("raised", report.raised), ("cleared", report.cleared))
            for check in report.checks
            if check.name in names
        ]

    def report(self) -> MonitorReport:
        traffic, limits = self.state.traffic, self.config.monitor
        judged = next((window for window in reversed(self.state.windows(last=200)) if window.checks), None)
        alarms = tuple(alarm for _, alarm in sorted(traffic.alarms.items()))
        verdict, reason = self._verdict(judged)
        report = MonitorReport(
            provenance=provenance(sha256_json(self.config.to_dict()), {"reference": self.reference_sha256}),
            verdict=verdict,
            reason=reason,
            release=self.release,
            log=str(self.log),
            checks=judged.checks if judged else (),
            topics=judged.topics if judged else (),
            alarms=alarms,
            num_windows=self.state.num_windows,
            num_open_rows=sum(window.num_rows for window in traffic.windows.values()),
            **counted(self.reference, traffic, limits),
        )
        notes = [*notes_of(report, traffic.num_late), *self.notes]
        missing = sum(part.is_unfinished and part.num_missing > 0 for part in self.state.parts)
        if self.state.num_lost + missing:
            notes.append(f"{self.state.num_lost + missing} parts of the log vanished before they were read to the end")
        if traffic.num_without_time and limits.window_hours is not None:
            notes.append(f"{traffic.num_without_time} rows have no usable time and count as of the newest one")
        return report.model_copy(update={"notes": tuple(notes)})

    def _verdict(self, judged: WindowReport | None) -> tuple[MonitorVerdict, str]:
        on = [alarm for alarm in self.state.traffic.alarms.values() if alarm.is_on]
        if self.reference.num_rows < MIN_REFERENCE_ROWS:
            few = f"the release was measured on {self.reference.num_rows} answers; at least {MIN_REFERENCE_ROWS}"
            return "too_few_rows", f"{few} are needed"
        if judged is None:
            return "too_few_rows", f"{self.state.traffic.num_rows} usable rows so far; no window has been judged"
        if on:
            said = {check.name: check.words for check in judged.checks}
            words = "; ".join(said.get(alarm.name, alarm.name) for alarm in on)
            return "drift", f"{len(on)} alarm{'s' if len(on) > 1 else ''} on: {words}"
        num_windows = self.state.num_windows
        return "ok", f"{num_windows} {'window' if num_windows == 1 else 'windows'} judged, no alarm is on"


def open_session(
    config: Config, release_dir_or_run: Path, log: Path, directory: Path, notify: Notify = silent,
    embed: Embed | None = None,
) -> WatchSession:  # fmt: skip
    """A log watched with a memory in `directory`. Raises DataError for a reference that cannot be read, and what
    `open_state` raises. Close its state."""
    reference_path, release = find_reference(release_dir_or_run)
    reference = read_reference(reference_path)
    limits = config.monitor
    reference_sha256 = sha256_file(reference_path)
    bound_to = {
        "reference": reference_sha256,
        "log": str(log.absolute()),
        "windows": f"{limits.window_hours:g} hours" if limits.window_hours else f"{limits.window_rows} rows",
        "store_texts": limits.store_texts,
    }
    state = open_state(directory, bound_to)
    instruments = instruments_for(reference, limits, embed, bytes.fromhex(state.salt))
    return WatchSession(config, log, release, reference, reference_sha256, state, instruments, notify)


def follow(
    session: WatchSession, check: Callable[[], None], after_each: Callable[[MonitorReport], None], poll_s: float
) -> None:
    """Read again and again until `check` raises. `after_each` is called when there was something new."""
    while True:
        if session.read(check):
            after_each(session.report())
        until = time.monotonic() + poll_s
        while time.monotonic() < until:
            check()
            time.sleep(min(0.1, poll_s))


def _require_plain(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            is_gzip = file.read(2) == GZIP_MAGIC
    except OSError:
        return
    if is_gzip:
        raise UsageError(
            "a compressed log does not grow, so there is nothing to remember of it",
            where=str(path),
            fix="leave --state and --follow out",
        )
