"""JSON in a text: parsed strictly, with one spelling for equal values."""

from __future__ import annotations

import json
import math
from typing import Any


def is_json_document(text: str) -> bool:
    """Whether the text is one JSON object or array (a bare number or word is no document)."""
    return text.lstrip().startswith(("{", "[")) and parse_json(text) is not None


def parse_json(text: str) -> tuple[Any] | None:
    """The parsed value in a 1-tuple (null is a value), or None. NaN and Infinity are not JSON. Never raises: an
    answer may be thousands of brackets deep."""
    try:
        return (json.loads(text, parse_constant=refuse_constant, parse_float=plain_number),)
    except (ValueError, RecursionError):
        return None


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def plain_number(digits: str) -> int | float:
    value = float(digits)
    return int(value) if math.isfinite(value) and value.is_integer() else value


def canonical_json(text: str) -> str | None:
    """One spelling for equal values. Text, not Python objects, because True == 1 there."""
    parsed = parse_json(text)
    try:
        return None if parsed is None else json.dumps(parsed[0], sort_keys=True)
    except RecursionError:
        return None
