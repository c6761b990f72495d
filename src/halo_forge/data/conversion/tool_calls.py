"""Tool calls and tool descriptions in the spellings of OpenAI (today's and the older functions), Anthropic and bare."""

from __future__ import annotations

from typing import Any

from halo_forge.chat.records import ToolCall
from halo_forge.data.files.json_rows import parse_json
from halo_forge.data.files.rows import json_type
from halo_forge.errors import RowError
from halo_forge.texts.calls.schemas import NORMALISED, name_of, normalised_tool


def parse_tool_calls(raw: Any, where: str) -> tuple[ToolCall, ...]:
    """Calls as {"function": {"name", "arguments"}} or bare {"name", "arguments" | "parameters" | "input"}, one or a
    list, or either as JSON text; arguments as object or JSON text."""
    if isinstance(raw, str):
        raw = json_in_text(raw, f"{where}: the tool call")
    if raw is None:
        return ()
    calls: list[ToolCall] = []
    for item in raw if isinstance(raw, list) else [raw]:
        call = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
            raise RowError("bad_tool_call", f"{where}: a tool call needs a name and arguments")
        arguments = call.get("arguments", call.get("parameters", call.get("input")))
        if isinstance(arguments, str):
            arguments = json_in_text(arguments, f"{where}: the arguments of {call['name'][:40]!a}")
        if not isinstance(arguments, dict | None):
            raise RowError("bad_tool_call", f"{where}: the arguments of a tool call are an object of named values")
        call_id = item.get("id")
        if call_id is not None and (isinstance(call_id, bool) or not isinstance(call_id, str | int)):
            raise RowError("bad_tool_call", f"{where}: the id of a tool call is {json_type(call_id)}, not a string")
        calls.append(ToolCall(name=call["name"], arguments=arguments or {}, call_id=str(call_id or "") or None))
    return tuple(calls)


def json_in_text(text: str, what: str) -> Any:
    try:
        return parse_json(text)
    except RowError as problem:
        raise RowError("bad_tool_call", f"{what}: not JSON ({problem.reason})") from None


def parse_tools(raw: Any) -> tuple[dict[str, Any], ...]:
    """The row's `tools` column: a list of objects, or the same as JSON text. Anthropic's {"name", "input_schema"}
    becomes a function; everything else stays as it is."""
    if isinstance(raw, str) and raw.strip():
        raw = json_in_text(raw, "the tools column")
    if raw is None or raw == "":
        return ()
    tools = raw if isinstance(raw, list) else [raw]
    for tool in tools:
        if not isinstance(tool, dict):
            raise RowError("bad_tools", f"a tool is described by an object; this one is {json_type(tool)}")
    return tuple(_from_anthropic(tool) if "input_schema" in tool else tool for tool in tools)


def _from_anthropic(tool: dict[str, Any]) -> dict[str, Any]:
    function = {("parameters" if key == "input_schema" else key): value for key, value in tool.items()}
    return {"type": "function", "function": function}


def row_tools(value: dict[str, Any], fixes: set[str], *, own_words: bool = False) -> tuple[dict[str, Any], ...]:
    """The tools of a row, as functions with a JSON Schema: its `tools`, or `functions` as OpenAI named them before.

    own_words   the row's format has type names of its own, so that reading them is no mend
    `fixes` collects codes. Raises RowError `bad_tools`, `duplicate_tool`.
    """
    if value.get("tools") is not None or "functions" not in value:
        raw = parse_tools(value.get("tools"))
    else:
        raw = tuple({"type": "function", "function": function} for function in parse_tools(value["functions"]))
    tools: dict[str, dict[str, Any]] = {}
    for tool in raw:
        mended, codes = normalised_tool(tool)
        fixes |= codes - {NORMALISED} if own_words else codes
        name = name_of(mended)
        if tools.setdefault(name, mended) != mended:
            raise RowError("duplicate_tool", f"two tools are called {name[:60]!a} and differ")
    if len(tools) < len(raw):
        fixes.add("duplicate_tool_dropped")
    return tuple(tools.values())
