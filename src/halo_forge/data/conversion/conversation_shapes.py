"""From the columns of one row, in a known format, to its messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from halo_forge.chat.records import Message, Role
from halo_forge.config.schema import RowFormat
from halo_forge.data.conversion.bfcl_rows import bfcl_row
from halo_forge.data.conversion.content_parts import clean_text
from halo_forge.data.conversion.speech_rows import speech_messages
from halo_forge.data.conversion.tool_rows import glaive_row, xlam_row
from halo_forge.data.conversion.turns import (
    CHAT_ROLES,
    SHAREGPT_ROLES,
    chat_message,
    document,
    parse_turns,
    parsed_list,
)
from halo_forge.data.files.rows import json_type
from halo_forge.data.files.trees import tree_turns
from halo_forge.errors import RowError

LIST_COLUMNS = ("messages", "conversations", "conversation", "items")
DIALOGUE = re.compile(r"(?:^|\n\n)(Human|Assistant):")
DIALOGUE_ROLES: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}
TOOL_FORMATS: Mapping[RowFormat, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "xlam": xlam_row, "glaive": glaive_row, "bfcl": bfcl_row,
}  # fmt: skip
"""Formats of tool calls with shapes, and names of types, of their own."""
PAIRS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "prompt_completion": ("prompt", "", ("completion", "response")),
    "instruction": ("instruction", "input", ("output", "response", "completion", "answer")),
    "dolly": ("instruction", "context", ("response",)),
    "question_answer": ("question", "context", ("answer",)),
    "query_response": ("query", "", ("response",)),
}
"""Format: the prompt's column, the column whose text is added to it, the columns of which one is the answer."""


def row_messages(
    value: dict[str, Any], format: RowFormat, fixes: set[str], flags: set[str]
) -> tuple[list[Message], dict[str, Any]]:
    """(messages in the order of the row, the row whose tools apply). Raises RowError."""
    if format == "text":
        return [document(value["text"], fixes)], value
    if format == "segments":
        return [_segments(value, fixes)], value
    if format == "speech":
        return speech_messages(value, fixes), {}
    if format in TOOL_FORMATS:
        value = {**value, **TOOL_FORMATS[format](value)}
        return _turns(value["messages"], "messages", CHAT_ROLES, fixes), value
    if format in PAIRS:
        messages = _pair(value, *PAIRS[format], fixes)
    elif format == "oasst":
        messages = _turns(tree_turns(value), "the tree", CHAT_ROLES, fixes)
    elif format == "preference":
        messages = _preferred(value, fixes)
    elif format == "openai_evals":
        messages = _eval_item(value, fixes, flags)
    else:
        column = next(name for name in LIST_COLUMNS if name in value)
        roles = SHAREGPT_ROLES if format == "sharegpt" else CHAT_ROLES
        messages = _turns(value[column], column, roles, fixes)
    system = _text(value, "system", fixes, optional=True) if value.get("system") is not None else ""
    if not system.strip() or _begins_with(messages, system):
        return messages, value
    return [chat_message("system", system), *messages], value


def _begins_with(messages: list[Message], system: str) -> bool:
    return bool(messages) and messages[0].role == "system" and messages[0].text.strip() == system.strip()


def _turns(raw: Any, column: str, roles: Mapping[str, str], fixes: set[str]) -> list[Message]:
    items = parsed_list(raw, column, fixes)
    return [turn for number, item in enumerate(items, start=1) for turn in parse_turns(item, number, roles, fixes)]


