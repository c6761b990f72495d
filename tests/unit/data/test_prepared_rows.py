"""Splits of a run as the rows of another: byte for byte the same, with nothing done to them twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import PreparedData
from halo_forge.config import Config
from halo_forge.data import check_file, prepare
from halo_forge.errors import DataError
from halo_forge.runs import RunDirectory
from training_runs import write_rows

SPLITS = ("train", "validation", "holdout")
KEY = "AKIA" + "ABCDEFGH23456723"
COUNT = "please count slowly and carefully from one up to the number {} and then stop right there"
"""Two of these are no copies of each other, but near enough for an added row to be left out for a held-out one."""


@pytest.fixture
def first(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> tuple[Path, PreparedData]:
    rows = write_rows(tmp_path / "rows.jsonl", 80)
    with open(rows, "a") as file:
        for number in range(20):
            messages = [
                {"role": "system", "content": "You count."},
                {"role": "user", "content": f"{COUNT.format(number)} with the key {KEY}"},
                {"role": "assistant", "content": f"so many: {number}", "weight": 0.5},
            ]
            file.write(json.dumps({"messages": messages, "slices": {"kind": "count"}, "weight": 2.0}) + "\n")
    run = tmp_path / "first"
    data = {
        "train_file": str(rows), "validation_split": 0.2, "holdout_split": 0.3, "max_seq_length": 256,
        "system_prompt": "You are tiny.",
    }  # fmt: skip
    return run, prepared(run, data, tiny_tokenizer)


def prepared(run: Path, data: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    with RunDirectory.open(run) as directory:
        return prepare(Config.model_validate({"data": data}), directory, tokenizer)


def split_file(run: Path, name: str) -> Path:
    return run / f"data/{name}.conversations.jsonl"


def taken_over(run: Path, added: Path) -> dict[str, Any]:
    return {
        "format": "prepared",
        "sources": [
            {"path": str(split_file(run, "train")), "format": "prepared", "name": "before"},
            {"path": str(added), "name": "added"},
        ],
        "validation_file": str(split_file(run, "validation")),
        "holdout_file": str(split_file(run, "holdout")),
        "max_seq_length": 256,
        "system_prompt": "You are tiny.",
    }


def test_splits_that_are_taken_over_keep_every_byte(
    first: tuple[Path, PreparedData], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    run, before = first
    added = tmp_path / "added.jsonl"
    added.write_text('{"question": "what is entirely new here?", "answer": "this row"}\n')
    after = prepared(tmp_path / "second", taken_over(run, added), tiny_tokenizer)
    for name in ("validation", "holdout"):
        assert after.splits[name].sha256 == before.splits[name].sha256
        assert split_file(tmp_path / "second", name).read_bytes() == split_file(run, name).read_bytes()
        assert after.splits[name].examples_sha256 == before.splits[name].examples_sha256
    old, new = (split_file(place, "train").read_bytes() for place in (run, tmp_path / "second"))
    assert new.startswith(old)
    assert b"what is entirely new here?" in new.removeprefix(old)
    assert new.removeprefix(old).count(b"\n") == 1


def test_rows_taken_over_stay_though_they_are_like_held_out_ones_and_added_ones_go(
    first: tuple[Path, PreparedData], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    run, before = first
    records = [json.loads(line) for line in split_file(run, "holdout").read_text().splitlines()]
    validated = [json.loads(line) for line in split_file(run, "validation").read_text().splitlines()]
    asked = [next(m for m in record["messages"] if m["role"] == "user")["parts"][0]["text"] for record in records]
    also = next(m for m in validated[0]["messages"] if m["role"] == "user")["parts"][0]["text"]
    added = tmp_path / "added.jsonl"
    lines = [{"question": f"  {question.upper()} ", "answer": "another answer"} for question in [*asked[:3], also]]
    lines.append({"question": "what is entirely new here?", "answer": "this row"})
    added.write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = prepared(tmp_path / "second", taken_over(run, added), tiny_tokenizer)
    assert after.splits["train"].rows == before.splits["train"].rows + 1
    assert after.splits["holdout"].sha256 == before.splits["holdout"].sha256
    ledger = [json.loads(line) for line in (tmp_path / "second/data/ledger.jsonl").read_text().splitlines()]
    codes = [entry["code"] for entry in ledger if entry["file"].endswith("added.jsonl")]
    assert codes[:4] == ["in_holdout"] * 3 + ["in_validation"]


def test_a_split_read_without_being_named_so_is_rows_like_others(tmp_path: Path) -> None:
    """Otherwise a file from anywhere, in the shape of a record, would pass every rule."""
    said = [("user", "my key?"), ("assistant", f"it is {KEY}")]
    record = {
        "id": "x", "tools": [], "slices": {}, "weight": 1.0, "source": {"path": "elsewhere", "line": 7},
        "messages": [{"role": role, "parts": [{"type": "text", "text": text}]} for role, text in said],
    }  # fmt: skip
    path = tmp_path / "record.jsonl"
    path.write_text(json.dumps(record) + "\n")
    found = check_file(str(path))
    assert found.sources[0]["format"] == "prepared"
    assert (found.kept, found.fixed, found.rows[0]["code"]) == (1, 1, "secret_key")
    assert check_file(str(path), "prepared").fixed == 0


def test_a_record_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    record = {"id": "x", "tools": [], "slices": {}, "weight": 1.0, "source": {"path": "a"}, "messages": [{"parts": 3}]}
    path.write_text(json.dumps(record) + "\n")
    found = check_file(str(path), "prepared")
    assert found.rows[0]["code"] == "bad_messages"
    assert "no record of a split" in found.rows[0]["reason"]
    assert not found.usable


def test_rows_of_another_kind_under_this_name_are_refused(tmp_path: Path) -> None:
    found = check_file(str(write_rows(tmp_path / "rows.jsonl", 3)), "prepared")
    assert found.kept == 0
    assert {row["code"] for row in found.rows} == {"missing_columns"}


def test_a_changed_split_is_seen(
    first: tuple[Path, PreparedData], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    from halo_forge.data import load_prepared

    run, _ = first
    path = split_file(run, "validation")
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match="changed after it was frozen"):
        load_prepared(RunDirectory(run))
