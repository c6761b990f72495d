"""The final number of a text, by GSM8K's rule: after the last `####`, thousands separators left out."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARK = "####"


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`; the last number of a text that has no such mark."""
    return marked_number(text) if _MARK in text else _number(_NUMBER.findall(text)[-1:])


def marked_number(text: str) -> Decimal | None:
    """The number after the last `####`."""
    _, mark, after = text.rpartition(_MARK)
    return _number(_NUMBER.findall(after)[:1]) if mark else None


def _number(found: list[str]) -> Decimal | None:
    try:
        return Decimal(found[0].replace(",", "")) if found else None
    except InvalidOperation:
        return None
