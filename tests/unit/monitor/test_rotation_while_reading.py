"""A rotation in the middle of a reading: before each operation that looks at the log, one run each.

Lines are counted once and in the order in which they were written, whichever operation the rotation comes before.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from halo_forge.monitor import log_parts, session
from halo_forge.monitor.traffic import Traffic
from monitored_traffic import append, session_for, support_rows, write_release

OPERATIONS = [
    (os, ("listdir",)),
    (Path, ("stat",)),
    (log_parts, ("_listed", "_as_candidate", "_first_bytes", "is_same", "_why_not", "open_candidate")),
    (log_parts.Recording, ("seek", "readline", "holds")),
    (session, ("open_log", "is_same_bytes", "mark")),
]


class Moment:
    """Does something before the n-th operation on the log. `num` counts them."""

    def __init__(self, at: int, happens: Callable[[], None]) -> None:
        self.at, self.happens, self.num = at, happens, 0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.num += 1
            if self.num == self.at:
                self.happens()
            return function(*arguments, **options)

        return watched


def part(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")


def shift(log: Path) -> None:
    """The parts that are there move on by one, and the one before is packed, as logrotate does it."""
    for number in (3, 2, 1):
        for ending in ("", ".gz"):
            if (old := Path(f"{part(log, number)}{ending}")).exists():
                old.rename(f"{part(log, number + 1)}{ending}")
    if part(log, 2).exists():
        pack(part(log, 2))
        part(log, 2).unlink()


def pack(plain: Path) -> None:
    with open(plain, "rb") as file, gzip.open(f"{plain}.gz", "wb") as packed:
        shutil.copyfileobj(file, packed)
    times = plain.stat()
    os.utime(f"{plain}.gz", ns=(times.st_atime_ns, times.st_mtime_ns))


def rename(log: Path) -> None:
    shift(log)
    log.rename(part(log, 1))


def copy(log: Path) -> None:
    shift(log)
    shutil.copy(log, part(log, 1))


def cut(log: Path) -> None:
    os.truncate(log, 0)


def copy_and_cut(log: Path) -> None:
    copy(log)
    cut(log)


def rename_and_pack(log: Path) -> None:
    rename(log)
    pack(part(log, 1))


def remove_plain(log: Path) -> None:
    part(log, 1).unlink()


def nothing(_: Path) -> None:
    pass


# What was done before the reading, and what happens during it.
ROTATIONS = {
    "rename": (nothing, rename),
    "copy and cut": (nothing, copy_and_cut),
    "copied, then renamed": (copy_and_cut, rename),
    "copied twice": (copy_and_cut, copy_and_cut),
    "cut after the copy": (copy, cut),
    "packed": (rename_and_pack, remove_plain),
}


def ids_counted(place: Path, log: Path, order: list[str], moment: Moment | None) -> None:
    """One reading by a monitor that starts anew from its state; `order` gains the ids of the lines it counts."""
    read = Traffic.read

    def remembered(traffic: Traffic, numbered: Iterable[tuple[int, bytes | None]]) -> Any:
        rows = read(traffic, numbered)
        order.extend(row.request_id or "" for row in rows)
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Traffic, "read", remembered)
        patch.setattr(session, "LINES_PER_PORTION", 3)
        patch.setattr(os, "fsync", lambda _: None)  # thousands of commits, and no power is lost here
        for owner, names in OPERATIONS if moment else []:
            for name in names:
                patch.setattr(owner, name, moment.watch(getattr(owner, name)))
        watching = session_for(place, log)
        with watching.state:
            watching.read()


def story(place: Path, rotation: str, at: int, num_seen: int) -> int:
    """A log of which `num_seen` lines were read, and that rotates before the operation `at` of the next reading.
    Returns how many operations that reading had."""
    log, order = place / "prod.jsonl", []
    before, then = ROTATIONS[rotation]
    written = support_rows(28, 7)
    append(log, written[:num_seen])
    ids_counted(place, log, order, None)
    append(log, written[num_seen:10])
    before(log)
    is_copy = before is copy  # what is written between a copy and the cut is lost to everybody
    append(log, [] if is_copy else written[10:19])

    def happens() -> None:
        then(log)
        append(log, written[10 if is_copy else 19 :])  # longer than what was read before

    moment = Moment(at, happens)
    ids_counted(place, log, order, moment)
    if moment.num >= at:
        for _ in range(3):  # a reading that gave way to the rotation ends at a later one
            ids_counted(place, log, order, None)
        assert order == [row["id"] for row in written], f"rotated before operation {at}"
    return moment.num


@pytest.mark.parametrize("num_seen", [0, 4])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_rotation_before_every_operation(tmp_path: Path, rotation: str, num_seen: int) -> None:
    write_release(tmp_path / "release", support_rows(120, 1))
    at, num_operations = 0, 1
    while at < num_operations:
        at += 1
        place = tmp_path / str(at)
        place.mkdir()
        (place / "release").symlink_to(tmp_path / "release")
        num_operations = story(place, rotation, at, num_seen)
    assert at > 20
