"""Traffic for the monitor's tests: rows, logs and references of known distributions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.config.schema import Config
from halo_forge.monitor import WatchSession, open_session
from halo_forge.publish.reference import reference_of

SUBJECTS = ("invoice", "refund", "shipment", "password", "warranty", "discount", "receipt", "delivery")
VERBS = ("cancel", "find", "change", "print", "return", "extend", "repeat", "check")
Row = dict[str, Any]


def support_rows(num: int, seed: int) -> list[Row]:
    """Questions to a shop, answered in JSON; about one answer in ten is none."""
    numbers = random.Random(seed)
    rows = []
    for at in range(num):
        subject, verb = numbers.choice(SUBJECTS), numbers.choice(VERBS)
        words = " ".join(numbers.choices(SUBJECTS + VERBS, k=numbers.randint(3, 20)))
        answer = {"action": verb, "about": subject, "note": "x" * numbers.randint(5, 60)}
        text = json.dumps(answer) if numbers.random() > 0.1 else f"You can {verb} the {subject} online."
        reason = "length" if numbers.random() < 0.05 else "stop"
        prompt = f"How can I {verb} the {subject} that I got last week? {words}"
        rows.append({"id": f"{seed}-{at}", "prompt": prompt, "answer": text, "finish_reason": reason})
    return rows


def write_release(directory: Path, rows: Iterable[Row], **monitor: Any) -> Path:
    """A version directory with the one file that the monitor reads."""
    rows = list(rows)
    directory.mkdir(parents=True, exist_ok=True)
    stopped = [row["finish_reason"] == "stop" for row in rows]
    facts = reference_of(
        [row["prompt"] for row in rows], [row["answer"] for row in rows], stopped, MonitorSection(**monitor)
    )
    (directory / "reference.json").write_text(json.dumps({**facts, "weights_sha256": "w", "holdout_sha256": "h"}))
    return directory


def lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def append(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "a") as file:
        file.write(lines(rows))


def session_for(place: Path, log: Path, state: str = "state", **monitor: Any) -> WatchSession:
    """A new session over a log, with the release in `place`/release."""
    config = Config.model_validate({"monitor": {"window_rows": 200, "min_rows": 50, **monitor}})
    return open_session(config, place / "release", log, place / state)


def read_once(place: Path, log: Path, **monitor: Any) -> tuple[int, Any]:
    """(rows counted so far, report) after one reading by a monitor that starts anew from its state."""
    session = session_for(place, log, **monitor)
    with session.state:
        session.read()
        return session.state.traffic.num_rows, session.report()
