"""The final number of an answer, by GSM8K's rule."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_NUMBER_MARK = "####"


def numeric_match(text: str, reference: str) -> float | None:
    """GSM8K's rule: the number after the reference's last `####` against the number after the answer's last `####`,
    or the answer's last number where it has no `####`. Compared as decimals, so 72, 72.0 and 72.00 agree and
    thousands separators do not matter. None when the reference carries no such number."""
    expected = marked_number(reference)
    if expected is None:
        return None
    said = marked_number(text) if _NUMBER_MARK in text else _number(_NUMBER.findall(text)[-1:])
    return float(said == expected)


def marked_number(text: str) -> Decimal | None:
    """The number after the last `####`."""
    _, mark, after = text.rpartition(_NUMBER_MARK)
    return _number(_NUMBER.findall(after)[:1]) if mark else None


def _number(found: list[str]) -> Decimal | None:
    if not found:
        return None
    try:
        return Decimal(found[0].replace(",", ""))
    except InvalidOperation:
        return None
