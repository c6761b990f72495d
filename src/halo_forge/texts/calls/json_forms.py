"""Calls written as JSON: between tags, after a name, or bare. Every reader is one pass over the text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from halo_forge.texts.calls.record import MAX_CALLS, NOTHING, Call, Said, Schemas, call_of
from halo_forge.texts.json_documents import plain_number, refuse_constant

_DECODER = json.JSONDecoder(parse_constant=refuse_constant, parse_float=plain_number)
_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"\s*([\w.\-]+)")
_NAME_KEY = re.compile(r'"(?:tool_)?name"\s*:')
_BARE_SEPARATOR = re.compile(r"[ \t\r\n]*[;,]?[ \t\r\n]*")
_BEFORE_JSON_CHARS = 200
"""How far behind a name its arguments may begin."""


def json_at(text: str, start: int) -> tuple[Any, int] | None:
    """(the JSON value that begins at `start` or after white space, one past its end), or None."""
    try:
        value, end = _DECODER.raw_decode(text, skip_space(text, start))
    except (ValueError, RecursionError):
        return None
    return value, end


def skip_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start


@dataclass(frozen=True, slots=True)
class TaggedJson:
    """`opening` {"name", "arguments"} `closing`, once for each call, or around a list of them. A closing tag that the
    stop token stands for may be missing at the end. The last `kept` characters of `opening` belong to the JSON."""

    opening: str
    closing: str
    kept: int = 0

    def __call__(self, text: str, tools: Schemas) -> Said:
        calls: list[Call] = []
        at = text.find(self.opening)
        while at >= 0:
            found = json_at(text, at + len(self.opening) - self.kept)
            if found is None:
                return Said(tuple(calls), f"no JSON stands after {self.opening}")
            value, end = found
            num_before = len(calls)
            problem = add_calls(value, calls)
            if problem:
                return Said(tuple(calls), problem)
            end = skip_space(text, end)
            if not text.startswith(self.closing, end) and text[end : end + 1]:
                return Said(tuple(calls[:num_before]), f"{self.closing} does not stand right after the call")
            at = text.find(self.opening, end)
        return Said(tuple(calls)) if calls else NOTHING


@dataclass(frozen=True, slots=True)
class NamedJson:
    """`mark` name ... `before` {arguments}: the name is outside the JSON."""

    mark: str
    before: str

    def __call__(self, text: str, tools: Schemas) -> Said:
        calls: list[Call] = []
        at = text.find(self.mark)
        while at >= 0:
            name = _NAME.match(text, at + len(self.mark))
            if name is None:
                return Said(tuple(calls), f"no name stands after {self.mark}")
            start = text.find(self.before or "{", name.end(), name.end() + _BEFORE_JSON_CHARS)
            found = json_at(text, start + len(self.before)) if start >= 0 else None
            if found is None or not isinstance(found[0], dict):
                return Said(tuple(calls), f"the call of {name[1][:60]} has no JSON object of arguments")
            if len(calls) == MAX_CALLS:
                return Said(tuple(calls), f"more than {MAX_CALLS} calls")
            calls.append(Call(name[1], found[0]))
            at = text.find(self.mark, found[1])
        return Said(tuple(calls)) if calls else NOTHING


def read_bare_json(text: str, tools: Schemas) -> Said:
    """The whole answer is calls: objects one after the other, or a list of them. JSON that names no call is text."""
    text = text.strip().removeprefix("<|python_tag|>").lstrip()
    if not text.startswith(("{", "[")):
        return NOTHING
    looks_like_calls = _NAME_KEY.search(text, 0, 400) is not None
    calls: list[Call] = []
    at = 0
    while at < len(text):
        found = json_at(text, at)
        if found is None:
            return Said(tuple(calls), "the call is not JSON") if looks_like_calls else NOTHING
        value, end = found
        problem = add_calls(value, calls)
        if problem:
            return Said(tuple(calls), problem) if looks_like_calls or calls else NOTHING
        separator = _BARE_SEPARATOR.match(text, end)
        at = separator.end() if separator else end
    return Said(tuple(calls)) if calls else NOTHING


def add_calls(value: Any, calls: list[Call]) -> str | None:
    """Append the call, or each call of a list; the problem that stopped it, or None."""
    for item in value if isinstance(value, list) else [value]:
        call = call_of(item)
        if isinstance(call, str):
            return call
        if len(calls) == MAX_CALLS:
            return f"more than {MAX_CALLS} calls"
        calls.append(call)
    return None
