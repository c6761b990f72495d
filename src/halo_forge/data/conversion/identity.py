"""Which conversations are the same, and which prompts: the two hashes that duplicates and splits stand on.

Both are sha256 over compact JSON with sorted keys, in every process and on every machine alike. The text of the
common message, a role and one text, is written directly; a test holds it against the JSON of the whole.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from json.encoder import encode_basestring as quoted
from typing import Any

from halo_forge.chat.records import Conversation, Message, TextPart
from halo_forge.data.conversion.content_parts import text_of
from halo_forge.data.conversion.turns import message_content
from halo_forge.errors import RowError
from halo_forge.texts.final_answers import without_instruction

COMPACT = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def conversation_id(conversation: Conversation) -> str:
    """Hash of what is said: messages and tools, not the source, slices or the row's weight."""
    return content_sha256(conversation.messages, conversation.tools)


def content_sha256(turns: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
    """Raises RowError where tools or tool calls hold what JSON has no form for."""
    try:
        messages = ",".join(map(_message_json, turns))
        described = COMPACT.encode(list(tools)) if tools else "[]"
        return hashlib.sha256(f'{{"messages":[{messages}],"tools":{described}}}'.encode()).hexdigest()
    except UnicodeEncodeError:
        raise _half_a_character() from None
    except RecursionError:
        raise RowError("too_deep", "tools or tool calls are nested too deep") from None
    except (TypeError, ValueError) as error:  # Parquet holds dates and bytes
        raise RowError("bad_tools", f"tools and tool calls hold a value that JSON has no form for: {error}") from None


def _half_a_character() -> RowError:
    return RowError("lone_surrogate", "half of a surrogate pair is no character")


def _message_json(turn: Message) -> str:
    if turn.reasoning is None and turn.name is None and turn.call_id is None and turn.weight is None:
        parts = turn.parts
        if len(parts) == 1 and type(part := parts[0]) is TextPart:
            return f'{{"parts":[{{"text":{quoted(part.text)}}}],"role":"{turn.role}"}}'
    return COMPACT.encode(message_content(turn))


def prompt_key(turns: Sequence[Message]) -> str:
    """Hash of the row's own turns before the first answer (a document: of all of it), blind to case, white space and
    Unicode composition, so that a prompt and its trivial variant never stand on two sides of a split. The instruction
    that data.final_answer puts behind a question is not the row's own."""
    opening: list[str] = []
    for turn in turns:
        if turn.role == "assistant":
            break
        opening.append(f'["{turn.role}",{quoted(_plain(without_instruction(text_of(turn))))}]')
    try:
        return hashlib.sha256(f"[{','.join(opening)}]".encode()).hexdigest()
    except UnicodeEncodeError:
        raise _half_a_character() from None


def _plain(text: str) -> str:
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
