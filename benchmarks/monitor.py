"""What the monitor's promises are worth: false alarms without drift, drifts of known size found, lines a second.

    python benchmarks/monitor.py --data ../shared/data/gsm8k_train.jsonl

`--data` is JSON lines with `question` and `answer`. A window and its release are two random parts of it, drawn anew for
each trial; nothing has drifted, so every alarm is a false one. Then a part of the window is changed in a known way.
Times are CPU seconds of one process on one thread. Writes benchmarks/results/monitor.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.config.schema import Config
from halo_forge.monitor import observe
from halo_forge.monitor.drift import drift_checks
from halo_forge.monitor.production_log import LoggedRow
from halo_forge.monitor.records import Reference
from halo_forge.monitor.window import Instruments, Window
from halo_forge.publish import reference as publishing
from halo_forge.traits import language
from halo_forge.traits.hashed_vectors import hashed_vectors

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((60, 300), (200, 200), (200, 1000), (600, 1000))
GERMAN = "Wie viele Kisten bleiben am Ende der Woche im Lager, wenn jeden Tag {} davon verkauft werden?"
Rows = list[LoggedRow]


def with_memory() -> None:
    """Vectors and languages of a text are computed once over all trials; they do not depend on the trial."""
    vector = lru_cache(maxsize=None)(lambda text: hashed_vectors([text])[0])
    publishing.hashed_vectors = lambda texts: np.array([vector(text) for text in texts])
    language.language_of = lru_cache(maxsize=None)(language.language_of)


def trial(rows: Rows, num_reference: int, change: Callable[[Rows], Rows], limits: MonitorSection) -> tuple[Any, ...]:
    old, new = rows[:num_reference], change(rows[num_reference:])
    facts = publishing.reference_of([r.prompt for r in old], [r.answer for r in old], [True] * len(old), limits)
    reference = Reference.model_validate({**facts, "weights_sha256": "", "holdout_sha256": ""})
    window = Window(1)
    window.add(new, Instruments(reference.prompt_space, publishing.hashed_vectors, languages=True))
    return drift_checks(reference, window, limits)[0]


def false_alarms(rows: Rows, num_trials: int, limits: MonitorSection) -> dict[str, Any]:
    numbers = random.Random(1)
    found: dict[str, Any] = {"trials": 0, "significant": 0, "drift": 0, "p_below_0.05": {}}
    for index in range(num_trials):
        num_reference, num_rows = SIZES[index % len(SIZES)]
        checks = trial(numbers.sample(rows, num_reference + num_rows), num_reference, list, limits)
        found["trials"] += 1
        found["significant"] += any(check.significant for check in checks)
        found["drift"] += any(check.drifted for check in checks)
        for check in checks:
            found["p_below_0.05"].setdefault(check.name, []).append(check.p_value < 0.05)
    found["p_below_0.05"] = {name: round(float(np.mean(hit)), 4) for name, hit in found["p_below_0.05"].items()}
    return found


def drifts(share: float, seed: int, other: Sequence[str]) -> dict[str, tuple[str, Callable[[Rows], Rows]]]:
    """name -> (check that must see it, change of `share` of a window's rows)."""
    numbers = random.Random(seed)

    def some(rows: Rows, changed: Callable[[LoggedRow], LoggedRow]) -> Rows:
        return [changed(row) if numbers.random() < share else row for row in rows]

    def edit(check: str, prompt: Any = None, answer: Any = None, stopped: bool = True) -> tuple[str, Any]:
        def changed(row: LoggedRow) -> LoggedRow:
            return LoggedRow(prompt(row.prompt) if prompt else row.prompt, answer(row.answer) if answer else row.answer,
                             stopped)  # fmt: skip

        return check, lambda rows: some(rows, changed)

    return {
        "prompts twice as long": edit("prompt length", prompt=lambda text: f"{text} {text}"),
        "prompts in German": edit("prompt language", prompt=lambda text: GERMAN.format(len(text))),
        "another task": edit("new topics", prompt=lambda text: numbers.choice(other)),
        "refusals": edit("refusing answers", answer=lambda text: "I'm sorry, but I can't help with that."),
        "answers in a loop": edit("repeating answers", answer=lambda text: "and then again and " * 30),
        "empty answers": edit("empty answers", answer=lambda text: " "),
        "answers cut off": edit("answers that end by themselves", stopped=False),
    }


def power(rows: Rows, other: Sequence[str], num_trials: int, limits: MonitorSection) -> list[dict[str, Any]]:
    """Release of 200, windows of 1000: how often the check rings whose drift it is, and how often any does."""
    table = []
    for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5):
        for name in drifts(share, 0, other):
            hits = rings = 0
            for seed in range(num_trials):
                check_name, change = drifts(share, seed, other)[name]
                checks = trial(random.Random(seed).sample(rows, 1200), 200, change, limits)
                hits += any(check.drifted and check.name == check_name for check in checks)
                rings += any(check.drifted for check in checks)
            table.append({"drift": name, "share": share, "found": hits / num_trials, "any": rings / num_trials})
            print(table[-1], flush=True)
    return table


def speed(rows: Rows, num_lines: int) -> dict[str, float]:
    """CPU seconds of `observe` over a log, by kind of vector; sentence embeddings over a fiftieth of it."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for kind in ("none", "hashed", "minilm"):
            limits = MonitorSection(embedding=kind)
            num = num_lines if kind != "minilm" else num_lines // 50
            old = rows[:200]
            facts = publishing.reference_of([r.prompt for r in old], [r.answer for r in old], [True] * 200, limits)
            (place / "reference.json").write_text(json.dumps({**facts, "weights_sha256": "", "holdout_sha256": ""}))
            with open(place / "log.jsonl", "w") as file:
                for at in range(num):
                    row = rows[at % len(rows)]
                    line = {"id": at, "prompt": row.prompt, "answer": row.answer, "finish_reason": "stop"}
                    file.write(json.dumps(line) + "\n")
            embed = sentence_embedder() if kind == "minilm" else None
            start = time.process_time()
            report = observe(Config(), place, place / "log.jsonl", embed=embed)
            assert report.num_rows == num
            found[kind] = round((time.process_time() - start) / num * num_lines, 2)
            print(kind, found[kind], flush=True)
    return found


def sentence_embedder() -> Callable[[Sequence[str]], np.ndarray]:
    from halo_forge.models import sentences

    encoder = sentences.load_encoder(None, "sentence embeddings", "monitor.embedding")
    return lambda texts: sentences.sentence_vectors(texts, *encoder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--power-trials", type=int, default=20)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--only", choices=("false_alarms", "power", "speed"))
    given = parser.parse_args()
    with open(given.data) as file:
        rows = [LoggedRow(row["question"], row["answer"], True) for row in map(json.loads, file)]
    with open(ROOT / "examples/docstring_json.jsonl") as file:
        other = [row["messages"][0]["content"] if "messages" in row else row["prompt"] for row in map(json.loads, file)]
    path = ROOT / "benchmarks/results/monitor.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    results["machine"] = {"python": platform.python_version(), "numpy": np.__version__}
    if given.only in (None, "speed"):
        results["cpu_s_for_100k_lines"] = speed(rows, given.lines)
    with_memory()
    if given.only in (None, "false_alarms"):
        results["false_alarms"] = {"stated": MonitorSection().false_alarm_rate,
                                   **false_alarms(rows, given.trials, MonitorSection())}  # fmt: skip
        print(results["false_alarms"])
    if given.only in (None, "power"):
        results["power"] = power(rows, other, given.power_trials, MonitorSection())
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
