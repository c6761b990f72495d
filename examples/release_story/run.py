"""A model's life in one script: released, a worse one refused, a better one released, an alarm, a rollback.

    python examples/release_story/run.py [--write-docs docs/release-story.md]

Run it in a checkout. Each command is what a user would type, and is printed with its exit code and what it answered.
`runs/release_story/transcript.jsonl` keeps them: a stopped story goes on where it stopped. A command that ends
otherwise than the story needs stops it, and nothing is written to the docs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = Path("examples/docstring_json.jsonl")
PLACE = Path("runs/release_story")
CONFIG = "examples/release_story/story.yaml"
REGISTRY = f"--registry {PLACE}/registry"
NUM_FIRST, NUM_ALL, NUM_A_DAY, NUM_HELD_OUT = 40, 104, 100, 60
WIDTH_CHARS = 100
Row = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What a person is told between commands."""

    text: str


@dataclass(frozen=True)
class Prepared:
    """Files that the next command needs. Called at every start: it writes the same bytes again."""

    write: Callable[[], None]


@dataclass(frozen=True)
class Command:
    """`exit_code` is the one that the story needs."""

    line: str
    exit_code: int = 0


def train(name: str, exit_code: int) -> Command:
    sets = f"--set data.train_file={PLACE}/{name}/rows.jsonl --set output.dir={PLACE}/{name}/run"
    return Command(f"halo-forge run {CONFIG} {sets}", exit_code)


def serve(name: str, day: str, max_new_tokens: int) -> Command:
    """The released model answers a day's prompts: this stands for the server."""
    return Command(
        f"halo-forge generate --run {PLACE}/{name}/run --prompts {PLACE}/{day}.prompts.jsonl --samples 1 "
        f"--temperature 0 --max-new-tokens {max_new_tokens} --keep all --output {PLACE}/{day}.jsonl"
    )


def watch(version: int, log: str, exit_code: int) -> Command:
    return Command(
        f"halo-forge monitor watch {PLACE}/registry/stub-json/v{version} {PLACE}/{log}.jsonl "
        f"--state {PLACE}/monitor-v{version} --config {CONFIG}",
        exit_code,
    )


STORY: tuple[str | Told | Prepared | Command, ...] = (
    "A first version",
    Told(
        f"A model that describes Python stubs as JSON, from {NUM_FIRST} rows. {NUM_HELD_OUT} other rows are held out "
        "for every version. The gate asks for answers that fit the schema, for a gain on the base model, and for no "
        "loss against what is released; nothing is yet."
    ),
    Prepared(lambda: write_rows("first", rows()[:NUM_FIRST])),
    train("first", 0),
    Command(f"halo-forge gate {PLACE}/first/run"),
    "A worse one, refused",
    Told(
        f"Now there are {NUM_ALL} rows. But the export that brought them joined questions and answers off by one: "
        "every answer is well-formed JSON, and belongs to the question before. No check of single rows can see that."
    ),
    Prepared(lambda: write_rows("second", slipped(rows()[:NUM_ALL]))),
    Command(f"halo-forge data check {PLACE}/second/rows.jsonl"),
    train("second", 4),
    Command(f"halo-forge gate {PLACE}/second/run", 4),
    Told("What changed since v1, as the gate says? All rows that v1 learned from are gone, which nobody asked for:"),
    Command(f"halo-forge data diff {PLACE}/first/run {PLACE}/second/run"),
    Told("Exit code 4 stops a pipeline. What was refused has no version; users still have v1."),
    Command(f"halo-forge models list {REGISTRY}"),
    "A better one, released",
    Told("The same rows, joined rightly. Nothing else is changed."),
    Prepared(lambda: write_rows("third", rows()[:NUM_ALL])),
    train("third", 0),
    Command(f"halo-forge gate {PLACE}/third/run"),
    Command(f"halo-forge models list {REGISTRY}"),
    Told("What changed from one version to the next, and what that did:"),
    Command(f"halo-forge models diff stub-json v1 v2 {REGISTRY}"),
    "A day in production",
    Told(f"v2 answers {NUM_A_DAY} prompts that it has not seen; the monitor reads the server's log."),
    Prepared(lambda: write_prompts("monday", 0)),
    serve("third", "monday", 80),
    Prepared(lambda: write_log("log2", "monday")),
    watch(2, "log2", 0),
    "An alarm",
    Told("On the next day the server is set up anew, with `max_tokens` 24. Nobody sees that; the log goes on."),
    Prepared(lambda: write_prompts("tuesday", 1)),
    serve("third", "tuesday", 24),
    Prepared(lambda: write_log("log2", "monday", "tuesday")),
    watch(2, "log2", 4),
    Told(
        "Prompts are as they were, answers are not: whatever it is came with what was rolled out, not with what users "
        "ask. So the roll-out goes back first, and is looked into afterwards."
    ),
    "A rollback",
    Command(f"halo-forge models rollback stub-json {REGISTRY}"),
    Command(f"halo-forge models list {REGISTRY}"),
    Told("v1 answers again, on a server that is set up as it was:"),
    Prepared(lambda: write_prompts("wednesday", 2)),
    serve("first", "wednesday", 80),
    Prepared(lambda: write_log("log1", "wednesday")),
    watch(1, "log1", 0),
    Told("The registry kept all of it:"),
    Command(f"halo-forge models changelog stub-json {REGISTRY}"),
    Command(f"halo-forge models verify {REGISTRY}"),
)


# ---------------------------------------------------------------------------------------------- files