def _pair(
    value: Mapping[str, Any], prompt: str, addition: str, answers: tuple[str, ...], fixes: set[str]
) -> list[Message]:
    """A prompt column and an answer column, each a string or (prompt_completion) a list of messages."""
    answer = next(name for name in answers if name in value)
    if prompt == "prompt" and value.get("label") is False:
        raise RowError("rejected_answer", "the row's label says that this answer is a bad one")
    turns: list[Message] = []
    if prompt == "instruction" and isinstance(value.get("history"), list):
        for number, exchange in enumerate(value["history"], start=1):
            turns += _exchange(exchange, number, fixes)
    if prompt == "prompt" and (_is_list(value["prompt"]) or _is_list(value[answer])):
        return _side(value, "prompt", "user", fixes) + _side(value, answer, "assistant", fixes)
    asked, answered = _text(value, prompt, fixes, optional=False), _text(value, answer, fixes, optional=False)
    if value.get(addition) is not None:
        if prompt == "question":  # what it is asked about comes first; tables under that name are not text
            added = _text(value, addition, fixes, optional=True) if isinstance(value[addition], str) else ""
            asked = "\n\n".join(part for part in (added, asked) if part.strip())
        else:
            added = _text(value, addition, fixes, optional=True)
            asked = "\n\n".join(part for part in (asked, added) if part.strip())
    for column, text, role in ((prompt, asked, "user"), (answer, answered, "assistant")):
        if not text.strip():
            raise RowError("empty_content", f"{column} is empty or white space only")
        turns.append(chat_message(cast(Role, role), text))
    return turns


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _side(value: Mapping[str, Any], column: str, role: Role, fixes: set[str]) -> list[Message]:
    """A prompt or an answer as messages: a list of them, or the text of one."""
    if _is_list(value[column]):
        return _turns(value[column], column, CHAT_ROLES, fixes)
    text = _text(value, column, fixes, optional=False)
    if not text.strip():
        raise RowError("empty_content", f"{column} is empty or white space only")
    return [chat_message(role, text)]


def _exchange(exchange: Any, number: int, fixes: set[str]) -> list[Message]:
    if not isinstance(exchange, list) or len(exchange) != 2 or not all(isinstance(text, str) for text in exchange):
        raise RowError("bad_content_type", f"history {number} is not a pair of strings")
    user, assistant = (clean_text(text, fixes) for text in exchange)
    return [chat_message("user", user), chat_message("assistant", assistant)]


def _preferred(value: Mapping[str, Any], fixes: set[str]) -> list[Message]:
    """The chosen one of two answers: with its prompt, as a whole conversation, or as a dialogue in one text."""
    chosen = value["chosen"]
    if value.get("prompt") is not None:
        answer = _side(value, "chosen", "assistant", fixes)
        prompt = _side(value, "prompt", "user", fixes)
        return answer if answer[: len(prompt)] == prompt and len(answer) > len(prompt) else prompt + answer
    if _is_list(chosen):
        return _turns(chosen, "chosen", CHAT_ROLES, fixes)
    text = _text(value, "chosen", fixes, optional=False)
    pieces = DIALOGUE.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        raise RowError("no_prompt", "chosen is a text and there is no prompt column; what it answers cannot be told")
    return [
        chat_message(DIALOGUE_ROLES[speaker], said.strip())
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _eval_item(value: Mapping[str, Any], fixes: set[str], flags: set[str]) -> list[Message]:
    """{"input": text or messages, "ideal": a right answer or several, of which the first is trained}"""
    ideal = value["ideal"]
    if _is_list(ideal):
        if not ideal:
            raise RowError("empty_content", "ideal is an empty list")
        if len(ideal) > 1:
            flags.add("several_answers")
        ideal = ideal[0]
    return [*_side(value, "input", "user", fixes), *_side({"ideal": ideal}, "ideal", "assistant", fixes)]


def _segments(value: Mapping[str, Any], fixes: set[str]) -> Message:
    """[{"label", "text"}]: a document where every segment is trained. Where some are not, this is neither a chat nor
    a document, and which words a template would have to write cannot be told."""
    segments = parsed_list(value["segments"], "segments", fixes)
    texts: list[str] = []
    for number, segment in enumerate(segments, start=1):
        if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
            raise RowError("bad_content_type", f"segment {number} has no text")
        if segment.get("label") not in (True, False):
            raise RowError("bad_weight", f"segment {number}: label must be true or false")
        texts.append(segment["text"])
    if not all(segment["label"] for segment in segments):
        raise RowError(
            "segments_unsupported",
            "some segments are trained and some not, in a text without a chat; write them as prompt and completion",
        )
    return document("".join(texts), fixes)


def _text(value: Mapping[str, Any], column: str, fixes: set[str], *, optional: bool) -> str:
    text = value.get(column)
    if text is None and optional:
        return ""
    if text is None:
        raise RowError("null_content", f"{column} is null")
    if not isinstance(text, str):
        raise RowError("bad_content_type", f"{column} is {json_type(text)}, not a string")
    return clean_text(text, fixes)
