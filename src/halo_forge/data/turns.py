"""One conversation's messages: from the shapes people write to `Message`, and into an order that templates can render.

What is mended is counted under a code; what cannot be mended without guessing is a RowError. The policy:

    role in another case, `developer`, `function`        mended   role_normalised
    NUL characters in a text                             removed  nul_removed
    empty system message                                 removed  empty_system_dropped
    two system messages at the start, two user turns     joined with a blank line between   turns_joined
    assistant turn before any user turn                  removed  leading_assistant_dropped
    turns after the last assistant turn                  removed  trailing_turn_dropped
    unknown role, missing/empty/non-text content, system message in the middle, no user or no assistant turn,
    two assistant turns in a row, tool result that answers no turn, tool call that nothing answers      refused
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from halo_forge.chat.records import Message, Part, Role, TextPart, ToolCall
from halo_forge.data.json_rows import parse_json
from halo_forge.data.rows import json_type
from halo_forge.errors import RowError

MAX_MESSAGES = 10_000
CHAT_ROLES: Mapping[str, str] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip
SHAREGPT_ROLES: Mapping[str, str] = {
    **CHAT_ROLES,
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool",
    "function_response": "tool", "tool_response": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
CALL_ROLES = frozenset({"function_call", "tool_call"})
SUGGESTED_ROLES: Mapping[str, str] = {**SHAREGPT_ROLES, "bot": "assistant", "ai": "assistant", "prompter": "user"}


def parse_turn(raw: Any, number: int, roles: Mapping[str, str], fixes: set[str]) -> Message:
    """One message object, role/content or from/value. `fixes` collects codes. Raises RowError naming the message."""
    where = f"message {number}"
    if not isinstance(raw, dict):
        raise RowError("bad_messages", f"{where} is {json_type(raw)}, not an object with role and content")
    role_key = "role" if raw.get("role") is not None else "from" if raw.get("from") is not None else None
    if role_key is None:
        raise RowError("bad_role", f"{where} has no role")
    spelled = raw[role_key]
    role = _role(spelled, where, roles, fixes)
    weight = _turn_weight(raw, where)
    calls = _tool_calls(raw.get("tool_calls"), where) if role == "assistant" else ()
    content = raw.get("content") if "content" in raw else raw.get("value")
    if isinstance(spelled, str) and spelled.lower() in CALL_ROLES:
        calls, content = _tool_calls(content, where), ""
    reasoning = _optional_text(raw, ("reasoning_content", "reasoning", "thinking"), where, fixes)
    text = _content_text(content, where, fixes) if content is not None else None
    if text is None and not calls:
        present = "content" in raw or "value" in raw
        raise RowError("null_content" if present else "missing_content", f"{where} ({role}) has no content")
    parts: tuple[Part, ...] = (TextPart(text=text),) if text else ()
    name = raw.get("name")
    call_id = raw.get("tool_call_id") or raw.get("call_id")
    return Message(
        role=cast(Role, role), parts=parts + calls, weight=weight,
        reasoning=reasoning if role == "assistant" else None,
        name=name if isinstance(name, str) else None, call_id=call_id if isinstance(call_id, str) else None,
    )  # fmt: skip


def _role(spelled: Any, where: str, roles: Mapping[str, str], fixes: set[str]) -> str:
    if not isinstance(spelled, str):
        raise RowError("bad_role", f"{where}: the role is {json_type(spelled)}, not a string")
    key = spelled.strip().lower()
    if key not in roles:
        close = SUGGESTED_ROLES.get(key) or next(iter(difflib.get_close_matches(key, roles, n=1)), None)
        hint = f"; did you mean {close!r}?" if close else f"; known are {', '.join(sorted(set(roles.values())))}"
        raise RowError("bad_role", f"{where}: unknown role {spelled[:30]!a}{hint}")
    if spelled != key or (roles is CHAT_ROLES and roles[key] != key):
        fixes.add("role_normalised")
    return roles[key]


def _turn_weight(raw: dict[str, Any], where: str) -> float | None:
    """Per-message loss weight: `weight` (a number), or `train` (true, false or null)."""
    weight, train = raw.get("weight"), raw.get("train")
    if weight is not None:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise RowError("bad_weight", f"{where}: weight must be a number that is not negative")
        return float(weight)
    if train is not None and not isinstance(train, bool):
        raise RowError("bad_weight", f"{where}: train must be true or false")
    return 0.0 if train is False else None


def clean_text(text: str, fixes: set[str]) -> str:
    if "\0" in text:
        fixes.add("nul_removed")
        return text.replace("\0", "")
    return text


def _optional_text(raw: dict[str, Any], keys: tuple[str, ...], where: str, fixes: set[str]) -> str | None:
    for key in keys:
        value = raw.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise RowError("bad_content_type", f"{where}: {key} is {json_type(value)}, not a string")
            return clean_text(value, fixes) or None
    return None


def _content_text(content: Any, where: str, fixes: set[str]) -> str:
    """A string, or a list of text parts, which are joined as they stand."""
    if isinstance(content, str):
        return clean_text(content, fixes)
    if not isinstance(content, list):
        raise RowError("bad_content_type", f"{where}: content is {json_type(content)}, not a string or a list of parts")
    texts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else json_type(part)
            reason = f"{where}: a part of type {str(kind)[:30]!a}; only text parts can be trained in this release"
            raise RowError("bad_content_type", reason)
    return clean_text("".join(texts), fixes)


def _tool_calls(raw: Any, where: str) -> tuple[ToolCall, ...]:
    """Calls as OpenAI writes them ({"function": {"name", "arguments"}}) or bare; arguments as object or JSON text."""
    if isinstance(raw, str):
        raw = _json_in_text(raw, f"{where}: the tool call")
    if raw is None:
        return ()
    calls: list[ToolCall] = []
    for item in raw if isinstance(raw, list) else [raw]:
        call = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
            raise RowError("bad_tool_call", f"{where}: a tool call needs a name and arguments")
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            arguments = _json_in_text(arguments, f"{where}: the arguments of {call['name'][:40]!a}")
        if not isinstance(arguments, dict | None):
            raise RowError("bad_tool_call", f"{where}: the arguments of a tool call are an object of named values")
        call_id = item.get("id")
        calls.append(ToolCall(name=call["name"], arguments=arguments or {}, call_id=call_id if call_id else None))
    return tuple(calls)


def _json_in_text(text: str, what: str) -> Any:
    try:
        return parse_json(text)
    except RowError as problem:
        raise RowError("bad_tool_call", f"{what}: not JSON ({problem.reason})") from None


def parse_tools(raw: Any) -> tuple[dict[str, Any], ...]:
    """The row's `tools` column: a list of objects, or the same as JSON text."""
    if isinstance(raw, str) and raw.strip():
        raw = _json_in_text(raw, "the tools column")
    if raw is None or raw == "":
        return ()
    tools = raw if isinstance(raw, list) else [raw]
    for tool in tools:
        if not isinstance(tool, dict):
            raise RowError("bad_tools", f"a tool is described by an object; this one is {json_type(tool)}")
    return tuple(tools)


