"""Logs as servers and logrotate leave them (cases L01 to L16): each line is counted once, and what is not is told."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.errors import DataError, RunConflict, StorageError, UsageError
from halo_forge.monitor import state as memory
from halo_forge.monitor.production_log import line_to_row, time_in_seconds
from halo_forge.monitor.traffic import Traffic
from halo_forge.monitor.watch import instruments_for, read_reference
from monitored_traffic import append, lines, read_once, session_for, support_rows, write_release


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_release(tmp_path / "release", support_rows(120, 1))
    return tmp_path


@pytest.fixture
def log(place: Path) -> Path:
    return place / "prod.jsonl"


def test_l01_half_a_line_waits_for_its_rest(place: Path, log: Path) -> None:
    rows = support_rows(10, 2)
    whole = lines(rows)
    log.write_text(whole[:-30])
    num, report = read_once(place, log)
    assert num == 9
    assert any("half a line" in note for note in report.notes)
    log.write_text(whole)
    assert read_once(place, log)[0] == 10
    assert read_once(place, log)[0] == 10


def test_l02_a_line_beyond_the_limit_is_one_bad_line_however_it_arrives(
    place: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("log_lines", "traffic"):
        monkeypatch.setattr(f"halo_forge.monitor.{module}.MAX_LINE_BYTES", 4096)
    append(log, support_rows(3, 2))
    with open(log, "a") as file:
        file.write('{"prompt": "' + "p" * 9000)
    assert read_once(place, log)[0] == 3
    with open(log, "a") as file:
        file.write("p" * 9000)
    assert read_once(place, log)[0] == 3
    with open(log, "a") as file:
        file.write('", "answer": "a"}\n' + lines(support_rows(2, 3)))
    num, report = read_once(place, log)
    assert (num, report.num_bad_lines) == (5, 1)
    assert report.first_bad_lines == (4,)


def test_l03_rotation_by_rename_also_when_several_were_missed(place: Path, log: Path) -> None:
    append(log, support_rows(10, 2))
    assert read_once(place, log)[0] == 10
    append(log, support_rows(5, 3))
    log.rename(log.with_name("prod.jsonl.1"))
    append(log, support_rows(4, 4))
    assert read_once(place, log)[0] == 19
    append(log, support_rows(1, 5))
    for number in (2, 1, 0):  # two rotations between two readings
        name = log if number == 0 else log.with_name(f"prod.jsonl.{number}")
        if name.exists():
            name.rename(log.with_name(f"prod.jsonl.{number + 1}"))
    append(log, support_rows(6, 6))
    log.rename(log.with_name("prod-20260131.jsonl"))
    append(log, support_rows(2, 7))
    assert read_once(place, log)[0] == 28
    append(log.with_name("prod-20260131.jsonl"), support_rows(3, 8))  # a writer that kept the old file open
    assert read_once(place, log)[0] == 31
    assert read_once(place, log)[0] == 31


def test_l04_copytruncate_at_every_moment(place: Path, log: Path) -> None:
    append(log, support_rows(30, 2))
    assert read_once(place, log)[0] == 30
    append(log, support_rows(10, 3))
    copy = log.with_name("prod.jsonl.1")
    copy.write_bytes(log.read_bytes()[:3000])  # the copy has begun: it is not a part of its own
    assert read_once(place, log)[0] == 40
    append(log, support_rows(5, 4))
    shutil.copy(log, copy)
    os.truncate(log, 0)
    assert read_once(place, log)[0] == 45
    append(log, support_rows(60, 5))  # already longer than what was read of the file before
    assert read_once(place, log)[0] == 105
    os.truncate(log, 0)
    append(log, support_rows(1, 6))
    num, report = read_once(place, log)
    assert num == 106
    assert not any("vanished" in note for note in report.notes)


def test_l04_a_copy_that_stayed_incomplete_is_told_and_not_read_again(place: Path, log: Path) -> None:
    append(log, support_rows(30, 2))
    assert read_once(place, log)[0] == 30
    log.with_name("prod.jsonl.1").write_bytes(log.read_bytes()[:3000])
    os.truncate(log, 0)
    append(log, support_rows(4, 3))
    num, report = read_once(place, log)
    assert num == 34
    assert any("prod.jsonl.1 is left alone" in note for note in report.notes)


def test_l04_a_hole_of_zeros_is_no_line(place: Path, log: Path) -> None:
    """A writer without O_APPEND goes on at its old place after the cut."""
    append(log, support_rows(3, 2))
    assert read_once(place, log)[0] == 3
    size = log.stat().st_size
    os.truncate(log, 0)
    with open(log, "r+b") as file:
        file.seek(size)
        file.write(lines(support_rows(4, 3)).encode())
    num, report = read_once(place, log)
    assert (num, report.num_bad_lines) == (7, 0)


def test_l05_another_file_with_the_same_inode_is_another_file(place: Path, log: Path) -> None:
    append(log, support_rows(5, 2))
    assert read_once(place, log)[0] == 5
    os.truncate(log, 0)
    append(log, support_rows(9, 3))
    assert read_once(place, log)[0] == 14


def test_l05_a_file_that_only_begins_like_the_one_before_is_another(place: Path, log: Path) -> None:
    same = support_rows(10, 2)
    append(log, [*same, *support_rows(5, 3)])
    assert read_once(place, log)[0] == 15
    os.truncate(log, 0)
    append(log, [{**row, "id": None} for row in [*same, *support_rows(20, 4)]])
    with open(log, "r+b") as file:
        file.write(lines(same)[:2000].encode())
    assert read_once(place, log)[1].num_rows > 15 + 20


def test_l06_rotated_parts_may_be_compressed(place: Path, log: Path) -> None:
    append(log, support_rows(5, 2))
    assert read_once(place, log)[0] == 5
    append(log, support_rows(5, 3))
    part = log.with_name("prod.jsonl.1")
    log.rename(part)
    append(log, support_rows(2, 4))
    packed = log.with_name("prod.jsonl.1.gz")
    packed.write_bytes(gzip.compress(part.read_bytes())[:40])  # gzip is at work: the plain file is still there
    assert read_once(place, log)[0] == 12
    packed.write_bytes(gzip.compress(part.read_bytes()))
    assert read_once(place, log)[0] == 12
    part.unlink()
    assert read_once(place, log)[0] == 12
    log.rename(part)
    append(part, support_rows(3, 5))
    log.with_name("prod.jsonl.1.gz").rename(log.with_name("prod.jsonl.2.gz"))
    packed.write_bytes(gzip.compress(part.read_bytes()))  # rotated and compressed between two readings
    part.unlink()
    append(log, support_rows(1, 6))
    assert read_once(place, log)[0] == 16
    assert read_once(place, log)[0] == 16


def test_rotated_parts_from_before_are_history(place: Path, log: Path) -> None:
    append(log.with_name("prod.jsonl.1"), support_rows(9, 8))
    log.with_name("prod.jsonl.2.gz").write_bytes(gzip.compress(lines(support_rows(9, 9)).encode()))
    append(log, support_rows(3, 2))
    assert read_once(place, log)[0] == 3
    log.with_name("prod.jsonl.2.gz").rename(log.with_name("prod.jsonl.3.gz"))
    old = log.with_name("prod.jsonl.1")
    log.with_name("prod.jsonl.2.gz").write_bytes(gzip.compress(old.read_bytes()))
    old.unlink()
    assert read_once(place, log)[0] == 3


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        (1_767_225_600, 1_767_225_600.0),
        (1_767_225_600_000, 1_767_225_600.0),
        (1_767_225_600_000_000_000, 1_767_225_600.0),
        ("2026-01-01T00:00:00Z", 1_767_225_600.0),
        ("2026-01-01T02:00:00+02:00", 1_767_225_600.0),
        ("2026-01-01", 1_767_225_600.0),
        ("2026-03-29T02:30:00+01:00", 1_774_747_800.0),  # an hour that summer time skips
        ("9999-01-01T00:00:00Z", None),
        ("yesterday", None),
        (-5, None),
        (float("nan"), None),
        (10**400, None),
        (True, None),
        (None, None),
    ],
)  # fmt: skip
def test_l07_times_of_every_kind(logged: object, expected: float | None) -> None:
    assert time_in_seconds(logged) == expected


def test_l08_a_repeated_request_id_counts_once(place: Path, log: Path) -> None:
    rows = support_rows(20, 2)
    append(log, [*rows, *rows[5:10]])
    num, report = read_once(place, log)
    assert (num, report.num_duplicates) == (20, 5)
    append(log, rows[:2])
    assert read_once(place, log)[1].num_duplicates == 7
    assert "2-3" not in (place / "state/state.json").read_text()  # ids are kept as salted hashes


def test_l09_rows_out_of_order_stay_in_the_window_of_their_time(place: Path) -> None:
    limits = MonitorSection(window_hours=1, min_rows=1)
    reference = read_reference(place / "release/reference.json")
    start = 1_767_225_600
    times = [start + minute * 60 for minute in range(0, 300)]
    times = [at if index % 10 else at - 3000 for index, at in enumerate(times)]  # every tenth is 50 minutes late
    times.insert(250, start)  # and one comes four hours late
    data = [json.dumps({"prompt": "p", "answer": "a", "time": at}).encode() for at in times]
    traffic = Traffic()
    closed = traffic.add(traffic.read(enumerate(data, 1)), instruments_for(reference, limits, None), reference, limits)
    by_hour = {report.number - start // 3600: report.num_rows for report in closed}
    # Hour 0 closes when its hour of grace has passed; of it and those before, every row is where its time is.
    assert by_hour[0] == sum(start <= at < start + 3600 for at in times) - 1
    assert traffic.num_late == 1
    assert sum(by_hour.values()) + sum(window.num_rows for window in traffic.windows.values()) == len(times)
    assert [report.number for report in closed] == sorted(report.number for report in closed)


def test_l07_a_clock_gone_wild_closes_no_window(place: Path) -> None:
    limits = MonitorSection(window_hours=1, min_rows=1)
    reference = read_reference(place / "release/reference.json")
    rows = [line_to_row(json.dumps({"prompt": "p", "answer": "a", "time": at}).encode()) for at in
            (1_767_225_600, 4_000_000_000, "9999-12-31T00:00:00", 1_767_225_660)]  # fmt: skip
    traffic = Traffic()
    assert traffic.add(rows, instruments_for(reference, limits, None), reference, limits) == []
    assert (traffic.num_without_time, len(traffic.windows)) == (2, 1)


def test_l10_l12_l13_l14_odd_values_are_only_data(place: Path, log: Path) -> None:
    row = support_rows(1, 2)[0]
    odd = [
        {**row, "id": "a", "latency": float("nan")},
        {**row, "id": "b", "latency_ms": -5},
        {**row, "id": "c", "prompt": 'injected\n{"prompt": "x", "answer": "y"}\n'},
        {**row, "id": "d", "answer": "\x1b[2J\x1b]0;owned\x07"},
        *({**row, "id": f"m{at}", "model": f"model-{at}"} for at in range(2000)),
    ]
    append(log, odd)
    num, report = read_once(place, log)
    assert (num, report.num_bad_lines) == (2004, 0)
    assert "\x1b" not in report.words()
    assert (place / "state/state.json").stat().st_size < 100_000


def test_l11_an_unknown_schema_version_is_a_bad_line(place: Path, log: Path) -> None:
    row = support_rows(1, 2)[0]
    append(log, [{**row, "schema_version": version} for version in (1, 2, "9")])
    num, report = read_once(place, log)
    assert (num, report.bad_lines) == (0 + 1, {"unknown schema version": 2})


def test_l15_a_full_disk_loses_nothing(place: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(log, support_rows(300, 2))
    assert read_once(place, log)[0] == 300
    append(log, support_rows(300, 3))
    before = (place / "state/state.json").read_bytes()
    session = session_for(place, log)

    def full(path: Path, content: str | bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    with session.state, monkeypatch.context() as patched:
        patched.setattr(memory, "write_atomic", full)
        with pytest.raises(StorageError, match="no space is left"):
            session.read()
    assert (place / "state/state.json").read_bytes() == before
    num, report = read_once(place, log)
    assert (num, report.num_windows) == (600, 3)
    windows = (place / "state/windows.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in windows] == [1, 2, 3]


def test_a_log_that_is_not_there_yet_is_waited_for(place: Path, log: Path) -> None:
    num, report = read_once(place, log)
    assert (num, report.verdict) == (0, "too_few_rows")
    append(log, support_rows(3, 2))
    assert read_once(place, log)[0] == 3


def test_a_part_that_vanished_with_bytes_unread_is_told(place: Path, log: Path) -> None:
    append(log, support_rows(3, 2))
    with open(log, "a") as file:
        file.write('{"prompt": "half')
    assert read_once(place, log)[0] == 3
    log.unlink()
    append(log, support_rows(2, 3))
    num, report = read_once(place, log)
    assert num == 5
    assert any("1 parts of the log vanished" in note for note in report.notes)


def test_states_are_bound_locked_and_refused_when_damaged(place: Path, log: Path) -> None:
    append(log, support_rows(3, 2))
    session = session_for(place, log)
    with session.state, pytest.raises(RunConflict, match="another monitor"):
        session_for(place, log)
    read_once(place, log)
    with pytest.raises(RunConflict, match="belongs to something else"):
        session_for(place, log, window_rows=300)
    with pytest.raises(RunConflict, match="belongs to something else"):
        session_for(place, place / "other.jsonl")
    for damage in ("{", "[]", '{"bound_to": {}}', '{"bound_to": {}, "traffic": {"windows": 3}}'):
        (place / "state/state.json").write_text(damage)
        with pytest.raises(DataError, match="not the state of a monitor"):
            session_for(place, log)
    log.write_bytes(gzip.compress(b"{}"))
    with session_for(place, log, state="fresh").state as fresh:
        assert fresh.is_new
    with pytest.raises(UsageError, match="compressed log"):
        session_for(place, log, state="fresh").read()
