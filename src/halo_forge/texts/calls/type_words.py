"""Type names of other languages as JSON Schema: BFCL's `dict` and `float`, xLAM's `List[int], optional`, Java's."""

from __future__ import annotations

import json
from typing import Any

JSON_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
MAX_TYPE_CHARS = 200
_GROUPS = {
    "object": "dict dictionary map mapping hashmap hashtable record struct json",
    "array": "list tuple set frozenset sequence iterable arraylist queue stack ndarray vector",
    "string": "str text char character date datetime date-time time timestamp timedelta bytes enum uuid url uri",
    "number": "float double decimal real numeric complex",
    "integer": "int long short byte bigint uint unsigned int32 int64",
    "boolean": "bool",
    "null": "none nonetype void undefined nil",
}
_TYPE_OF = {word: kind for kind, words in _GROUPS.items() for word in words.split()} | {
    kind: kind for kind in JSON_TYPES
}
_ANY = frozenset({"any", "object?", "unknown", "typing.any", "callable", "function", ""})


class UnknownType(ValueError):
    """A type name that stands for nothing known."""


def type_schema(word: str) -> tuple[dict[str, Any], bool]:
    """(schema of a type name, whether the name says that the argument may be left out). Raises UnknownType."""
    if len(word) > MAX_TYPE_CHARS:
        raise UnknownType(word)
    name = word.strip()
    optional = False
    for mark in (", optional", "(optional)", ",optional"):
        if name.lower().endswith(mark):
            name, optional = name[: -len(mark)].strip(), True
    schema = _parsed(name)
    return schema, optional or name.lower().startswith("optional[")


def _parsed(name: str) -> dict[str, Any]:
    name = name.strip()
    alternatives = _parts(name, "|")
    if len(alternatives) > 1:
        return _any_of([_parsed(part) for part in alternatives])
    head, bracket, rest = name.partition("[")
    if bracket and name.endswith("]"):
        return _generic(head.strip().lower().removeprefix("typing."), _parts(rest[:-1], ","))
    short = name.lower().removeprefix("typing.")
    if short in _ANY:
        return {}
    if short not in _TYPE_OF:
        raise UnknownType(name)
    return {"type": _TYPE_OF[short]}


def _generic(head: str, inner: list[str]) -> dict[str, Any]:
    if head == "literal":
        return {"enum": [_literal(part) for part in inner]}
    if head == "callable":
        return {}
    parts = [_parsed(part) for part in inner if part.strip() not in ("...", "")]
    if head == "optional" and parts:
        return _any_of([parts[0], {"type": "null"}])
    if head == "union":
        return _any_of(parts)
    kind = _TYPE_OF.get(head)
    if kind == "array":
        same = parts and all(part == parts[0] for part in parts)
        return {"type": "array", "items": parts[0]} if same and parts[0] else {"type": "array"}
    if kind == "object":
        values = parts[1] if len(parts) == 2 else {}
        return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
    raise UnknownType(head)


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One `type` list where that says it all."""
    if any(not schema for schema in schemas):
        return {}
    if all(set(schema) == {"type"} for schema in schemas):
        kinds = list(dict.fromkeys(schema["type"] for schema in schemas))
        return {"type": kinds if len(kinds) > 1 else kinds[0]}
    return {"anyOf": schemas}


def _literal(text: str) -> Any:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parts(text: str, separator: str) -> list[str]:
    """Split at the separators that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "[(":
            depth += 1
        elif character in "])":
            depth -= 1
        elif character == separator and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]