def rows() -> list[Row]:
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def slipped(right: list[Row]) -> list[Row]:
    """Each question with the answer of the one before it."""
    answers = [row["messages"][-1] for row in right]
    shifted = [answers[-1], *answers[:-1]]
    return [{**row, "messages": [*row["messages"][:-1], answer]} for row, answer in zip(right, shifted, strict=True)]


def write_rows(name: str, chosen: list[Row]) -> None:
    write(PLACE / name / "rows.jsonl", chosen)
    write(PLACE / "holdout.jsonl", rows()[-NUM_HELD_OUT:])


def write_prompts(day: str, number: int) -> None:
    start = NUM_ALL + number * NUM_A_DAY
    write(PLACE / f"{day}.prompts.jsonl", [{"messages": row["messages"][:1]} for row in rows()[start:][:NUM_A_DAY]])


def write_log(name: str, *days: str) -> None:
    """The server's log of these days."""
    lines = []
    for day in days:
        for at, line in enumerate((PLACE / f"{day}.jsonl").read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            asked, answer = (row["messages"][index]["content"] for index in (-2, -1))
            reason = "stop" if row["generation"]["stopped"] else "length"
            lines.append({"id": f"{day}-{at}", "prompt": asked, "answer": answer, "finish_reason": reason})
    write(PLACE / f"{name}.jsonl", lines)


def write(path: Path, lines: list[Row]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------------------------------- telling


def run(command: Command) -> Row:
    """Run it where the user would; progress goes to the terminal, what it answers into the record."""
    words = shlex.split(command.line)
    program = str(Path(sys.executable).with_name(words[0]))
    began, cpu_before_s = time.monotonic(), cpu_of_children_s()
    answer = subprocess.run(
        [program, *words[1:]], stdout=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"COLUMNS": str(WIDTH_CHARS)},
    )  # fmt: skip
    return {
        "command": command.line, "exit_code": answer.returncode, "stdout": answer.stdout,
        "time_s": time.monotonic() - began, "cpu_s": cpu_of_children_s() - cpu_before_s,
    }  # fmt: skip


def cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tell(transcript: Path) -> Iterator[str | Told | Row]:
    """Headings, words and records of commands; each command is run unless the transcript has it. What it has of
    another story, after the first command that differs, is forgotten."""
    known = [json.loads(line) for line in transcript.read_text().splitlines()] if transcript.is_file() else []
    kept: list[Row] = []
    for step in STORY:
        if isinstance(step, Prepared):
            step.write()
        elif isinstance(step, Command):
            print(f"\n$ {broken(step.line)}", flush=True)
            if known and known[0]["command"] == step.line:
                record = known.pop(0)
            else:
                known, record = [], run(step)
            if record["exit_code"] != step.exit_code:
                print(record["stdout"], end="")
                sys.exit(f"exit code {record['exit_code']}, the story needs {step.exit_code}")
            kept.append(record)
            write(transcript, kept + known)
            yield record
        else:
            yield step


def broken(line: str) -> str:
    """A long command over several lines, parted before its options."""
    lines: list[str] = []
    for part in line.replace(" --", "\n--").split("\n"):
        if lines and len(lines[-1]) + 1 + len(part) <= WIDTH_CHARS - 4:
            lines[-1] += " " + part
        else:
            lines.append(part)
    return " \\\n    ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-docs", type=Path, metavar="FILE", help="Write what was told to FILE.")
    parser.add_argument("--note", default="", metavar="TEXT", help="A sentence for the docs on how this was run.")
    parser.add_argument("--fresh", action="store_true", help="Begin anew; the old story is kept beside.")
    given = parser.parse_args()
    if not ROWS.is_file():
        sys.exit(f"{ROWS} is not here: run this in a checkout of halo-forge")
    if given.fresh and PLACE.is_dir():
        PLACE.rename(PLACE.with_name(f"{PLACE.name}.{int(time.time())}"))
    PLACE.mkdir(parents=True, exist_ok=True)
    page: list[str] = []
    total_s = 0.0
    for part in tell(PLACE / "transcript.jsonl"):
        if isinstance(part, str):
            print(f"\n{part}\n{'=' * len(part)}")
            page.append(f"## {part}\n")
        elif isinstance(part, Told):
            print(f"\n{textwrap.fill(part.text, WIDTH_CHARS)}")
            page.append(f"{part.text}\n")
        else:
            total_s += part["time_s"]
            ended = f"[exit code {part['exit_code']}, {part['time_s']:.0f} s]"
            print(f"{part['stdout']}{ended}", flush=True)
            page.append(f"```text\n$ {broken(part['command'])}\n{part['stdout']}{ended}\n```\n")
    print(f"\n{total_s / 60:.1f} minutes in all")
    if given.write_docs is not None:
        given.write_docs.write_text(headed(page, total_s, given.note), encoding="utf-8")


def headed(page: list[str], total_s: float, note: str) -> str:
    head = f"""# A release story

<!-- written by `python examples/release_story/run.py --write-docs docs/release-story.md`, from what really ran -->

One model is released, a worse one refused, a better one released, watched and rolled back. The script
[examples/release_story/run.py](../examples/release_story/run.py) types all commands, with one configuration,
[story.yaml](../examples/release_story/story.yaml). Below each stands what it answered on stdout at {WIDTH_CHARS}
columns; progress, which goes to stderr, is left out. `python examples/release_story/run.py` tells it on your machine.
This run took {total_s / 60:.0f} minutes on {os.cpu_count()} cores without a GPU. {note}
"""
    return "\n".join([head.replace(" \n", "\n"), *page])


if __name__ == "__main__":
    main()
