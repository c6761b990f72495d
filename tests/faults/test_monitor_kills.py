"""A monitor that is killed at random moments, over and over, while its log grows and rotates: every line once."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import monitored_traffic
from monitored_traffic import append, session_for, support_rows, write_release

MONITOR = """
import sys
from pathlib import Path
from monitored_traffic import session_for
import halo_forge.monitor.session as sessions
sessions.LINES_PER_PORTION = 37
place = Path(sys.argv[1])
session = session_for(place, place / "prod.jsonl")
print("open", flush=True)
with session.state:
    while True:
        session.read()
"""


def counts(place: Path, log: Path, state: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """What a state counts, its windows and its alerts, after one more reading."""
    session = session_for(place, log, state)
    with session.state:
        session.read()
    found = json.loads((place / state / "state.json").read_text())["traffic"]
    for window in found["windows"]:
        window["ids"] = len(window["ids"])  # hashed with each state's own salt
    alerts = sorted(path.name for path in (place / state / "alerts").glob("*.json"))
    return found, (place / state / "windows.jsonl").read_text().splitlines(), alerts


def rotate(log: Path, how: str) -> None:
    """Parts shift by one, as logrotate does it; the part before is compressed."""
    for number in range(200, 0, -1):
        for ending in ("", ".gz"):
            old = log.with_name(f"{log.name}.{number}{ending}")
            if old.exists():
                old.rename(log.with_name(f"{log.name}.{number + 1}{ending}"))
    second = log.with_name(f"{log.name}.2")
    if second.exists():
        with open(second, "rb") as plain, gzip.open(f"{second}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        times = second.stat()
        os.utime(f"{second}.gz", ns=(times.st_atime_ns, times.st_mtime_ns))  # gzip keeps the time
        second.unlink()
    if how == "rename":
        log.rename(log.with_name(f"{log.name}.1"))
    else:
        shutil.copy(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def killed_and_uninterrupted(place: Path, num_kills: int, seed: int) -> None:
    """The same lines, once through a log that rotates under a monitor that is killed, once in one piece."""
    numbers = random.Random(seed)
    write_release(place / "release", support_rows(120, 1))
    log, whole = place / "prod.jsonl", place / "whole.jsonl"
    log.touch()
    with session_for(place, log).state as first:  # what is rotated before the first reading is history
        first.commit()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(monitored_traffic.__file__).parent)}
    for kill in range(num_kills):
        process = subprocess.Popen([sys.executable, "-c", MONITOR, str(place)], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        for burst in range(3):
            rows = support_rows(numbers.randint(20, 120), 10_000 * seed + 10 * kill + burst)
            if kill > num_kills // 2:
                rows = [{**row, "answer": "I'm sorry, but I cannot help with that."} for row in rows]
            append(log, rows)
            append(whole, rows)
            if numbers.random() < 0.25:
                rotate(log, numbers.choice(("rename", "copytruncate")))
            time.sleep(numbers.random() * 0.15)
        process.kill()
        process.wait()
        process.stdout.close()
    found, expected = counts(place, log, "state"), counts(place, whole, "whole")
    assert found[0]["num_rows"] == expected[0]["num_rows"]
    for one, other in zip(found, expected, strict=True):
        assert one == other


def test_kills_and_rotations_lose_and_repeat_nothing(tmp_path: Path) -> None:
    killed_and_uninterrupted(tmp_path, num_kills=12, seed=1)
    assert list((tmp_path / "state/alerts").glob("*refusing-answers-raised.json"))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2, 7))
def test_many_kills_and_rotations(tmp_path: Path, seed: int) -> None:
    killed_and_uninterrupted(tmp_path, num_kills=60, seed=seed)
