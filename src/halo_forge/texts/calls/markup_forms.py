"""Calls written in markup: every argument has a tag, or a syntax of the model's own. Values carry no type there, so the
tool's schema says what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halo_forge.texts.calls.record import MAX_CALLS, NOTHING, Call, Said, Schemas
from halo_forge.texts.json_documents import parse_json

_PYTHON_WORDS = {"True": True, "False": False, "None": None}
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Markup:
    """opening NAME name_end (key_opening KEY key_end value_opening VALUE value_end)* closing."""

    opening: str
    name_end: str
    key_opening: str
    key_end: str
    value_opening: str
    value_end: str
    closing: str

    def __call__(self, text: str, tools: Schemas) -> Said:
        calls: list[Call] = []
        at = text.find(self.opening)
        while at >= 0:
            found = self._call(text, at + len(self.opening), tools)
            if isinstance(found, str):
                return Said(tuple(calls), found)
            if len(calls) == MAX_CALLS:
                return Said(tuple(calls), f"more than {MAX_CALLS} calls")
            calls.append(found[0])
            at = text.find(self.opening, found[1])
        return Said(tuple(calls)) if calls else NOTHING

    def _call(self, text: str, start: int, tools: Schemas) -> tuple[Call, int] | str:
        closing = text.find(self.closing, start)
        if closing < 0:
            return f"{self.closing} is missing"
        name_end = min(
            place for place in (text.find(self.name_end, start, closing), closing) if place >= 0
        )  # a call without arguments may close right after its name
        name = text[start:name_end].strip()
        if not name or name.startswith(("{", "<")):
            return f"no name stands after {self.opening}"
        properties = _properties(tools.get(name))
        arguments: dict[str, Any] = {}
        at = text.find(self.key_opening, name_end, closing)
        before = text[name_end : at if at >= 0 else closing].removeprefix(self.name_end)
        if before.strip():
            return f"{name[:60]} is followed by something that is no argument"
        while 0 <= at < closing:
            key_end = text.find(self.key_end, at, closing)
            value_start = text.find(self.value_opening, key_end + len(self.key_end)) if key_end >= 0 else -1
            value_end = text.find(self.value_end, value_start) if value_start >= 0 else -1
            if value_end < 0:
                return f"an argument of {name[:60]} is not closed"
            key = text[at + len(self.key_opening) : key_end].strip()
            value = text[value_start + len(self.value_opening) : value_end]
            arguments[key] = typed_value(value, properties.get(key))
            after = value_end + len(self.value_end)
            if after > closing:  # the value holds the text of the closing tag
                closing = text.find(self.closing, after)
                if closing < 0:
                    return f"{self.closing} is missing"
            at = text.find(self.key_opening, after, closing)
        return Call(name, arguments), closing + len(self.closing)


def _properties(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    properties = schema.get("properties") if schema else None
    return properties if isinstance(properties, dict) else {}


def typed_value(text: str, schema: Any) -> Any:
    """The value that a text without quotes stands for: a string where the schema wants one, else JSON (or Python's
    True, False, None), else the text. One line break on each side belongs to the tags."""
    text = text.removeprefix("\n").removesuffix("\n")
    kind = schema.get("type") if isinstance(schema, dict) else None
    kinds = kind if isinstance(kind, list) else [kind]
    if "string" in kinds and text not in ("null", "None"):
        return text
    if text in _PYTHON_WORDS:
        return _PYTHON_WORDS[text]
    parsed = parse_json(text)
    return text if parsed is None else parsed[0]


_GEMMA_OPENING, _GEMMA_CLOSING = "<|tool_call>call:", "<tool_call|>"
_GEMMA_QUOTES = ('<|"|>', "<escape>")
_GEMMA_NAME = re.compile(r"[\w.\-]+")
_GEMMA_ATOM = re.compile(r"[^,{}\[\]<]*")


def read_gemma(text: str, tools: Schemas) -> Said:
    """<|tool_call>call:NAME{key:value,key:<|"|>text<|"|>}<tool_call|>: JSON with quotes of its own and bare keys."""
    calls: list[Call] = []
    at = text.find(_GEMMA_OPENING)
    while at >= 0:
        name = _GEMMA_NAME.match(text, at + len(_GEMMA_OPENING))
        if name is None:
            return Said(tuple(calls), "no name stands after call:")
        try:
            value, end = _gemma_value(text, name.end(), 0)
        except (ValueError, IndexError):
            return Said(tuple(calls), f"the arguments of {name[0][:60]} cannot be read")
        if not isinstance(value, dict):
            return Said(tuple(calls), f"{name[0][:60]} has no arguments in braces")
        if len(calls) == MAX_CALLS:
            return Said(tuple(calls), f"more than {MAX_CALLS} calls")
        calls.append(Call(name[0], value))
        at = text.find(_GEMMA_OPENING, end)
    return Said(tuple(calls)) if calls else NOTHING


def _gemma_value(text: str, at: int, depth: int) -> tuple[Any, int]:
    """(value, one past its end). Raises ValueError or IndexError for what is none."""
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    if (quoted := _gemma_text(text, at)) is not None:
        return quoted
    if text[at] == "{":
        found: dict[str, Any] = {}
        at += 1
        while text[at] != "}":
            key, at = _gemma_key(text, at)
            found[key], at = _gemma_value(text, at, depth + 1)
            at = _gemma_next(text, at, "}")
        return found, at + 1
    if text[at] == "[":
        items: list[Any] = []
        at += 1
        while text[at] != "]":
            item, at = _gemma_value(text, at, depth + 1)
            items.append(item)
            at = _gemma_next(text, at, "]")
        return items, at + 1
    atom = _GEMMA_ATOM.match(text, at)
    word = atom[0].strip() if atom else ""
    if not word or atom is None:
        raise ValueError("a value is missing")
    if word in _PYTHON_WORDS:
        return _PYTHON_WORDS[word], atom.end()
    parsed = parse_json(word)
    return (word if parsed is None else parsed[0]), atom.end()


def _gemma_text(text: str, at: int) -> tuple[str, int] | None:
    for quote in _GEMMA_QUOTES:
        if text.startswith(quote, at):
            end = text.index(quote, at + len(quote))
            return text[at + len(quote) : end], end + len(quote)
    return None


def _gemma_key(text: str, at: int) -> tuple[str, int]:
    if (quoted := _gemma_text(text, at)) is not None:
        key, colon = quoted
    else:
        colon = text.index(":", at)
        key = text[at:colon]
    if text[colon] != ":":
        raise ValueError("a colon is missing")
    return key, colon + 1


def _gemma_next(text: str, at: int, closing: str) -> int:
    """Past a comma, or at the closing bracket."""
    if text[at] == ",":
        return at + 1
    if text[at] != closing:
        raise ValueError("a comma is missing")
    return at
