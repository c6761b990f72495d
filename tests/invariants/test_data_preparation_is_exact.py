"""The prepared files are a function of the inputs: not of processes, batches, kills or the store."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from halo_forge.artifacts import PreparedData
from halo_forge.chat import Example, read_examples
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import load_prepared, prepare
from halo_forge.data.prepared_store import MAX_SETS, store_directory
from halo_forge.errors import DataError, Interrupted
from halo_forge.runs import RunDirectory, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "holdout")
FILES = (
    *(f"data/{split}.conversations.jsonl" for split in SPLITS),
    *(f"data/{split}.examples.arrow" for split in SPLITS),
    "data/ledger.jsonl",
    "data/quarantine.jsonl",
)
WORDS = re.findall(r"\w+", "red green blue round heavy light small large old new wooden paper silver quiet loud late")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """1,200 rows: sound ones, exact and near copies, damaged lines, blank lines, several answers to one prompt."""
    pick = random.Random(7)
    lines: list[str] = []
    for number in range(1200):
        words = " ".join(pick.choice(WORDS) for _ in range(70))
        row = {"question": f"{number}: {words}?", "answer": f"It is {words.split()[0]} and {words.split()[3]}."}
        draw = pick.random()
        if draw < 0.05 and lines:
            lines.append(pick.choice(lines))
        elif draw < 0.1:
            lines += [json.dumps(row), json.dumps(row | {"question": row["question"].replace("red", "rot", 1)})]
        elif draw < 0.12:
            lines += [json.dumps(row), json.dumps(row | {"answer": "It is something else."})]
        elif draw < 0.14:
            lines.append(pick.choice(["{", '{"question": 3, "answer": "x"}', "", '{"question": "q", "answer": ""}']))
        else:
            lines.append(json.dumps(row))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def example_fields(example: Example) -> tuple[str, list[int], list[float]]:
    return example.conversation_id, example.input_ids.tolist(), example.loss_weights.tolist()


def config(rows: Path, **data: Any) -> Config:
    return Config(data=DataSection(train_file=str(rows), max_bad_fraction=0.1, on_bad_row="quarantine", **data))


def hashes(run: Path) -> dict[str, str]:
    return {name: sha256_file(run / name) for name in FILES}


def prepared_in(
    path: Path, settings: Config, tokenizer: Any, check: Callable[[], None] = lambda: None
) -> tuple[PreparedData, list[str]]:
    notes: list[str] = []
    with RunDirectory.open(path) as run:
        record = prepare(settings, run, tokenizer, lambda _, fields: notes.append(str(fields.get("text"))), check)
    return record, notes


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Every call starts with an empty store."""

    def forget() -> None:
        monkeypatch.setenv("HALO_FORGE_PREPARED", str(tmp_path / f"store{random.random()}"))

    forget()
    return forget


