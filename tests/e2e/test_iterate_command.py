"""Inspect, write rows, iterate, through the real command line: a tiny model that was never shown one kind of question
learns it from added rows, on the same validation rows and holdout.

One run is made once and shared; a test that changes something works on a copy of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.cli.main import build
from training_runs import WORDS, final_weights

HALO_FORGE = Path(sys.executable).with_name("halo-forge")


def write_kind(path: Path, kind: str, answer: str, numbers: range, mode: str = "w") -> None:
    with open(path, mode) as file:
        for n in numbers:
            words = f"{WORDS[n % 10]} {WORDS[(n * 7 + n // 10) % 10]}"
            row = {"question": f"{kind} {words} {n}?", "answer": answer, "slices": {"kind": kind}}
            file.write(json.dumps(row) + "\n")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def result_of(*arguments: str | Path) -> dict[str, Any]:
    answer = invoke(*arguments, "--json")
    assert answer.exit_code == 0, answer.output
    return dict(json.loads(answer.stdout))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """Rows on one kind of question, a run on them, and rows on the other kind, which it fails."""
    root = tmp_path_factory.mktemp("iterate")
    write_kind(root / "train.jsonl", "count", "Seven", range(64))
    write_kind(root / "added.jsonl", "name", "Paris", range(300, 364))
    for name, numbers in (("validation", range(100, 112)), ("holdout", range(200, 216))):
        write_kind(root / f"{name}.jsonl", "count", "Seven", numbers)
        write_kind(root / f"{name}.jsonl", "name", "Paris", numbers, "a")
    values = {
        "model": {"name": str(tiny_model_dir)},
        "data": {
            **{f"{name}_file": str(root / f"{name}.jsonl") for name in ("train", "validation", "holdout")},
            "max_seq_length": 128,
        },
        "training": {
            "num_train_epochs": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
            "learning_rate": 1e-2, "bf16": False, "preflight": False,
        },
        "lora": {"r": 16, "dropout": 0.0},
        "output": {"dir": str(root / "out"), "save_steps": 4},
        "evaluation": {"max_new_tokens": 8, "bootstrap_samples": 200, "sample_prompts": 0},
        "gate": {"rules": [{"metric": "exact_match", "min": 0.9}]},
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(values))
    answer = invoke("run", root / "config.yaml", "--until", "gate", "--json")
    assert answer.exit_code in (0, 4, 5), answer.output
    return root


@pytest.fixture(scope="module")
def iterated(place: Path) -> dict[str, Any]:
    return result_of("iterate", place / "out", "--rows", place / "added.jsonl")


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """The run without what other tests made of it."""
    leave = shutil.ignore_patterns("inspect")
    return Path(shutil.copytree(place / "out", tmp_path / "out", symlinks=True, ignore=leave))


# ------------------------------------------------------------------------------------------------ inspect


def test_inspect_finds_the_kind_of_question_that_fails(place: Path) -> None:
    found = result_of("inspect", place / "out")
    assert (found["num_judged"], found["num_failed"], found["num_right"]) == (24, 12, 12)
    assert sum(cluster["num"] for cluster in found["clusters"]) == 12
    for cluster in found["clusters"]:
        assert "kind=name" in cluster["labels"] or cluster["num"] == 1
        assert all(example["prompt"].startswith("name ") for example in cluster["examples"])
    lines = (place / "out/inspect/rows.template.jsonl").read_text().splitlines()
    assert len(lines) == found["num_template_rows"] == 50
    answers = [json.loads(line) for line in (place / "out/inspect/answers.jsonl").read_text().splitlines()]
    assert [answer["right"] for answer in answers] == [answer["expected"] == "Seven" for answer in answers]
    assert (place / "out/inspect/failures.html").read_text().startswith("<!doctype html>")


def test_inspect_shows_no_held_out_prompt(place: Path) -> None:
    result_of("inspect", place / "out")
    held = [json.loads(line)["question"] for line in (place / "holdout.jsonl").read_text().splitlines()]
    written = [path for path in (place / "out/inspect").rglob("*") if path.is_file()]
    assert len(written) >= 5
    for path in written:
        text = path.read_text(errors="replace")
        assert not [question for question in held if question in text], path


def test_inspect_again_says_the_same_and_asks_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = result_of("inspect", place / "out")
    files = ("answers.jsonl", "rows.template.jsonl")
    before = [(place / "out/inspect" / name).read_bytes() for name in files]
    asked: list[int] = []

    def counted(model: object, prompts: list[object], **_: object) -> None:
        asked.append(len(prompts))

    monkeypatch.setattr("halo_forge.evaluate.measure.generate", counted)
    again = result_of("inspect", place / "out")
    assert asked == [0]
    assert again["clusters"] == first["clusters"]
    assert before == [(place / "out/inspect" / name).read_bytes() for name in files]


def test_inspect_dry_run_writes_nothing(copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    plan = result_of("inspect", copy, "--dry-run")
    assert (plan["num_rows"], plan["num_prompts"]) == (24, 24)
    answer = invoke("inspect", copy, "--dry-run")
    assert "Nothing was asked or written" in answer.stdout
    assert sorted(copy.rglob("*")) == before


def test_inspect_goes_to_another_directory_and_by_another_metric(copy: Path, tmp_path: Path) -> None:
    found = result_of("inspect", copy, "--output", tmp_path / "there", "--metric", "stop_rate", "--clusters", "1")
    assert found["metric"] == "stop_rate"
    assert len(found["clusters"]) <= 1
    assert (tmp_path / "there/failures.json").is_file()
    assert not (copy / "inspect").exists()
    answer = invoke("inspect", copy, "--metric", "perplexity")
    assert answer.exit_code == 2
    assert not list(copy.glob("inspect/*.html"))


def test_what_cannot_be_inspected_is_said_in_words(copy: Path, tmp_path: Path) -> None:
    answer = invoke("inspect", tmp_path)
    assert answer.exit_code == 2
    assert "not a run directory" in answer.output
    os.chmod(copy / "data/holdout.conversations.jsonl", 0o644)
    (copy / "data/validation.conversations.jsonl").write_text("{}\n")
    answer = invoke("inspect", copy)
    assert answer.exit_code == 3
    assert "changed after it was frozen" in answer.output
    assert "Traceback" not in answer.output


# ------------------------------------------------------------------------------------------------ iterate


def test_the_added_rows_mend_what_they_were_written_against(place: Path, iterated: dict[str, Any]) -> None:
    assert (iterated["num_read"], iterated["num_added"], iterated["left_out"]) == (64, 64, [])
    assert (iterated["num_train_rows_before"], iterated["num_train_rows"]) == (64, 128)
    assert iterated["num_failed_before"] == 12
    assert iterated["num_right_now"] >= 10
    assert sum(cluster["right_now"] for cluster in iterated["clusters"]) == iterated["num_right_now"]
    assert sum(cluster["failed"] for cluster in iterated["clusters"]) == 12
    assert iterated["num_right_before"] == 12
    rows = {row["metric"]: row for row in iterated["metrics"]}
    change = rows["exact_match"]["change"]
    assert change["base"]["value"] == 0.5
    assert change["delta"]["low"] > 0
    assert (change["delta"]["n"], change["test"]) == (32, "McNemar exact")
    assert rows["exact_match"]["base"]["value"] == 0.0


def test_both_runs_are_measured_on_the_same_bytes(place: Path, iterated: dict[str, Any]) -> None:
    new = Path(iterated["run"])
    assert new == place / "out-iter2"
    for name in ("validation", "holdout"):
        file = f"data/{name}.conversations.jsonl"
        assert (new / file).read_bytes() == (place / "out" / file).read_bytes()
    manifests = [json.loads((run / "data/manifest.json").read_text()) for run in (place / "out", new)]
    assert manifests[0]["splits"]["holdout"] == manifests[1]["splits"]["holdout"]
    reports = [json.loads((run / "eval/report.json").read_text()) for run in (place / "out", new)]
    assert reports[0]["holdout_sha256"] == reports[1]["holdout_sha256"] == iterated["holdout_sha256"]


def test_the_lineage_names_the_run_before_and_the_rows(place: Path, iterated: dict[str, Any]) -> None:
    import hashlib

    kept = json.loads((place / "out-iter2/iteration.json").read_text())
    assert kept == iterated
    inputs = kept["provenance"]["inputs"]
    trained = json.loads((place / "out/trained.json").read_text())
    assert inputs["parent"] == kept["parent_weights_sha256"] == trained["weights_sha256"]
    assert inputs["rows"] == hashlib.sha256((place / "added.jsonl").read_bytes()).hexdigest()
    assert kept["parent"] == str(place / "out")
    assert kept["weights_sha256"] == json.loads((place / "out-iter2/trained.json").read_text())["weights_sha256"]


def test_iterate_again_trains_nothing_and_says_the_same(place: Path, iterated: dict[str, Any]) -> None:
    before = final_weights(place / "out-iter2")
    answer = invoke("iterate", place / "out", "--rows", place / "added.jsonl")
    assert answer.exit_code == 0, answer.output
    assert "64 of 64 rows added to 64" in answer.stdout
    assert "are right now" in answer.stdout
    assert "exact_match" in answer.stdout
    assert final_weights(place / "out-iter2") == before


def test_an_iteration_is_a_run_that_can_be_inspected_and_iterated(place: Path, iterated: dict[str, Any]) -> None:
    more = place / "more.jsonl"
    write_kind(more, "name", "Paris", range(400, 410))
    plan = result_of("iterate", place / "out-iter2", "--rows", more, "--dry-run")
    assert plan["output"] == str(place / "out-iter3")
    assert (plan["num_added"], plan["num_train_rows_before"]) == (10, 128)
    assert not (place / "out-iter3").exists()


def test_rows_of_the_holdout_and_of_the_validation_rows_are_left_out(copy: Path, place: Path) -> None:
    rows = copy.parent / "rows.jsonl"
    shutil.copyfile(place / "added.jsonl", rows)
    taken = [(place / f"{name}.jsonl").read_text().splitlines()[-1] for name in ("holdout", "validation")]
    with open(rows, "a") as file:
        file.write("\n".join([*taken, *(place / "train.jsonl").read_text().splitlines()[:1]]) + "\n")
    plan = result_of("iterate", copy, "--rows", rows, "--dry-run")
    assert (plan["num_read"], plan["num_added"]) == (67, 64)
    only = copy.parent / "only.jsonl"
    only.write_text("\n".join(taken) + "\n")
    answer = invoke("iterate", copy, "--rows", only)
    assert answer.exit_code == 3
    assert "none of the 2 rows can be added" in answer.output
    assert "[in_holdout]" in answer.output
    assert not (copy.parent / "out-iter2").exists()


def test_unfilled_and_damaged_rows_are_refused_before_anything_is_made(copy: Path) -> None:
    result_of("inspect", copy)
    answer = invoke("iterate", copy, "--rows", copy / "inspect/rows.template.jsonl")
    assert answer.exit_code == 3
    assert "line 1: message 1 (user) is empty or white space only [empty_content]" in answer.output
    assert not (copy.parent / "out-iter2").exists()
    answer = invoke("iterate", copy, "--rows", copy / "nowhere.jsonl")
    assert answer.exit_code == 2
    assert invoke("iterate", copy, "--rows", copy / "run.json", "--output", copy).exit_code == 2


@pytest.mark.slow
def test_a_killed_iteration_goes_on_to_the_same_weights_and_with_no_other_rows(
    copy: Path, place: Path, iterated: dict[str, Any]
) -> None:
    rows = Path(shutil.copyfile(place / "added.jsonl", copy.parent / "rows.jsonl"))
    options = ["iterate", copy, "--rows", rows, "--output", copy.parent / "next"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    started = subprocess.Popen(
        [HALO_FORGE, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 200
    while not list(copy.parent.glob("next/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    begun = json.loads((copy.parent / "next/iteration.json").read_text())
    assert begun["weights_sha256"] == ""
    assert begun["parent"] == str(copy)
    found = result_of(*options)
    assert found["weights_sha256"] == iterated["weights_sha256"]
    assert found["clusters"] == iterated["clusters"]
    with open(rows, "a") as file:
        file.write('{"question": "name another one?", "answer": "Paris"}\n')
    answer = invoke(*options)
    assert answer.exit_code != 0
    assert "train[1]" in answer.output
