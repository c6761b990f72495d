"""One plain form of a conversation's words, on which exact duplicates, near-duplicates and contamination stand.

Two texts that a reader would call the same have the same plain form: it is blind to case, to white space, to Unicode
composition (NFC) and to invisible characters. Punctuation stays; the contamination search drops it as well.
"""

from __future__ import annotations

import json
import re
import unicodedata

from halo_forge.chat.records import Conversation, MediaPart, Message, TextPart, ToolCall
from halo_forge.texts.final_answers import without_instruction

SYSTEM_END = "\x1e"
"""Stands between the instructions (system text, tools) and the rest of a plain prompt. str.split() takes U+001E for
white space, so no plain text holds one of its own."""
INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff]")
WIDE = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
"""Characters of scripts that write no spaces between words (Han, Kana, Thai, Lao, Burmese, Khmer)."""


def plain(text: str) -> str:
    """NFC, casefolded, white space collapsed to single spaces, invisible characters left out. Characters of scripts
    without spaces become words of their own, so that word n-grams see into a Chinese sentence. Idempotent."""
    if text.isascii():
        return " ".join(text.lower().split())
    text = unicodedata.normalize("NFD", INVISIBLE.sub("", text)).casefold()  # Unicode's canonical caseless matching
    text = unicodedata.normalize("NFC", text)
    return " ".join(WIDE.sub(r" \1 ", text).split())


def plain_turns(conversation: Conversation) -> tuple[str, str]:
    """(prompt, answer) in plain form.

    prompt  user and tool messages, in order; before them, where there are any, the system text and the tools' JSON,
            closed by SYSTEM_END, because rows that share long instructions are no copies of each other
    answer  assistant messages, in order: reasoning, text, and name and arguments of tool calls; a document is an answer
    The instruction that data.final_answer puts behind a question is left out: equal in all rows, it says nothing.
    An image or audio stands as one word of its kind and content: the same question about two pictures is two questions.
    """
    instructions: list[str] = []
    prompt: list[str] = []
    answer: list[str] = []
    for message in conversation.messages:
        if message.role == "assistant" or message.role == "document":
            _collect(message, answer)
        else:
            _collect(message, instructions if message.role == "system" else prompt)
    if conversation.tools:
        instructions.append(json.dumps(conversation.tools, sort_keys=True, ensure_ascii=False, default=str))
    plain_prompt = plain(" ".join(prompt))
    if instructions:
        plain_prompt = plain(" ".join(instructions)) + SYSTEM_END + plain_prompt
    return plain_prompt, plain(" ".join(answer))


def without_system(prompt: str) -> str:
    """The plain prompt without system text and tools."""
    return prompt.rpartition(SYSTEM_END)[2]


def _collect(message: Message, texts: list[str]) -> None:
    if message.reasoning:
        texts.append(message.reasoning)
    for part in message.parts:
        if isinstance(part, TextPart):
            texts.append(without_instruction(part.text) if message.role == "user" else part.text)
        elif isinstance(part, ToolCall):
            arguments = json.dumps(part.arguments, sort_keys=True, ensure_ascii=False, default=str)
            texts.append(f"{part.name} {arguments}")
        elif isinstance(part, MediaPart):
            texts.append(f"{part.kind}:{part.sha256 or part.path.replace(' ', '_')}")
