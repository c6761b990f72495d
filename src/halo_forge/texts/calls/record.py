"""What an answer says about tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from halo_forge.texts.json_documents import parse_json

MAX_CALLS = 128
"""More calls in one answer are a loop, not a plan; they are not read further."""


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """`calls` in the order of the text. `problem` tells why an attempt at a call cannot be read; the calls before it
    are there all the same, but a server would refuse or misread the answer."""

    calls: tuple[Call, ...] = ()
    problem: str | None = None

    @property
    def attempts(self) -> bool:
        """Whether the answer calls, or tries to."""
        return bool(self.calls) or self.problem is not None


NOTHING = Said()
Schemas = Mapping[str, Mapping[str, Any]]
"""Name of a tool -> the JSON Schema of its parameters: what a format without types needs to read a value."""
Read = Callable[[str, Schemas], Said]


def call_of(value: Any) -> Call | str:
    """{"name", "arguments"} in its usual spellings, or why it is none."""
    if not isinstance(value, dict):
        return "a call is an object with name and arguments"
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name", value.get("tool_name"))
    if not isinstance(name, str) or not name:
        return "a call without a name"
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    if isinstance(arguments, str):
        parsed = parse_json(arguments)
        if parsed is None:
            return "its arguments are text that is not JSON"
        arguments = parsed[0]
    if arguments is None:
        arguments = {}
    return Call(name, arguments) if isinstance(arguments, dict) else "its arguments are not an object"
