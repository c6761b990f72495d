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
from halo_forge.data.conversion.content_parts import Content, clean_text, parse_content
from halo_forge.data.conversion.tool_calls import parse_tool_calls
from halo_forge.data.files.json_rows import parse_json
from halo_forge.data.files.rows import json_type
from halo_forge.errors import RowError

MAX_MESSAGES = 10_000
CHAT_ROLES: Mapping[str, str] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
SHAREGPT_ROLES: Mapping[str, str] = {
    **CHAT_ROLES,
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "prompter": "user", "observation": "tool",
    "function_response": "tool", "tool_response": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
CALL_ROLES = frozenset({"function_call", "tool_call"})
SUGGESTED_ROLES: Mapping[str, str] = {**SHAREGPT_ROLES, "bot": "assistant", "ai": "assistant", "prompter": "user"}


def parse_turns(raw: Any, number: int, roles: Mapping[str, str], fixes: set[str]) -> list[Message]:
    """One message object, role/content or from/value: one message, or several where tool results stand in a user's
    content. `fixes` collects codes. Raises RowError naming the message."""
    where = f"message {number}"
    if not isinstance(raw, dict):
        raise RowError("bad_messages", f"{where} is {json_type(raw)}, not an object with role and content")
    role_key = next((key for key in ROLE_KEYS if raw.get(key) is not None), None)
    if role_key is None:
        raise RowError("bad_role", f"{where} has no role")
    spelled = raw[role_key]
    role = _role(spelled, where, roles, fixes)
    weight = _turn_weight(raw, where)
    calls = _calls(raw, where) if role == "assistant" else ()
    held = raw.get(next((key for key in CONTENT_KEYS if key in raw), ""))
    if isinstance(spelled, str) and spelled.lower() in CALL_ROLES:
        calls, held = parse_tool_calls(held, where), ""
    reasoning = _optional_text(raw, ("reasoning_content", "reasoning", "thinking"), where, fixes)
    content = parse_content(held, where, fixes) if held is not None else None
    if content is None and not calls:
        present = any(key in raw for key in CONTENT_KEYS)
        raise RowError("null_content" if present else "missing_content", f"{where} ({role}) has no content")
    content = content or Content()
    if role != "assistant" and any(isinstance(part, ToolCall) for part in content.parts):
        raise RowError("bad_tool_call", f"{where}: a tool call of the {role}; only the assistant calls tools")
    name = raw.get("name")
    call_id = raw.get("tool_call_id") or raw.get("call_id")
    message = Message(
        role=cast(Role, role), parts=(*content.parts, *calls), weight=weight,
        reasoning=(reasoning or content.reasoning) if role == "assistant" else None,
        name=name if isinstance(name, str) else None, call_id=call_id if isinstance(call_id, str) else None,
    )  # fmt: skip
    if not content.results:
        return [message]
    results = [
        Message(role="tool", parts=(TextPart(text=text),) if text else (), call_id=result_id)
        for result_id, text in content.results
    ]
    return [*results, message] if message.parts else results


def _calls(raw: dict[str, Any], where: str) -> tuple[ToolCall, ...]:
    calls = parse_tool_calls(raw.get("tool_calls"), where)
    return calls or parse_tool_calls(raw.get("function_call"), where)


def _role(spelled: Any, where: str, roles: Mapping[str, str], fixes: set[str]) -> str:
    if not isinstance(spelled, str):
        raise RowError("bad_role", f"{where}: the role is {json_type(spelled)}, not a string")
    key = spelled.strip().lower()
    if key not in roles and key in SHAREGPT_ROLES:
        fixes.add("role_normalised")
        return SHAREGPT_ROLES[key]
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


def _optional_text(raw: dict[str, Any], keys: tuple[str, ...], where: str, fixes: set[str]) -> str | None:
    for key in keys:
        value = raw.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise RowError("bad_content_type", f"{where}: {key} is {json_type(value)}, not a string")
            return clean_text(value, fixes) or None
    return None


def ordered_turns(messages: list[Message], fixes: set[str]) -> tuple[Message, ...]:
    """The messages as templates expect them: system first, turns alternating, an assistant turn last.

    Raises RowError where that would need a guess.
    """
    if _in_order(messages):
        return tuple(messages)
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


def _in_order(messages: list[Message]) -> bool:
    """Whether there is nothing to mend and nothing to check further: plain turns by turns, the assistant last."""
    expected = "user"
    for number, message in enumerate(messages):
        if message.role != expected and (number or message.role != "system"):
            return False
        if len(message.parts) != 1 or not isinstance(part := message.parts[0], TextPart) or not part.text.strip():
            return False
        if number or message.role != "system":
            expected = "assistant" if expected == "user" else "user"
    return expected == "user" and len(messages) > 1


def _without_empty(messages: list[Message], fixes: set[str]) -> list[Message]:
    kept: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if message.text.strip() or message.role == "tool" or any(
            not isinstance(part, TextPart) for part in message.parts
        ):  # fmt: skip
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
            joined[-1] = replace(before, parts=_with_blank_line(before.parts, message.parts))
    return joined


def _with_blank_line(before: tuple[Part, ...], after: tuple[Part, ...]) -> tuple[Part, ...]:
    if before and after and isinstance(last := before[-1], TextPart) and isinstance(first := after[0], TextPart):
        return (*before[:-1], TextPart(text=f"{last.text}\n\n{first.text}"), *after[1:])
    return (*before, *after)


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
        {"media": part.kind, **({"sha256": part.sha256} if part.sha256 else {"path": part.path})}
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
