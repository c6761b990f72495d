"""Any readable file becomes messages; what was converted converts to itself; what cannot be is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from halo_forge.chat.records import Conversation, MediaPart, Message, SourceRef, TextPart
from halo_forge.config.schema import DataSection
from halo_forge.data.conversion.formats import convert
from halo_forge.data.convert_file import conversation_row, convert_file
from halo_forge.data.files.sources import read_rows
from halo_forge.errors import DataError, UsageError

ROOT = Path(__file__).resolve().parents[3]
FORMATS = sorted((ROOT / "examples" / "formats").iterdir())
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"


def settings(path: Path, **fields: Any) -> DataSection:
    return DataSection(train_file=str(path), **fields)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: path.name)
def test_converting_the_result_changes_nothing(path: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    counts = convert_file(settings(path), first)
    assert counts.read == counts.written + counts.dropped
    assert counts.written > 0
    again = convert_file(settings(first), second)
    assert second.read_bytes() == first.read_bytes()
    assert (again.read, again.written, again.fixed, again.dropped) == (counts.written, counts.written, 0, 0)


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: path.name)
def test_every_conversation_stays_the_same(path: Path, tmp_path: Path) -> None:
    """By id, which is the hash of everything that is said, called and answered."""
    destination = tmp_path / "out.jsonl"
    counts = convert_file(settings(path), destination)
    (form,) = counts.formats.values()

    def ids(file: Path, row_format: str) -> list[str]:
        found = []
        for row in read_rows(file, lambda text: None):
            found.append(convert(row, row_format).conversation.id)  # type: ignore[arg-type]
        return found

    assert ids(destination, "text" if form == "text" else "messages") == ids(path, form)


def test_tools_weights_slices_and_reasoning_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    call = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": {"at": "Ümeå", "n": [1, 2.5]}}}
    tool = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "When?"},
            {"role": "assistant", "content": "", "reasoning_content": "Ask.", "tool_calls": [call], "weight": 0},
            {"role": "tool", "tool_call_id": "c1", "name": "tide", "content": "16:40"},
            {"role": "assistant", "content": "At 16:40.", "weight": 2.5},
        ],
        "tools": [tool],
        "slices": {"language": "en"},
        "weight": 0.5,
    }
    source.write_text(json.dumps(row) + "\n")
    convert_file(settings(source), tmp_path / "out.jsonl")
    (written,) = rows(tmp_path / "out.jsonl")
    arguments = written["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"at": "Ümeå", "n": [1, 2.5]}
    written["messages"][2]["tool_calls"][0]["function"]["arguments"] = json.loads(arguments)
    assert written == row


def test_images_keep_their_place() -> None:
    message = Message(
        role="user", parts=(TextPart(text="What is "), MediaPart(kind="image", path="a.png"), TextPart(text=" this?"))
    )
    row = conversation_row(Conversation(id="x", messages=(message,), source=SourceRef(path="f", line=1)))
    assert row["messages"][0]["content"] == [
        {"type": "text", "text": "What is "},
        {"type": "image", "path": "a.png"},
        {"type": "text", "text": " this?"},
    ]


def test_bad_rows_are_told_with_their_place(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(
        '{"question": "a", "answer": "b"}\n'
        '{"question": "a", "answer": ""}\n'
        '{"question": "a", "ans\n'
        '{"question": "c\\u0000", "answer": "d"}\n'
    )
    told: list[tuple[str, Mapping[str, Any]]] = []
    counts = convert_file(settings(source), tmp_path / "out.jsonl", lambda *event: told.append(event))
    assert (counts.read, counts.written, counts.fixed, counts.dropped) == (4, 2, 1, 2)
    assert [(row.line, row.file) for row in counts.rows] == [(2, str(source)), (3, str(source))]
    assert counts.rows[0].code == "empty_content"
    assert sum(counts.reasons.values()) == 3
    assert any("question_answer rows" in fields["text"] for _, fields in told)
    assert json.loads(json.dumps(counts.to_dict()))["rows"][0]["line"] == 2
    with pytest.raises(DataError) as caught:
        convert_file(settings(source, on_bad_row="fail"), tmp_path / "other.jsonl")
    assert caught.value.where == f"{source}:2"
    assert not (tmp_path / "other.jsonl").exists()


def test_several_files_system_prompt_and_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 3)
    (tmp_path / "b.csv").write_text("instruction,output\nc,d\n")
    data = DataSection(
        train_file=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")], system_prompt="Be kind.", max_samples=4
    )
    counts = convert_file(data, tmp_path / "out.jsonl")
    assert counts.written == 4
    assert {row["messages"][0]["content"] for row in rows(tmp_path / "out.jsonl")} == {"Be kind."}
    limited = convert_file(data.model_copy(update={"max_samples": 2}), tmp_path / "two.jsonl")
    assert (limited.read, limited.written) == (2, 2)


def test_nothing_is_overwritten_by_accident_and_nothing_is_left_behind(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(UsageError, match="own source"):
        convert_file(settings(source), source, overwrite=True)
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        convert_file(settings(source), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    convert_file(settings(source), tmp_path / "out.jsonl", overwrite=True)
    assert len(rows(tmp_path / "out.jsonl")) == 1
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": ""}\n')
    with pytest.raises(DataError, match="no row could be converted; the first") as caught:
        convert_file(settings(tmp_path / "bad.jsonl"), tmp_path / "none.jsonl")
    assert "data check" in str(caught.value.fix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "out.jsonl", "rows.jsonl"]
    with pytest.raises(UsageError, match="nothing to convert"):
        convert_file(DataSection(), tmp_path / "none.jsonl")


def test_texts_and_conversations_do_not_go_into_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (tmp_path / "b.txt").write_text("A lighthouse.\n")
    data = DataSection(train_file=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")])
    with pytest.raises(DataError, match="plain texts after conversations"):
        convert_file(data, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_real_set_converts_whole(tmp_path: Path) -> None:
    if not GSM8K.exists():
        pytest.skip(f"{GSM8K} is not here")
    counts = convert_file(settings(GSM8K, max_samples=500), tmp_path / "out.jsonl")
    assert (counts.read, counts.written, counts.dropped) == (500, 500, 0)
    assert [message["role"] for message in rows(tmp_path / "out.jsonl")[0]["messages"]] == ["user", "assistant"]
