"""Rows of the Berkeley Function Calling Leaderboard: a question, the functions offered, the acceptable calls.

    {"question": [[{"role", "content"}]], "function": [...], "ground_truth": [{"name": {"argument": [values]}}]}

BFCL keeps `ground_truth` in files of its own, by `id`; joined, a row is whole. The first acceptable value of each
argument is trained, one that may be left out is left out; all of them are kept for the scorer (`tests.calls`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halo_forge.data.files.rows import json_type
from halo_forge.errors import RowError

NOTHING_FITS = "None of the functions that I was given can do this."
"""The answer of irrelevance rows, which BFCL does not write down: only that no function is called."""
CALLS = "calls"
_ANSWER_COLUMNS = ("possible_answer", "ground_truth")


def bfcl_row(value: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `messages`, `tools` and `tests`. Raises RowError."""
    messages = _question(value["question"])
    functions = value["function"]
    if not isinstance(functions, list) or not functions:
        raise RowError("bad_tools", "function is a list of at least one description")
    wanted = _wanted(value)
    row: dict[str, Any] = {"tools": functions}
    if not wanted:
        return {**row, "messages": [*messages, {"role": "assistant", "content": NOTHING_FITS}]}
    calls = [
        {"name": name, "arguments": {key: first_value(ones) for key, ones in accepts.items() if "" not in ones}}
        for name, accepts in wanted
    ]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    return {**row, "messages": [*messages, answer], "tests": {CALLS: [{name: accepts} for name, accepts in wanted]}}


def _question(question: Any) -> list[Any]:
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    if not isinstance(question, list) or not question:
        raise RowError("bad_messages", f"question is {json_type(question)}, not a list of turns")
    if isinstance(question[0], dict):
        return question
    if len(question) > 1:
        raise RowError(
            "no_tool_results", f"{len(question)} turns whose tool results are not in the row: they come from simulators"
        )
    if not isinstance(question[0], list):
        raise RowError("bad_messages", "a turn of question is a list of messages")
    return question[0]


def _wanted(value: Mapping[str, Any]) -> list[tuple[str, dict[str, list[Any]]]]:
    """(name, argument -> acceptable values) of each call; empty where no function is to be called."""
    answers = next((value[column] for column in _ANSWER_COLUMNS if value.get(column) is not None), None)
    if isinstance(answers, dict) and "ground_truth" in answers:
        answers = answers["ground_truth"]
    if answers is None:
        if "irrelevance" in str(value.get("id", "")):
            return []
        raise RowError(
            "missing_columns", "a bfcl row needs ground_truth; BFCL keeps it in possible_answer/, to be joined by id"
        )
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowError("bad_tool_call", 'ground_truth is a list of {"name": {"argument": [values]}}')
    wanted = [(name, accepts) for answer in answers for name, accepts in answer.items()]
    for name, accepts in wanted:
        if not isinstance(accepts, dict) or not all(isinstance(ones, list) and ones for ones in accepts.values()):
            raise RowError("bad_tool_call", f"{name[:60]}: every argument has a list of acceptable values")
    return wanted


def first_value(accepted: Any) -> Any:
    """The first acceptable value; in objects, of each key, without the keys that may be left out."""
    value = next((one for one in accepted if one != ""), "") if isinstance(accepted, list) else accepted
    if isinstance(value, dict):
        return _first_object(value)
    if isinstance(value, list):
        return [_first_object(item) if isinstance(item, dict) else item for item in value]
    return value


def _first_object(accepts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: first_value(ones) for key, ones in accepts.items() if not (isinstance(ones, list) and "" in ones)
    }  # fmt: skip
