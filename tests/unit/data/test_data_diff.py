"""Two prepared sets against each other: rows by what they say, sources, settings, counts, in data and in words."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halo_forge.artifacts import PreparedData, Provenance, SourceReport, SplitReport
from halo_forge.chat.records import Conversation, Message, SourceRef, TextPart
from halo_forge.chat.store import write_conversations
from halo_forge.data.diff import MAX_EXAMPLES, PreparedDiff, diff_prepared
from halo_forge.errors import DataError
from halo_forge.runs import sha256_json, write_artifact, write_json

SPLIT_NAMES = ("train", "validation", "holdout")


def conversation(number: int, answer: str = "yes", file: str = "rows.jsonl", line: int | None = None) -> Conversation:
    question, text = f"Is {number} a number?", f"{answer} {number}"
    return Conversation(
        id=sha256_json([question, text]),
        messages=(
            Message(role="user", parts=(TextPart(text=question),)),
            Message(role="assistant", parts=(TextPart(text=text),)),
        ),
        source=SourceRef(path=file, line=line or number + 1),
    )


def prepared(
    path: Path,
    splits: dict[str, list[Conversation]],
    *,
    ledger: list[dict[str, Any]] | None = None,
    inputs: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A run directory as the data stage leaves it, without the examples."""
    reports = {}
    for name in SPLIT_NAMES:
        rows = splits.get(name, [])
        sha256 = write_conversations(path / f"data/{name}.conversations.jsonl", rows)
        reports[name] = SplitReport(
            rows=len(rows), tokens=10 * len(rows), supervised_tokens=4 * len(rows), sha256=sha256,
            conversations=f"data/{name}.conversations.jsonl", examples=f"data/{name}.examples.arrow",
        )  # fmt: skip
    (path / "data/ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger or []))
    source = SourceReport(path="rows.jsonl", sha256="a" * 64, format="messages", read=9, kept=9, fixed=0, dropped=0)
    values = {
        "sources": (source,), "reasons": {}, "splits": reports, "ledger": "data/ledger.jsonl", "model_name": "m",
        "template_sha256": "b" * 64, "tokenizer_sha256": "c" * 64, "max_seq_length": 512,
        "provenance": Provenance(
            created_at="2026-01-01T00:00:00+00:00", code_version="1", config_sha256="d" * 64, inputs=inputs or {}
        ),
    } | fields  # fmt: skip
    write_artifact(path / "data/manifest.json", PreparedData(**values))
    if settings is not None:
        write_json(path / "run.json", {"config": {"data": settings}})
    return path


def fates(diff: PreparedDiff) -> dict[tuple[str | None, str | None], int]:
    return {(change.before, change.after): change.rows for change in diff.rows}


def test_equal_sets_have_no_difference(tmp_path: Path) -> None:
    rows = {"train": [conversation(at) for at in range(5)], "holdout": [conversation(9)]}
    diff = diff_prepared(prepared(tmp_path / "a", rows), prepared(tmp_path / "b", rows))
    assert diff.is_empty
    assert diff.num_same == 6
    assert diff.words().splitlines()[-1] == "nothing changed"


def test_rows_added_removed_moved_and_kept(tmp_path: Path) -> None:
    a = prepared(
        tmp_path / "a",
        {"train": [conversation(at) for at in range(20)], "validation": [conversation(30)], "holdout": []},
    )
    b = prepared(
        tmp_path / "b",
        {
            "train": [conversation(at) for at in range(12)] + [conversation(at) for at in range(40, 47)],
            "validation": [conversation(12)],
            "holdout": [conversation(30), conversation(13, file="other.jsonl", line=1)],
        },
        ledger=[
            {"file": "rows.jsonl", "line": at + 1, "action": "dropped", "code": "near_duplicate"}
            for at in range(14, 20)
        ],
    )
    diff = diff_prepared(a, b)
    assert fates(diff) == {
        (None, "train"): 7,
        ("train", None): 6,
        ("train", "validation"): 1,
        ("train", "holdout"): 1,
        ("validation", "holdout"): 1,
    }
    assert diff.num_same == 12
    removed = next(change for change in diff.rows if change.after is None)
    assert len(removed.examples) == MAX_EXAMPLES
    assert {row.reason for row in removed.examples} == {"near_duplicate"}
    (moved,) = next(change for change in diff.rows if change.after == "validation").examples
    assert (moved.file, moved.line, moved.excerpt) == ("rows.jsonl", 13, "Is 12 a number? / yes 12")
    split = {change.name: change for change in diff.splits}
    assert split["train"].before == {"rows": 20, "tokens": 200, "supervised_tokens": 80}
    assert split["holdout"].after == {"rows": 2, "tokens": 20, "supervised_tokens": 8}
    words = diff.words()
    assert "train: 20 -> 19 rows, 200 -> 190 tokens, 80 -> 76 trained tokens" in words
    assert "1 row moved from validation to holdout" in words
    assert "(now near_duplicate)" in words
    assert json.loads(json.dumps(diff.to_dict()))["num_same"] == 12


def test_a_mended_answer_is_another_row_and_excerpts_are_redacted(tmp_path: Path) -> None:
    a = prepared(tmp_path / "a", {"train": [conversation(1, "mail ann@example.org:")]})
    b = prepared(tmp_path / "b", {"train": [conversation(1, "no")]})
    diff = diff_prepared(a, b)
    assert fates(diff) == {(None, "train"): 1, ("train", None): 1}
    assert "ann@example.org" not in json.dumps(diff.to_dict())
    assert "[redacted]" in diff.words()


def test_sources_reasons_settings_and_encoding(tmp_path: Path) -> None:
    rows = {"train": [conversation(1)]}
    source = SourceReport(path="rows.jsonl", sha256="a" * 64, format="messages", read=9, kept=9, fixed=0, dropped=0)
    a = prepared(
        tmp_path / "a",
        rows,
        sources=(source, replace_source(source, path="old.jsonl"), replace_source(source, path="same.jsonl")),
        reasons={"duplicate": 3, "bad_json": 1},
        inputs={"train[0]": "1", "data.format": "1", "data.overlong": "2", "code": "1", "written:x": "1"},
        settings={"format": "auto", "overlong": "drop", "num_workers": None},
    )
    b = prepared(
        tmp_path / "b",
        rows,
        sources=(
            replace_source(source, sha256="e" * 64, kept=8, dropped=1, train_tokens=70),
            replace_source(source, path="new.jsonl"),
            replace_source(source, path="same.jsonl"),
        ),
        reasons={"duplicate": 5, "pii_email": 2},
        inputs={"train[0]": "2", "data.format": "9", "data.overlong": "2", "code": "2", "written:x": "2"},
        settings={"format": "messages", "overlong": "drop", "num_workers": 4, "policies": {}},
        template_sha256="f" * 64,
        max_seq_length=1024,
    )
    diff = diff_prepared(a, b)
    assert {change.path: change.kind for change in diff.sources} == {
        "rows.jsonl": "changed",
        "old.jsonl": "removed",
        "new.jsonl": "added",
    }
    assert {change.name: (change.before, change.after) for change in diff.reasons} == {
        "duplicate": (3, 5),
        "bad_json": (1, 0),
        "pii_email": (0, 2),
    }
    assert {change.name: (change.before, change.after) for change in diff.settings} == {
        "data.format": ("auto", "messages"),
        "code": ("sha256 1", "sha256 2"),
        "data.num_workers": (None, 4),
    }
    assert [change.name for change in diff.encoding] == ["chat template", "max_seq_length"]
    words = diff.words()
    for line in (
        "rows.jsonl: other content, 9 -> 8 kept, 0 -> 1 dropped, 0 -> 70 train tokens",
        "old.jsonl: removed (9 rows)",
        "new.jsonl: added (9 rows)",
        "duplicate: 3 -> 5 rows",
        "data.format: auto -> messages",
        f"chat template: sha256 {'b' * 12} -> sha256 {'f' * 12}",
    ):
        assert f"  {line}" in words.splitlines()


def replace_source(source: SourceReport, **fields: Any) -> SourceReport:
    return source.model_copy(update=fields)


def test_a_manifest_of_the_first_release_is_read(tmp_path: Path) -> None:
    """Without the fields that came later, and without run.json."""
    a = prepared(tmp_path / "a", {"train": [conversation(1)]}, inputs={"data.format": "1"})
    manifest = json.loads((a / "data/manifest.json").read_text())
    for name in ("findings", "duplicates", "contamination", "languages", "length_counts", "advice", "prepare_time_s"):
        del manifest[name]
    for name in ("name", "loss_weight", "train_rows", "train_tokens", "train_supervised_tokens"):
        del manifest["sources"][0][name]
    (a / "data/manifest.json").write_text(json.dumps(manifest))
    b = prepared(tmp_path / "b", {"train": [conversation(1), conversation(2)]}, inputs={"data.format": "2"})
    diff = diff_prepared(a, b)
    assert fates(diff) == {(None, "train"): 1}
    assert diff.settings[0].name == "data.format"
    assert diff.settings[0].after == "sha256 2"


def test_a_file_that_changed_after_it_was_frozen_is_told(tmp_path: Path) -> None:
    a = prepared(tmp_path / "a", {"train": [conversation(1)]})
    b = prepared(tmp_path / "b", {"train": [conversation(1), conversation(2)]})
    write_conversations(b / "data/train.conversations.jsonl", [conversation(3)])
    (note,) = diff_prepared(a, b).notes
    assert note.endswith("train.conversations.jsonl changed after it was frozen")


def test_what_is_no_prepared_set_is_refused(tmp_path: Path) -> None:
    a = prepared(tmp_path / "a", {"train": [conversation(1)]})
    with pytest.raises(DataError, match="no PreparedData here"):
        diff_prepared(a, tmp_path)
    b = prepared(tmp_path / "b", {"train": [conversation(2)]})
    (b / "data/train.conversations.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(DataError, match="not a conversation record"):
        diff_prepared(a, b)
    os.remove(b / "data/train.conversations.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        diff_prepared(a, b)


def test_ids_beyond_63_bits_and_rows_told_twice(tmp_path: Path) -> None:
    high = replace(conversation(1), id="f" * 64)
    a = prepared(tmp_path / "a", {"train": [high, high, conversation(2)]})
    b = prepared(tmp_path / "b", {"train": [conversation(2)], "holdout": [high]})
    assert fates(diff_prepared(a, b)) == {("train", "holdout"): 1}
    assert np.uint64(0xFFFFFFFFFFFFFFFF) == np.fromiter([2**64 - 1], np.uint64)[0]
