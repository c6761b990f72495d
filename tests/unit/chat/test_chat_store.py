"""Records on disk: the same bytes for the same records, every field back, and clear words for foreign files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.chat import (
    Conversation,
    Example,
    MediaPart,
    Message,
    SourceRef,
    TextPart,
    ToolCall,
    read_conversations,
    read_examples,
    write_conversations,
    write_examples,
)
from halo_forge.chat.store import ExampleWriter, conversation_line
from halo_forge.errors import DataError

TEXT = st.text(max_size=20)  # surrogates and control characters included
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.one_of(
    TEXT.map(lambda text: TextPart(text=text)),
    st.builds(MediaPart, kind=st.sampled_from(["image", "audio"]), path=TEXT),
    st.builds(ToolCall, name=TEXT, arguments=st.dictionaries(TEXT, JSON, max_size=3), call_id=st.none() | TEXT),
)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool", "document"]),
    parts=st.lists(PARTS, max_size=3).map(tuple),
    reasoning=st.none() | TEXT,
    name=st.none() | TEXT,
    call_id=st.none() | TEXT,
    weight=st.none() | st.floats(0, 10),
)
CONVERSATIONS = st.builds(
    Conversation,
    id=TEXT,
    messages=st.lists(MESSAGES, max_size=4).map(tuple),
    source=st.builds(SourceRef, path=TEXT, line=st.integers(1, 10**9)),
    tools=st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=2).map(tuple),
    slices=st.dictionaries(TEXT, TEXT, max_size=2),
    weight=st.floats(0, 10),
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(CONVERSATIONS, max_size=4))
def test_conversations_come_back_whole(rows: list[Conversation], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("store") / "a.jsonl"
    digest = write_conversations(path, rows)
    assert read_conversations(path) == rows
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert write_conversations(path.with_name("b.jsonl"), iter(rows)) == digest
    assert path.read_bytes().count(b"\n") == len(rows), "one line a row, whatever line breaks the text holds"


@settings(max_examples=100, deadline=None)
@given(row=CONVERSATIONS)
def test_a_line_is_what_the_json_module_would_write(row: Conversation) -> None:
    """The quick way of writing a usual message must not be seen in the file."""
    line = conversation_line(row)
    plainly, escaped = (json.dumps(json.loads(line), ensure_ascii=ascii) + "\n" for ascii in (False, True))
    assert line.decode() == (escaped if any("\ud800" <= letter <= "\udfff" for letter in plainly) else plainly)


def test_text_is_readable_and_lines_are_json(tmp_path: Path) -> None:
    row = Conversation(
        id="1", messages=(Message(role="user", parts=(TextPart(text="你好 é"),)),), source=SourceRef(path="x", line=1)
    )
    write_conversations(tmp_path / "a.jsonl", [row])
    text = (tmp_path / "a.jsonl").read_text()
    assert "你好 é" in text
    assert json.loads(text)["messages"] == [{"role": "user", "parts": [{"type": "text", "text": "你好 é"}]}]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_values_without_a_json_form_name_their_row(value: Any, tmp_path: Path) -> None:
    call = ToolCall(name="f", arguments={"x": value})
    row = Conversation(id="1", messages=(Message(role="assistant", parts=(call,)),), source=SourceRef(path="x", line=9))
    with pytest.raises(DataError, match="no form for") as error:
        write_conversations(tmp_path / "a.jsonl", [row])
    assert error.value.where == "x:9"
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"id": 1}', '{"id": "1", "messages": [{"role": "user", "parts": [{"type": "smell"}]}]}']
)
def test_a_foreign_line_is_named(line: str, tmp_path: Path) -> None:
    good = Conversation(id="1", messages=(), source=SourceRef(path="x", line=1))
    path = tmp_path / "a.jsonl"
    write_conversations(path, [good])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match="not a conversation record") as error:
        read_conversations(path)
    assert error.value.where == f"{path}:2"


def example(ids: list[int], weights: list[float], name: str = "c") -> Example:
    return Example(input_ids=np.array(ids, np.int32), loss_weights=np.array(weights, np.float32), conversation_id=name)


def test_examples_come_back_whole(tmp_path: Path) -> None:
    rows = [
        example([5, 6, 7], [0, 1, 0.5], "a"),
        example([2**31 - 1, 0], [0, 2], "b"),
        example(list(range(1000)), [0] + [0.1] * 999, "é\n"),
    ]
    path = tmp_path / "a.arrow"
    digest = write_examples(path, iter(rows))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert write_examples(tmp_path / "b.arrow", rows) == digest
    store = read_examples(path)
    assert len(store) == 3
    for index, row in enumerate(rows):
        for found in (store[index], store[index - 3]):
            assert found.conversation_id == row.conversation_id
            assert found.input_ids.dtype == np.int32
            assert found.loss_weights.dtype == np.float32
            assert found.input_ids.tolist() == row.input_ids.tolist()
            assert found.loss_weights.tolist() == row.loss_weights.tolist()
    assert store.lengths.tolist() == [3, 2, 1000]
    assert store.num_supervised.tolist() == [row.num_supervised_tokens for row in rows] == [2, 1, 999]
    assert [row.conversation_id for row in store] == ["a", "b", "é\n"]
    for index in (3, -4):
        with pytest.raises(IndexError):
            store[index]


def test_arrays_are_views_of_the_file_that_nobody_can_change(tmp_path: Path) -> None:
    from halo_forge.train.batches import examples_to_batch

    write_examples(tmp_path / "a.arrow", [example([1, 2], [0, 1])])
    found = read_examples(tmp_path / "a.arrow")[0]
    with pytest.raises(ValueError, match="read-only"):
        found.input_ids[0] = 3
    assert examples_to_batch([found]).input_ids.tolist() == [[1, 2]], "and torch does not warn about them"


def test_no_examples_is_an_empty_store(tmp_path: Path) -> None:
    write_examples(tmp_path / "a.arrow", [])
    store = read_examples(tmp_path / "a.arrow")
    assert len(store) == 0
    assert store.lengths.tolist() == store.num_supervised.tolist() == []


def test_many_batches_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halo_forge.chat.store.EXAMPLES_PER_BATCH", 7)
    rows = [example([n] * (n + 2), [0, *([0] * (n % 2)), *([1] * (n + 1 - n % 2))], str(n)) for n in range(1, 51)]
    write_examples(tmp_path / "a.arrow", rows)
    store = read_examples(tmp_path / "a.arrow")
    assert [store[n].input_ids.tolist() for n in range(50)] == [[n] * (n + 2) for n in range(1, 51)]
    assert store.lengths.tolist() == [n + 2 for n in range(1, 51)]
    assert store.num_supervised.tolist() == [row.num_supervised_tokens for row in rows]


def test_a_file_that_was_not_finished_counts_for_nothing(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path / "a.arrow")
    assert not (tmp_path / "a.arrow").exists()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_are_told(tmp_path: Path) -> None:
    import pyarrow as pa

    with pytest.raises(DataError, match="no examples here"):
        read_examples(tmp_path / "none.arrow")
    with pytest.raises(DataError, match="no conversations here"):
        read_conversations(tmp_path / "none.jsonl")
    (tmp_path / "text.arrow").write_text("hello")
    with pytest.raises(DataError, match="not an Arrow file"):
        read_examples(tmp_path / "text.arrow")
    table = pa.table({"input_ids": [1, 2]})
    with pa.OSFile(str(tmp_path / "other.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    with pytest.raises(DataError, match="does not hold examples") as error:
        read_examples(tmp_path / "other.arrow")
    assert "loss_weights: list<" in str(error.value.expected)
