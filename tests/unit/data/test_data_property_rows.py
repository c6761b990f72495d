"""For any row at all: a conversation or a reason, nothing else; and what nests survives to the last value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halo_forge.data.conversion.formats import FORMATS, convert, detect, format_of
from halo_forge.data.files.json_rows import line_row, parse_json
from halo_forge.data.files.rows import Row
from halo_forge.data.files.sources import read_rows
from halo_forge.errors import DataError, RowError

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = sorted(
    {name for spec in FORMATS.values() for name in (*spec.prompt, *spec.answer, *spec.optional)}
    | {"role", "content", "from", "value", "text", "type", "name", "arguments", "weight", "slices", "images",
        "function",
       "tool_calls", "function_call", "tool_use_id", "input", "input_schema", "replies", "rank", "id", "label",
           "history"}
)  # fmt: skip
WORDS = st.sampled_from(
    ["user", "assistant", "system", "tool", "human", "gpt", "prompter", "text", "image_url", "tool_use", "tool_result",
     "thinking", "", " ", "Q", "A", "\0", "[]", "{}", "[{}]", '[{"name": "f"}]', "USER: a ASSISTANT: b", "\u202e",
         "e\u0301"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner,
        max_size=5),
    max_leaves=25,
)  # fmt: skip
ROWS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])),
        inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@QUICK
@given(value=ROWS, mixed=st.booleans(), media=st.booleans(), format=st.sampled_from([None, *FORMATS]))
def test_any_row_ends_as_a_conversation_or_a_reason(
    value: dict[str, Any], mixed: bool, media: bool, format: Any
) -> None:
    format = format or format_of(value) or "messages"
    try:
        converted = convert(Row(path="f", line=1, value=value), format, "Be brief.", mixed=mixed, media=media)
    except RowError as problem:
        refused = problem
    else:
        refused = None
    if refused is not None:
        assert refused.code
        assert refused.reason
        return
    messages = converted.conversation.messages
    assert messages[0].role == "document" or messages[-1].role == "assistant"
    assert 0 < converted.conversation.weight < float("inf")
    json.dumps([message.text for message in messages], ensure_ascii=False).encode()


@QUICK
@given(rows=st.lists(ROWS, min_size=1, max_size=4))
def test_any_rows_get_a_verdict_or_a_reason(rows: list[dict[str, Any]]) -> None:
    try:
        verdict = detect("f", rows)
    except DataError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.fix
        return
    assert verdict.format in FORMATS
    assert verdict.render("f").startswith("f: ")
    assert sum(count for _, count in verdict.votes) == len(rows)


@QUICK
@given(text=st.text(max_size=60) | JSON.map(json.dumps) | JSON.map(lambda value: json.dumps(value, ensure_ascii=False)))
def test_any_line_is_a_row_or_a_problem(text: str) -> None:
    row = line_row("f", 1, text, (), ended=False)
    assert (row.value is None) != (row.problem is None)
    if row.value is not None:
        assert row.value == json.loads(text)
    else:
        assert row.problem is not None
        assert row.problem.reason


@QUICK
@given(value=JSON)
def test_what_python_writes_is_read_back_the_same(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parse_json(text) == json.loads(text)


@QUICK
@given(
    arguments=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), JSON, max_size=4),
    tools=st.lists(st.dictionaries(st.sampled_from(["strict", "x", "y"]), JSON, max_size=3), max_size=3),
)
def test_tool_columns_survive_to_the_last_value(arguments: dict[str, Any], tools: list[dict[str, Any]]) -> None:
    """As an object or as JSON text, what a call is given and how a tool is described is what the file says, also what
    no schema knows."""
    tools = [{"type": "function", "function": {**told, "name": f"f{at}"}} for at, told in enumerate(tools)]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    for told in (call, {**call, "function": {"name": "f", "arguments": json.dumps(arguments)}}):
        for described in (tools, json.dumps(tools)):
            line = json.dumps({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant",
                "tool_calls": [told]}],
                               "tools": described})  # fmt: skip
            row = line_row("f", 1, line, (), ended=True)
            assert row.value == json.loads(line)
            conversation = convert(row, "messages").conversation
            assert conversation.messages[1].tool_calls[0].arguments == arguments
            assert list(conversation.tools) == tools


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz"])
def test_readers_give_the_source_json(tmp_path: Path, name: str) -> None:
    """Rows whose nested columns differ from row to row: no column is added, filled or turned into another type."""
    import gzip

    rows: list[dict[str, Any]] = [
        {"text": "a", "meta": {"x": 1}, "n": 1}, {"text": "b", "meta": {"y": [None, {"z": "1"}]}},
        {"text": "c", "meta": "m", "n": 2**70}, {"text": "d", "meta": [], "n": "4"}, {"text": "e", "meta": None,
            "n": 1.0},
    ]  # fmt: skip
    text = json.dumps(rows) if "json." in name or name.endswith("json") else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    read = [row.value for row in read_rows(tmp_path / name, lambda note: None)]
    assert read == rows
    assert [type(row["n"]) for row in read if row and "n" in row] == [int, int, str, float]
