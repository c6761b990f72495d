"""Rows with tools: what is wrong with a call or a tool is told by code and line, and decided by policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halo_forge.chat.records import ToolCall
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import check_file
from halo_forge.data.check import check, conversation_of_row
from halo_forge.data.conversion.bfcl_rows import NOTHING_FITS, bfcl_row
from halo_forge.data.conversion.formats import convert, format_of
from halo_forge.data.files.rows import Row
from halo_forge.errors import RowError

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
Q, A = {"role": "user", "content": "Weather in Rome?"}, {"role": "assistant", "content": "Sunny."}


def called(*calls: Any, tools: Any = (WEATHER,), after: tuple[Any, ...] = (), **answer: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": "", "tool_calls": list(calls), **answer}
    return {"messages": [Q, said, *after], "tools": list(tools) if isinstance(tools, tuple) else tools}


def call(name: str = "weather", arguments: Any = None) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {"city": "Rome"} if arguments is None else arguments}}


RESULT = {"role": "tool", "content": "sunny"}
# case -> (row, its code, what the reason or excerpt says)
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "tools are broken JSON": (called(call(), tools="[{"), "bad_tool_call", "not JSON"),
    "a tool is a string": (called(call(), tools=["weather"]), "bad_tools", "object"),
    "a tool without a name": (called(call(), tools=({"parameters": CITY},)), "bad_tools", "needs a name"),
    "arguments are broken JSON": (called(call(arguments='{"city": ')), "bad_tool_call", "not JSON"),
    "arguments are a list": (called(call(arguments=[1])), "bad_tool_call", "object of named values"),
    "a call without a name": (called({"function": {"arguments": {}}}), "bad_tool_call", "name"),
    "two tools of one name": (
        called(call(), tools=(WEATHER, {"name": "weather", "parameters": {}})), "duplicate_tool", "'weather'"),
    "the schema is none": (
        called(call(), tools=({"name": "weather", "parameters": {"type": "object", "properties": 3}},)), "bad_tools",
        "weather"),
    "the schema is a list": (called(call(), tools=({"name": "weather", "parameters": [1]},)), "bad_tools", "weather"),
    "a schema from elsewhere": (
        called(call(), tools=({"name": "weather", "parameters": {"$ref": "https://example.org/x"}},)), "bad_tools",
        "nothing is fetched"),
    "a tool that is not offered": (called(call("wether")), "unknown_tool", "did you mean weather"),
    "a required argument is missing": (called(call(arguments={})), "missing_argument", "'city' is a required property"),
    "an argument of another type": (called(call(arguments={"city": 3})), "wrong_argument_type", "city: 3 is not"),
    "not among the values": (
        called(call(arguments={"city": "Rome", "unit": "K"})), "argument_not_in_enum", "'K' is not one of"),
    "an argument it does not take": (
        called(call(arguments={"city": "Rome", "day": 1})), "unknown_argument", "takes no day"),
    "a result without a call": ({"messages": [Q, RESULT, A], "tools": [WEATHER]}, "tool_result_without_call", "result"),
    "a call without its result": (
        called(call(), after=({"role": "user", "content": "And?"}, A)), "tool_call_without_result", "call"),
    "a call of the user": (
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "name": "weather", "input": {}}]}, A]},
        "bad_tool_call", "only the assistant calls"),
    "bfcl over several turns": (
        {"question": [[Q], [Q]], "function": [WEATHER], "ground_truth": [["weather(city='Rome')"]]}, "no_tool_results",
        "2 turns"),
    "bfcl without answers": ({"id": "simple_0", "question": [[Q]], "function": [WEATHER]}, "missing_columns", "by id"),
    "bfcl answers are text": (
        {"question": [[Q]], "function": [WEATHER], "ground_truth": ["weather()"]}, "bad_tool_call", "ground_truth"),
    "bfcl values are no list": (
        {"question": [[Q]], "function": [WEATHER], "ground_truth": [{"weather": {"city": "Rome"}}]}, "bad_tool_call",
        "acceptable values"),
    "bfcl without functions": (
        {"question": [[Q]], "function": [], "ground_truth": [{"weather": {}}]}, "bad_tools", "at least one"),
}  # fmt: skip


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_dropped_and_told_with_its_line(case: str, tmp_path: Path) -> None:
    row, code, words = BAD[case]
    good = {"messages": [{"role": "user", "content": "Hello there?"}, {"role": "assistant", "content": "Hi."}]}
    report = check_file(written(tmp_path / "rows.jsonl", good, row))
    assert (report.kept, report.dropped) == (1, 1)
    (told,) = [entry for entry in report.rows if entry["action"] == "dropped"]
    assert (told["line"], told["code"]) == (2, code)
    finding = next(finding for finding in report.findings if finding.code == code)
    said = told["reason"] + " ".join(example.excerpt for example in finding.examples)
    assert words in said, said


def test_policies_decide_what_becomes_of_a_call_that_does_not_fit(tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.jsonl", called(call(arguments={})), called(call()), called(call("wether")))
    policies: dict[str, Any] = {"missing_argument": "keep", "unknown_tool": "quarantine"}
    report = check(Config(data=DataSection(train_file=rows, policies=policies, near_duplicate_threshold=None)))
    assert report.kept == 2
    assert report.reasons == {"unknown_tool": 1}
    assert any("1 row kept with a flag, missing_argument" in note for note in report.notes)


def test_a_turn_that_is_not_trained_may_call_what_it_likes(tmp_path: Path) -> None:
    wrong = called(call("wether"), after=(RESULT, A), train=False)
    assert check_file(written(tmp_path / "rows.jsonl", wrong)).kept == 1
    wrong["messages"][1].pop("train")
    assert check_file(written(tmp_path / "rows.jsonl", wrong)).reasons == {"unknown_tool": 1}


def test_calls_without_any_tools_are_kept_and_flagged(tmp_path: Path) -> None:
    report = check_file(written(tmp_path / "rows.jsonl", called(call(), tools=())))
    assert (report.kept, report.dropped) == (1, 0)
    assert any("calls_without_tools" in note for note in report.notes)


def test_the_report_counts_what_rows_do_with_tools(tmp_path: Path) -> None:
    two = [RESULT, A, {"role": "user", "content": "And Oslo?"}, called(call())["messages"][1]]
    rows = [
        called(call()), called(call(), call(arguments={"city": "Oslo"})), called(call(), after=tuple(two)),
        {"messages": [Q, A], "tools": [WEATHER]},
        {"messages": [{"role": "user", "content": "A row without tools?"}, A]},
    ]  # fmt: skip
    report = check_file(written(tmp_path / "rows.jsonl", *rows))
    assert report.kept == 5
    assert (
        "tools: of 4 rows with tools 1 call one tool, 1 call several at once, 1 call over several turns, "
        "1 are offered tools and call none"
    ) in report.notes


def test_the_same_question_beside_other_tools_is_no_copy(tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "tide", "parameters": {}}}
    rows = [{"messages": [Q, A], "tools": [WEATHER]}, {"messages": [Q, A], "tools": [other]}]
    assert check_file(written(tmp_path / "rows.jsonl", *rows)).kept == 2
    assert check_file(written(tmp_path / "rows.jsonl", rows[0], rows[0])).kept == 1


def test_tools_in_other_spellings_are_mended_and_counted(tmp_path: Path) -> None:
    bare = {"name": "weather", "parameters": {"city": {"type": "str"}}}
    path = written(tmp_path / "rows.jsonl", called(call(), tools=(bare, bare)))
    report = check_file(path)
    assert (report.kept, report.fixed) == (1, 1)
    assert report.reasons == {"tool_schema_normalised": 1, "duplicate_tool_dropped": 1}
    conversation = conversation_of_row(Config(data=DataSection(train_file=path)), 1)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert conversation.tools == ({"type": "function", "function": {"name": "weather", "parameters": schema}},)


# ------------------------------------------------------------------------------------------------ BFCL's rows


BFCL = {
    "id": "parallel_7",
    "question": [[{"role": "system", "content": "Be brief."}, Q]],
    "function": [{"name": "geo.weather", "parameters": {"type": "dict", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "box": {"type": "dict", "properties": {
            "w": {"type": "float"}}}}, "required": ["city"]}}],
    "ground_truth": [
        {"geo.weather": {"city": ["Rome", "Roma"], "days": ["", 1]}},
        {"geo.weather": {"city": ["Oslo"], "days": [2], "box": [{"w": [1.5], "h": ["", 2]}]}},
    ],
}  # fmt: skip


def test_bfcl_rows() -> None:
    assert format_of(BFCL) == "bfcl"
    found = convert(Row(path="rows", line=1, value=BFCL, raw=None), "bfcl")
    assert (found.fixes, found.flags) == ((), ())
    assert [message.role for message in found.conversation.messages] == ["system", "user", "assistant"]
    assert found.conversation.messages[-1].tool_calls == (
        ToolCall(name="geo.weather", arguments={"city": "Rome"}),
        ToolCall(name="geo.weather", arguments={"city": "Oslo", "days": 2, "box": {"w": 1.5}}),
    )
    assert found.conversation.tests == {"calls": BFCL["ground_truth"]}
    parameters = found.conversation.tools[0]["function"]["parameters"]
    assert parameters["type"] == "object"
    assert parameters["properties"]["box"]["properties"] == {"w": {"type": "number"}}


def test_bfcl_rows_that_want_no_call() -> None:
    row = {**BFCL, "id": "live_irrelevance_3-1-0"}
    row.pop("ground_truth")
    assert bfcl_row(row)["messages"][-1] == {"role": "assistant", "content": NOTHING_FITS}
    assert "tests" not in bfcl_row(row)
    assert bfcl_row({**BFCL, "ground_truth": []})["messages"][-1]["content"] == NOTHING_FITS
    with pytest.raises(RowError, match="by id"):
        bfcl_row(row | {"id": "simple_3"})


def test_the_same_question_beside_other_tools_is_no_contradiction(tmp_path: Path) -> None:
    refused = {"messages": [Q, A], "tools": [{"name": "tides", "parameters": CITY}]}
    apart = check_file(written(tmp_path / "apart.jsonl", called(call()), refused))
    assert not any("contradiction" in note for note in apart.notes)
    same = check_file(written(tmp_path / "same.jsonl", called(call()), {**refused, "tools": [WEATHER]}))
    assert any("contradiction" in note for note in same.notes)


def test_the_example_rows_are_sound_and_are_what_their_script_writes(tmp_path: Path) -> None:
    import runpy

    directory = Path(__file__).parents[3] / "examples" / "agentic"
    script = runpy.run_path(str(directory / "make_tool_requests.py"))
    script["main"].__globals__["OUTPUT"] = tmp_path / "again.jsonl"
    script["main"]()
    assert (tmp_path / "again.jsonl").read_bytes() == (directory / "tool_requests.jsonl").read_bytes()
    report = check_file(str(directory / "tool_requests.jsonl"))
    assert report.bad_frac == 0
    assert report.dropped <= 2
    assert any("84 are offered tools and call none" in note for note in report.notes)
