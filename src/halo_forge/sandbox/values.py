"""Plain values across a process border, as JSON text that cannot carry behaviour.

None, bool, int, float, str, bytes, complex, Decimal, Fraction, list, tuple, set, frozenset and dict, nested. What comes
out is of exactly these types, whatever went in: an object whose `__eq__` always agrees has no form here. An iterator
arrives as an iterator over its first values.
"""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

MAX_CHARS = 1_000_000
MAX_ITERATED = 10_000


def value_to_text(value: Any) -> str:
    """One line of JSON. TypeError for a value of another kind, ValueError for one that is too long or too deep."""
    try:
        text = json.dumps(_plain(value))
    except RecursionError:
        raise ValueError("a value is nested too deep") from None
    if len(text) > MAX_CHARS:
        raise ValueError(f"a value takes more than {MAX_CHARS} characters")
    return text


def text_to_value(text: str) -> Any:
    """The value of such a line; ValueError for a text that is none."""
    try:
        return _value(json.loads(text))
    except (TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"this is no value: {type(error).__name__}") from None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind, name in (
        (int, "int"),
        (float, "float"),
        (complex, "complex"),
        (Decimal, "decimal"),
        (Fraction, "fraction"),
    ):
        if isinstance(value, kind):
            return {name: kind.__repr__(value) if kind in (int, float) else str(value)}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for sequence, name in ((tuple, "tuple"), (set, "set"), (frozenset, "frozenset")):
        if isinstance(value, sequence):
            return {name: [_plain(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, Iterator):
        return {"iterator": [_plain(item) for item in islice(value, MAX_ITERATED)]}
    if isinstance(value, KeysView | ValuesView | ItemsView | range):
        return [_plain(item) for item in list[Any](value)]
    raise TypeError(f"a value of type {type(value).__name__} cannot leave its process")


def _value(plain: Any) -> Any:
    if plain is None or isinstance(plain, bool | str):
        return plain
    if isinstance(plain, list):
        return [_value(item) for item in plain]
    if not isinstance(plain, dict) or len(plain) != 1:
        raise ValueError("this is no value")
    name, content = next(iter(plain.items()))
    if name == "dict":
        return {_value(key): _value(content_of_key) for key, content_of_key in content}
    if name in _SCALARS:
        return _SCALARS[name](content)
    return _COLLECTIONS[name](_value(item) for item in content)


_SCALARS: dict[str, Any] = {
    "int": int, "float": float, "complex": complex, "decimal": Decimal, "fraction": Fraction, "bytes": bytes.fromhex,
}  # fmt: skip
_COLLECTIONS: dict[str, Any] = {
    "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": lambda items: iter(list(items)),
}  # fmt: skip