def ordered_turns(messages: list[Message], fixes: set[str]) -> tuple[Message, ...]:
    """The messages as templates expect them: system first, turns alternating, an assistant turn last.

    Raises RowError where that would need a guess.
    """
    messages = _without_empty(messages, fixes)
    messages = _joined(messages, fixes)
    num_system = 1 if messages and messages[0].role == "system" else 0
    if any(message.role == "system" for message in messages[num_system:]):
        raise RowError("system_not_first", "a system message stands after the first turn")
    while len(messages) > num_system and messages[num_system].role == "assistant":
        if not any(message.role == "user" for message in messages):
            break
        del messages[num_system]
        fixes.add("leading_assistant_dropped")
    if not any(message.role == "assistant" for message in messages):
        raise RowError("no_assistant_turn", "there is no assistant turn, so there is nothing to learn")
    while messages[-1].role != "assistant":
        messages.pop()
        fixes.add("trailing_turn_dropped")
    if not any(message.role == "user" for message in messages):
        raise RowError("no_user_turn", "there is no user turn that the assistant could answer")
    _check_tools(messages)
    return tuple(messages)


def _without_empty(messages: list[Message], fixes: set[str]) -> list[Message]:
    kept: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if message.text.strip() or message.tool_calls or message.role == "tool":
            kept.append(message)
        elif message.role == "system":
            fixes.add("empty_system_dropped")
        else:
            raise RowError("empty_content", f"message {number} ({message.role}) is empty or white space only")
    return kept


