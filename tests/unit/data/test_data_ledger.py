"""Excerpts leak nothing; totals that do not add up stop the run; codes stand where they should."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.data.ledger import SECRET, SECRET_SIGNS, Entry, LineWriter, Summary, check_totals, redacted
from halo_forge.errors import DataError

SECRETS = [
    "ada.lovelace+x@example.co.uk",
    "sk-abcdefghijklmnopqrstuvwx",
    "hf_abcdefghijklmnopqrstuv",
    "ghp_abcdefghijklmnopqrstuvwxyz0123",
    "AKIAIOSFODNN7EXAMPLE",
    "xoxb-123456789012-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def_ghi",
    'password: "hunter2hunter2"',
    "api_key=abcdef123456",
    "Bearer abcdefghijklmnop",
    "-----BEGIN RSA PRIVATE KEY-----MIIEow",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_redacted(secret: str) -> None:
    text = redacted(f"please use {secret} for this")
    assert "[redacted]" in text
    assert not any(part in text for part in secret.replace('"', " ").split() if len(part) > 9)


@pytest.mark.parametrize("text", ["cls_token and eos_token", "a@b", "the token count is 5", "2 + 2 = 4", "sk-learn"])
def test_ordinary_text_is_not(text: str) -> None:
    assert redacted(text) == text


def test_excerpts_are_short_and_printable() -> None:
    text = redacted("\x1b[31m\u202e" + "x" * 300)
    assert len(text) <= 120
    assert text.isprintable()
    assert "hunter" not in redacted("y " * 190 + "password=hunter2aaaaaaaaaaaaaaaaaaaa"[:20])


def entries() -> list[Entry]:
    return [
        Entry(file="a", line=1, action="kept", split="train", excerpt="secret"),
        Entry(file="a", line=2, action="fixed", codes=("nul_removed", "turns_joined"), split="holdout", excerpt="x"),
        Entry(file="b", line=1, action="dropped", codes=("bad_json",), reason="column 1", excerpt="{"),
        Entry(file="b", line=2, action="kept", flags=("not_nfc",), split="train"),
    ]


def summary() -> Summary:
    summed = Summary()
    for entry in entries():
        summed.count(entry)
    return summed


def test_totals_and_reasons() -> None:
    totals = summary().totals()
    assert (totals.read, totals.kept, totals.fixed, totals.dropped) == (4, 3, 1, 1)
    assert summary().reason_counts() == {"bad_json": 1, "nul_removed": 1, "turns_joined": 1}
    assert summary().flagged == {"not_nfc": 1}
    assert summary().num_damaged == 1
    assert [entry.line for entry in summary().examples["not_nfc"]] == [2]


def test_rows_counted_many_at_a_time_are_counted_alike() -> None:
    one_by_one, at_once = Summary(), Summary()
    for number in range(5):
        one_by_one.count(Entry(file="a", line=number, action="kept", split="train" if number else "holdout"))
    at_once.count_kept("a", Counter({"train": 4, "holdout": 1}))
    assert (one_by_one.by_file, one_by_one.by_split) == (at_once.by_file, at_once.by_split)


def test_totals_that_add_up_pass_and_others_stop_the_run() -> None:
    check_totals(summary(), {"a": 2, "b": 2}, {"train": 2, "validation": 0, "holdout": 1})
    for read, splits in [
        ({"a": 3, "b": 2}, {"train": 2, "holdout": 1}),
        ({"a": 2, "b": 2, "c": 1}, {"train": 2, "holdout": 1}),
        ({"a": 2}, {"train": 2, "holdout": 1}),
        ({"a": 2, "b": 2}, {"train": 1, "holdout": 1}),
        ({"a": 2, "b": 2}, {"train": 2}),
        ({"a": 2, "b": 2}, {"train": 2, "holdout": 1, "validation": 1}),
    ]:
        with pytest.raises(DataError, match="does not add up"):
            check_totals(summary(), read, splits)


def test_the_file_appears_whole_with_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = LineWriter(path)
    for entry in entries():
        writer.write_json(entry.to_dict())
    assert not path.exists()
    assert writer.close() == hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(line) for line in lines] == [["file", "line", "action", "code", "reason", "split", "excerpt"]] * 4
    assert lines[0]["excerpt"] is None, "rows that are kept as they are show nothing"
    assert lines[1]["code"] == "nul_removed,turns_joined"
    assert lines[2] | {"reason": "column 1", "excerpt": "{"} == lines[2]
    assert lines[3]["code"] == "not_nfc"
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]


@settings(max_examples=300, deadline=None)
@given(text=st.from_regex(SECRET))
def test_whatever_the_pattern_finds_has_a_sign_of_it(text: str) -> None:
    """The signs are looked for first; a secret without one would be printed."""
    assert any(sign in text.casefold() for sign in SECRET_SIGNS)
