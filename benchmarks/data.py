"""How long the whole preparation takes: rows read, checked, deduplicated, decontaminated, tokenised, masked, split.

    python benchmarks/data.py build --rows 100000 --source ../shared/data/gsm8k_train.jsonl --out /tmp/rows.jsonl
    python benchmarks/data.py run   --rows 100000 --source ../shared/data/gsm8k_train.jsonl

The rows are GSM8K's with their numbers and names changed, so that they are different rows of the same kind; a seeded
10 % are exact copies, 5 % near-duplicates (one or two words changed) and 0.5 % repeat a benchmark item. The built file
says which are which, so that the run also tells how many were found. Memory is the peak of this process and its
workers together, sampled every 250 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "data.json"
EXACT, NEAR, LEAKED = 0.10, 0.05, 0.005
NAMES = re.findall(
    r"\w+",
    "Ada Bo Cleo Dara Eli Fay Gus Hana Ivo Jun Kai Lena Milo Nora Omar Pia Quin Rosa Sami Tess Uma Vera "
    "Wim Xena Yuri Zoe Abel Bea Carl Dora Emil Finn Gita Hugo Ines Jack Kira Leo Maja Nils Olga Paul Ruth "
    "Sven Tara ",
)

THINGS = re.findall(
    r"\w+",
    "apples pears plums figs dates kiwis melons lemons limes grapes books pens pencils cards stamps coins shells "
    "stones beads buttons cups plates spoons forks knives chairs tables lamps boxes bags shirts socks hats gloves",
)
NUMBER = re.compile(r"\d+")
WORD = re.compile(r"[a-z]{4,}")


def build(rows: int, source: Path, benchmarks: Path, out: Path, seed: int = 0) -> dict[str, int]:
    """Write the rows; returns how many of each kind."""
    pick = random.Random(seed)
    seeds = [json.loads(line) for line in source.read_text().splitlines()]
    items = _leaked_rows(benchmarks)
    counts = {"fresh": 0, "exact": 0, "near": 0, "leaked": 0}
    kept: list[dict[str, str]] = []
    with open(out, "w") as file:
        for number in range(rows):
            draw = pick.random()
            if draw < LEAKED:
                kind, row = "leaked", items[pick.randrange(len(items))]
            elif draw < LEAKED + EXACT and kept:
                kind, row = "exact", kept[pick.randrange(len(kept))]
            elif draw < LEAKED + EXACT + NEAR and kept:
                kind, row = "near", _nearly(kept[pick.randrange(len(kept))], pick)
            else:
                kind, row = "fresh", _fresh(seeds[number % len(seeds)], pick)
                if len(kept) < 200_000:
                    kept.append(row)
                else:
                    kept[pick.randrange(len(kept))] = row
            counts[kind] += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return counts


def _fresh(row: dict[str, str], pick: random.Random) -> dict[str, str]:
    """Another row of the same kind: other numbers, and two in five longer words exchanged for names of things."""
    numbers: dict[str, str] = {}

    def other(match: re.Match[str]) -> str:
        return numbers.setdefault(match.group(), str(pick.randrange(2, 10 ** max(2, len(match.group())))))

    def word(match: re.Match[str]) -> str:
        return pick.choice(THINGS) if pick.random() < 0.4 else match.group()

    question = WORD.sub(word, NUMBER.sub(other, row["question"]))
    answer = WORD.sub(word, NUMBER.sub(other, row["answer"]))
    return {"question": f"{pick.choice(NAMES)} asks: {question}", "answer": answer}


def _nearly(row: dict[str, str], pick: random.Random) -> dict[str, str]:
    """One word of the question changed."""
    words = row["question"].split(" ")
    words[pick.randrange(len(words))] = pick.choice(NAMES)
    return {"question": " ".join(words), "answer": row["answer"]}


def _leaked_rows(benchmarks: Path) -> list[dict[str, str]]:
    from halo_forge.data.overlap.benchmark_items import load_benchmark

    return [
        {"question": item.prompt, "answer": item.answer or "?"} for item in load_benchmark("gsm8k", benchmarks).items
    ]


class PeakMemory(threading.Thread):
    """Memory of this process and its workers together, without mapped files, sampled every 250 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import psutil

        self.process, self.peak_bytes, self.done = psutil.Process(), 0, False

    def run(self) -> None:
        import psutil

        while not self.done:
            total = 0
            for process in [self.process, *self.process.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                    total += memory.rss - memory.shared  # mapped files are shared and can be dropped at any time
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(0.25)


def run_once(rows_file: Path, benchmarks: Path, model: str, workers: int | None) -> dict[str, Any]:
    """Prepare the file with an empty store, and again into another directory; meant for a fresh process."""
    from halo_forge.config.schema import Config, DataSection
    from halo_forge.data import prepare
    from halo_forge.models import load_tokenizer
    from halo_forge.runs import RunDirectory

    os.environ["HALO_FORGE_BENCHMARKS"] = str(benchmarks)
    tokenizer = load_tokenizer(model)
    data = DataSection(
        train_file=str(rows_file), decontaminate=["gsm8k"], policies={"contaminated": "skip"}, num_workers=workers
    )
    memory = PeakMemory()
    memory.start()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HALO_FORGE_PREPARED"] = f"{scratch}/prepared"
        started, used = time.monotonic(), os.times()
        with RunDirectory.open(Path(scratch) / "run") as run:
            prepared = prepare(Config(data=data), run, tokenizer)
        wall_s, now = time.monotonic() - started, os.times()
        started = time.monotonic()
        with RunDirectory.open(Path(scratch) / "again") as run:
            prepare(Config(data=data), run, tokenizer)
        again_s = time.monotonic() - started
    memory.done = True
    fields = ("user", "system", "children_user", "children_system")
    cpu_s = sum(getattr(now, name) - getattr(used, name) for name in fields)
    source = prepared.sources[0]
    return {
        "rows": source.read, "kept": source.kept, "reasons": prepared.reasons,
        "wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "cpu_us_per_row": round(1e6 * cpu_s / source.read),
        "second_run_s": round(again_s, 2), "peak_bytes": memory.peak_bytes,
        "tokens": sum(split.tokens for split in prepared.splits.values()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("build", "run", "once"))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--source", type=Path, required=True, help="GSM8K training rows (JSONL: question, answer)")
    parser.add_argument("--benchmarks", type=Path, help="tree that holds openai/gsm8k; default: beside --source")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--workers", type=int)
    asked = parser.parse_args()
    benchmarks = asked.benchmarks or asked.source.parent / "benchmarks"
    if asked.command == "build":
        print(build(asked.rows, asked.source, benchmarks, asked.out))
    elif asked.command == "once":
        print(json.dumps(run_once(asked.out, benchmarks, asked.model, asked.workers)))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            rows_file = Path(scratch) / "rows.jsonl"
            planted = build(asked.rows, asked.source, benchmarks, rows_file)
            command = [sys.executable, __file__, "once", "--source", asked.source, "--benchmarks", benchmarks,
                       "--out", rows_file, "--model", asked.model]  # fmt: skip
            command += ["--workers", str(asked.workers)] if asked.workers is not None else []
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode:
                raise SystemExit(answer.stderr)
            result = json.loads(answer.stdout.splitlines()[-1]) | {"planted": planted}
        record(result)


def record(result: dict[str, Any]) -> None:
    """Add the result to the committed file, one entry a number of rows."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    known[str(result["rows"])] = result | machine
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=2) + "\n")
    print(json.dumps(known[str(result["rows"])], indent=2))


if __name__ == "__main__":
    main()
