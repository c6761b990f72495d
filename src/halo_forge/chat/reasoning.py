"""What becomes of an assistant's reasoning before a conversation is rendered: `keep | strip | require`.

Reasoning is a message's own field, or a `<think>...</think>` block that its text begins with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from halo_forge.chat.records import Conversation, Message, Part, TextPart
from halo_forge.errors import RowError

ReasoningPolicy = Literal["keep", "strip", "require"]

_BLOCKS = re.compile(r"\s*(?:<think>.*?</think>\s*)+", re.DOTALL)
_BLOCK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


def has_reasoning(message: Message) -> bool:
    """Whether an assistant message thinks: an empty `<think>` block is no thought."""
    if message.reasoning is not None and message.reasoning.strip():
        return True
    found = _BLOCKS.match(message.text) if "<think>" in message.text else None
    return found is not None and any(thought.strip() for thought in _BLOCK.findall(found.group()))


def strip_reasoning(conversation: Conversation) -> Conversation:
    """The conversation without reasoning in any assistant turn; itself where there is none."""
    stripped = tuple(
        _strip_message(message) if message.role == "assistant" else message for message in conversation.messages
    )
    changed = any(new is not old for new, old in zip(stripped, conversation.messages, strict=True))
    return replace(conversation, messages=stripped) if changed else conversation


def require_reasoning(conversation: Conversation, weights: Mapping[int, float]) -> None:
    """`weights`: message -> loss weight of each assistant turn. Raises RowError `reasoning_missing` for a trained
    answer without reasoning."""
    for index, weight in weights.items():
        if weight > 0 and not has_reasoning(conversation.messages[index]):
            raise RowError("reasoning_missing", f"the trained answer in message {index} comes without reasoning")


def _strip_message(message: Message) -> Message:
    leading = 0
    while leading < len(message.parts) and isinstance(message.parts[leading], TextPart):
        leading += 1
    text = "".join(part.text for part in message.parts[:leading] if isinstance(part, TextPart))
    found = _BLOCKS.match(text) if "<think>" in text else None
    if message.reasoning is None and found is None:
        return message
    parts: tuple[Part, ...] = message.parts
    if found is not None:
        parts = (TextPart(text=text[found.end() :]), *message.parts[leading:])
    return replace(message, reasoning=None, parts=parts)
