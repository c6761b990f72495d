"""Values as YAML text that `strict_yaml` (and every YAML 1.1 or 1.2 reader) reads back as the same values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from halo_forge.config.snippets import clipped, readable, without_secrets
from halo_forge.config.strict_yaml import resolve_plain

_SAFE_WITHOUT_QUOTES = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+-]*\Z")
_WORDS_OF_YAML_1_1 = {"y", "n", "yes", "no", "on", "off"}
_TO_ESCAPE = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")


def yaml_value(value: Any) -> str:
    """JSON data as YAML on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(str(key))}: {yaml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(yaml_value(item) for item in value) + "]"
    return _text(str(value))


def shown_value(value: Any) -> str:
    """A value for a message: short, without secrets, harmless on a terminal."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "a very large whole number"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, Sequence) and not isinstance(value, str) and len(yaml_value(value)) > 60:
        return f"a list of {len(value)}"
    return readable(clipped(without_secrets(yaml_value(value))))


def _text(text: str) -> str:
    if _SAFE_WITHOUT_QUOTES.match(text) and text.lower() not in _WORDS_OF_YAML_1_1 and resolve_plain(text) == text:
        return text
    return _TO_ESCAPE.sub(lambda found: f"\\u{ord(found.group()):04x}", json.dumps(text, ensure_ascii=False))