def test_any_number_of_processes_and_any_batches_give_the_same_files(
    rows: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, no_store: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("halo_forge.data.inputs.ROWS_PER_BATCH", 100)
    found = []
    for processes in (0, 1, 2):
        no_store()
        prepared_in(tmp_path / f"run{processes}", config(rows, num_workers=processes), tiny_tokenizer)
        found.append(hashes(tmp_path / f"run{processes}"))
    monkeypatch.setattr("halo_forge.data.inputs.ROWS_PER_BATCH", 37)
    no_store()
    record, _ = prepared_in(tmp_path / "other", config(rows), tiny_tokenizer)
    assert found[0] == found[1] == found[2]
    other = hashes(tmp_path / "other")
    assert {name for name in FILES if other[name] != found[0][name]} <= {f"data/{s}.examples.arrow" for s in SPLITS}
    for split in SPLITS:  # Arrow's files are written batch by batch; what is in them is the same
        one, two = (read_examples(tmp_path / run / f"data/{split}.examples.arrow") for run in ("run0", "other"))
        assert [example_fields(example) for example in one] == [example_fields(example) for example in two]
    assert {"duplicate", "near_duplicate", "bad_json", "bad_content_type", "empty_content"} <= record.reasons.keys()
    assert any(finding.code == "contradiction" for finding in record.findings)


def test_interrupted_anywhere_and_run_again_gives_the_same_files(
    rows: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, no_store: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("halo_forge.data.inputs.ROWS_PER_BATCH", 100)
    prepared_in(tmp_path / "whole", config(rows), tiny_tokenizer)
    no_store()
    made: list[Path] = []
    write = sys.modules["halo_forge.data.workers"].write_part

    def counting(path: Path, *rest: Any) -> Any:
        made.append(path)
        return write(path, *rest)

    monkeypatch.setattr("halo_forge.data.workers.write_part", counting)
    for stop_after in (1, 3, 4):
        calls = iter(range(stop_after))

        def stop(calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise Interrupted("stopped")

        with pytest.raises(Interrupted):
            prepared_in(tmp_path / "again", config(rows), tiny_tokenizer, stop)
    prepared_in(tmp_path / "again", config(rows), tiny_tokenizer)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "whole")
    assert len(made) == len(set(made)), "no part is made twice"


COMMAND = [sys.executable, "-m", "halo_forge.cli.main", "data", "prepare"]


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again_gives_the_same_files(
    rows: Path, tmp_path: Path, tiny_model_dir: Path, no_store: Callable[[], None]
) -> None:
    """The real command, its workers included, killed by SIGKILL; none of its processes stays."""
    import psutil

    def command(run: str) -> list[str]:
        settings = ["--set", "data.max_bad_fraction=0.1", "--set", "data.on_bad_row=quarantine"]
        return [*COMMAND, "--data", str(rows), "--model", str(tiny_model_dir), "-o", str(tmp_path / run),
                "--set", "data.num_workers=1", *settings]  # fmt: skip

    started = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True)
    whole_s = time.monotonic() - started
    no_store()
    pick = random.Random(3)
    for _ in range(2):
        process = subprocess.Popen(command("again"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole_s * pick.uniform(0.4, 0.95))
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, "workers end with their parent"
        shutil.rmtree(tmp_path / "again", ignore_errors=True)  # what is taken up lies in the store
    subprocess.run(command("again"), check=True, capture_output=True)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "whole")


def test_the_same_inputs_are_prepared_once_and_anything_else_anew(
    rows: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, no_store: Callable[[], None]
) -> None:
    first, _ = prepared_in(tmp_path / "a", config(rows), tiny_tokenizer)
    second, notes = prepared_in(tmp_path / "b", config(rows), tiny_tokenizer)
    assert any("taken from the store" in note for note in notes)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert second.splits == first.splits
    for change in (
        {"max_seq_length": 1500},
        {"train_on": "all"},
        {"holdout_split": 0.2},
        {"policies": {"duplicate": "keep"}},
    ):
        _, notes = prepared_in(tmp_path / f"c{change}", config(rows, **change), tiny_tokenizer)
        assert not any("taken from the store" in note for note in notes), change
    with open(rows, "a") as file:
        file.write('{"question": "One more?", "answer": "One more."}\n')
    record, notes = prepared_in(tmp_path / "d", config(rows), tiny_tokenizer)
    assert not any("taken from the store" in note for note in notes)
    assert record.sources[0].read == first.sources[0].read + 1


@pytest.mark.parametrize("name", ["train.examples.arrow", "holdout.conversations.jsonl", "ledger.jsonl"])
def test_a_damaged_set_is_made_again(
    rows: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, no_store: Callable[[], None], name: str
) -> None:
    prepared_in(tmp_path / "a", config(rows), tiny_tokenizer)
    (stored,) = [path for path in store_directory().iterdir() if path.is_dir()]
    path = stored / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    prepared_in(tmp_path / "b", config(rows), tiny_tokenizer)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    with RunDirectory.open(tmp_path / "b") as run:
        load_prepared(run)


def test_large_files_are_linked_and_a_change_in_a_run_is_noticed_by_the_next(
    rows: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, no_store: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("halo_forge.data.prepared_store.LINKED_BYTES", 1)
    prepared_in(tmp_path / "a", config(rows), tiny_tokenizer)
    path = tmp_path / "a" / "data" / "train.examples.arrow"
    assert path.stat().st_nlink == 2
    before = hashes(tmp_path / "a")
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    with RunDirectory.open(tmp_path / "a") as run, pytest.raises(DataError, match="changed after it was frozen"):
        load_prepared(run)
    prepared_in(tmp_path / "b", config(rows), tiny_tokenizer)
    assert hashes(tmp_path / "b") == before


def test_old_sets_make_room(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, no_store: Callable[[], None]
) -> None:
    for number in range(MAX_SETS + 3):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps({"question": f"Why {number}?", "answer": "Because."}) + "\n")
        prepared_in(tmp_path / f"run{number}", config(path), tiny_tokenizer)
    assert sum(path.is_dir() for path in store_directory().iterdir()) == MAX_SETS


def test_two_processes_with_the_same_rows_share_the_work(
    rows: Path, tmp_path: Path, tiny_model_dir: Path, no_store: Callable[[], None]
) -> None:
    settings = ["--set", "data.max_bad_fraction=0.1"]
    commands = [
        [*COMMAND, "--data", str(rows), "--model", str(tiny_model_dir), "-o", str(tmp_path / name), *settings]
        for name in ("one", "two")
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert sum("taken from the store" in text for text in told) == 1, told