def _joined(messages: list[Message], fixes: set[str]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        if before is None or before.role != message.role or message.role == "tool":
            joined.append(message)
        elif message.role == "assistant":
            raise RowError("consecutive_assistant", "two assistant turns in a row; which one answers cannot be told")
        else:
            fixes.add("turns_joined")
            joined[-1] = replace(before, parts=(TextPart(text=f"{before.text}\n\n{message.text}"),))
    return joined


def _check_tools(messages: list[Message]) -> None:
    """Every tool message answers the assistant turn before it; every call but a final one is answered."""
    caller: Message | None = None
    num_answers = 0
    for message in messages:
        if message.role == "tool":
            num_answers += 1
            ids = {call.call_id for call in caller.tool_calls if call.call_id} if caller else set()
            if caller is None or (ids and message.call_id and message.call_id not in ids):
                raise RowError(
                    "tool_result_without_call", "a tool result follows no assistant turn that called the tool"
                )
            continue
        if caller is not None and caller.tool_calls and num_answers == 0:
            raise RowError("tool_call_without_result", "a tool call is followed by another turn instead of its result")
        caller, num_answers = (message if message.role == "assistant" else None), 0


def message_content(message: Message) -> dict[str, Any]:
    """Everything that a message says, as JSON; the basis of a conversation's id."""
    parts = [
        {"text": part.text} if isinstance(part, TextPart) else
        {"call": part.name, "arguments": part.arguments, "id": part.call_id} if isinstance(part, ToolCall) else
        {"media": part.kind, "path": part.path}
        for part in message.parts
    ]  # fmt: skip
    content = {
        "role": message.role, "parts": parts, "reasoning": message.reasoning, "name": message.name,
        "call_id": message.call_id, "weight": message.weight,
    }  # fmt: skip
    return {key: value for key, value in content.items() if value is not None}


def parsed_list(value: Any, column: str, fixes: set[str]) -> list[Any]:
    """A column of messages: a list, or the same as JSON text (as CSV and some Parquet files hold it)."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = parse_json(value)
        except RowError as problem:
            raise RowError("bad_messages", f"{column} holds text that is not a JSON list ({problem.reason})") from None
        fixes.add("json_text_parsed")
    if value is None:
        raise RowError("bad_messages", f"{column} is null")
    if not isinstance(value, list):
        raise RowError("bad_messages", f"{column} is {json_type(value)}, not a list of messages")
    if not value:
        raise RowError("bad_messages", f"{column} is an empty list")
    if len(value) > MAX_MESSAGES:
        raise RowError("bad_messages", f"{column} has more than {MAX_MESSAGES} messages")
    return value


def document(text: Any, fixes: set[str]) -> Message:
    """A plain text for continued pretraining."""
    if not isinstance(text, str):
        raise RowError(
            "null_content" if text is None else "bad_content_type", f"text is {json_type(text)}, not a string"
        )
    cleaned = clean_text(text, fixes)
    if not cleaned.strip():
        raise RowError("empty_content", "the text is empty or white space only")
    return Message(role="document", parts=(TextPart(text=cleaned),))


def chat_message(role: Role, text: str) -> Message:
    return Message(role=role, parts=(TextPart(text=text),))
