"""Tool-calling data sets with shapes of their own, as rows of `messages` and `tools`."""

from __future__ import annotations

import json
import re
from typing import Any

from halo_forge.data.files.json_rows import parse_json
from halo_forge.errors import RowError

GLAIVE_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
GLAIVE_CALL = re.compile(r"<functioncall>\s*(\{.*\})", re.S)
GLAIVE_QUOTED = re.compile(r"""("arguments"\s*:\s*)'(.*)'(\s*\})$""", re.S)
GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}


def _as_function(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise RowError("bad_tools", "a tool needs a name")
    return {"type": "function", "function": tool}


def xlam_row(value: dict[str, Any]) -> dict[str, Any]:
    """{"query", "answers": JSON list of calls, "tools": JSON list}: the answer is the calls and nothing else.

    A parameter's `type` is a Python type name there and its place is flat; `texts/calls/schemas.py` reads both.
    """
    if not all(isinstance(value.get(column), str) for column in ("query", "answers", "tools")):
        raise RowError("missing_columns", "xlam rows have query, answers and tools, each a string")
    calls, tools = parse_json(value["answers"]), parse_json(value["tools"])
    if not isinstance(calls, list) or not isinstance(tools, list) or not calls:
        raise RowError("bad_tool_call", "answers and tools are JSON lists, and answers is not empty")
    messages = [
        {"role": "user", "content": value["query"]},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    return {"messages": messages, "tools": [_as_function(tool) for tool in tools]}


def glaive_row(value: dict[str, Any]) -> dict[str, Any]:
    """{"system": "SYSTEM: ... {schema} {schema}", "chat": "USER: ... ASSISTANT: ... FUNCTION RESPONSE: ..."}"""
    system, chat = value.get("system"), value.get("chat")
    if not isinstance(system, str) or not isinstance(chat, str):
        raise RowError("missing_columns", "glaive rows have system and chat, each a string")
    instructions, tools = _glaive_system(system)
    pieces = GLAIVE_TURN.split(chat)
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True):
        text = said.replace("<|endoftext|>", "").strip()
        call = GLAIVE_CALL.search(text) if speaker == "ASSISTANT" else None
        message: dict[str, Any] = {"role": GLAIVE_ROLES[speaker], "content": text}
        if call:
            message |= {"content": text[: call.start()].strip(), "tool_calls": [_glaive_call(call.group(1))]}
        messages.append(message)
    return {"messages": messages, "tools": tools}


def _glaive_system(system: str) -> tuple[str, list[dict[str, Any]]]:
    """The instruction without its tool schemas (they go to `tools`, which the template prints), and the schemas."""
    text = system.removeprefix("SYSTEM:").strip()
    start = text.find("{")
    if start < 0:
        return text, []
    tools, decoder, rest = [], json.JSONDecoder(), text[start:].strip()
    while rest.startswith("{"):
        try:
            tool, end = decoder.raw_decode(rest)
        except ValueError:
            raise RowError("bad_tools", "a tool schema in the system column is not JSON") from None
        tools.append(_as_function(tool))
        rest = rest[end:].strip()
    return "You are a helpful assistant.", tools


def _glaive_call(text: str) -> dict[str, Any]:
    """{"name": "f", "arguments": '{"a": 1}'}: JSON but for the single quotes around the arguments."""
    quoted = GLAIVE_QUOTED.search(text)
    if quoted:
        arguments = quoted.group(2).replace("\\'", "'")
        text = text[: quoted.start()] + quoted.group(1) + json.dumps(arguments) + quoted.group(3)
    try:
        call = parse_json(text)
    except RowError as problem:
        raise RowError("bad_tool_call", f"a function call is not JSON ({problem.reason})") from None
    if not isinstance(call, dict):
        raise RowError("bad_tool_call", "a function call is an object with name and arguments")
    return call
