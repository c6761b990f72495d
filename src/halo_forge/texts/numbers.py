"""Numbers as people write them, read exactly: 1,000 and 1000.0, 1/2 and \\frac{1}{2}, 50 %, $3.50, 1.5e3, 18 apples.

Nothing is evaluated: a text is one number or none, and values are fractions of whole numbers, so that no rounding makes
two numbers equal. Every pattern runs in linear time on text of a bounded length, and numbers have a bounded size.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 300
"""A longer text is not one number."""
TAIL_CHARS = 4000
"""So much of a text's end is searched for its last number."""
MAX_DIGITS = 100
MAX_EXPONENT = 400


@dataclass(frozen=True, slots=True)
class Number:
    """value: of 50 % it is 50."""

    value: Fraction
    is_percent: bool = False


def same_number(one: Number, other: Number) -> bool:
    """Exactly equal. Where one of the two says percent and the other does not, it may mean either 50 or 0.5."""
    if one.is_percent == other.is_percent:
        return one.value == other.value
    share, plain = (one, other) if one.is_percent else (other, one)
    return plain.value in (share.value, share.value / 100)


# ------------------------------------------------------------------------------------------------ one plain form

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_THIN = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f'’]|\\[,! ]|\{,\}|,\\!)(?=\d{3}(?!\d))")
_WORDS_OF = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|textrm)\s*\{([^{}]*)\}")
_RAISED_BRACES = re.compile(r"\^\s*\{\s*([-+]?\d+)\s*\}")
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\s*\\degree")
_SMALL_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,;:!() \[\]]|[~*]{2}|~")
_CURRENCY = re.compile(r"\\?[$€£¥₹₽₩¢]")


def _plain(text: str) -> str:
    """Compatibility forms, LaTeX's spacing and words, currency signs and groups of thousands taken away."""
    if not text.isascii():
        text = _RAISED.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
        text = _VULGAR.sub(lambda found: f" {unicodedata.normalize('NFKC', found[0])}", text)
        text = _THIN.sub("", text)
        text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u2044", "/").replace("×", "*")
    if "\\" in text or "{" in text:
        text = _SMALL_FRACTION.sub(r"\\frac", _DEGREES.sub(" degrees", _WORDS_OF.sub(r" \1", _THIN.sub("", text))))
        text = _RAISED_BRACES.sub(r"^\1", text).replace("\\times", "*").replace("\\cdot", "*").replace("\\%", "%")
    text = _SPACING.sub(" ", text) if "\\" in text or "~" in text or "**" in text else text
    return _CURRENCY.sub("", _THIN.sub("", text)) if not text.isalnum() else text


# ------------------------------------------------------------------------------------------------ reading

_UNSIGNED = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_POWER = r"(?:[eE](?P<e>[-+]?\d+)(?![\w.]\w)|\s?[*x]\s?10\s?\^\s?(?P<p>[-+]?\d+))"
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    rf"""(?<![\w.^])(?<!\^[-+])
    (?P<sign>(?<![\w)\]}}.])[-+])?
    (?:
        10\s?\^\s?(?P<ten>[-+]?\d+)
      | (?P<whole>\d+\s?)?\\frac\s?\{{\s?(?P<n>-?(?:{_UNSIGNED}))\s?\}}\s?\{{\s?(?P<d>-?(?:{_UNSIGNED}))\s?\}}
      | (?P<whole1>\d+\s?)?\\frac\s?(?P<n1>\d)\s?(?P<d1>\d)
      | (?:(?P<whole2>\d+)\s{{1,2}})?(?P<n2>{_UNSIGNED})\s?/\s?(?P<d2>{_UNSIGNED})
      | (?P<plain>{_UNSIGNED}){_POWER}?
    )
    (?P<percent>\s?%|\s(?:percent|per\scent|percentage\spoints?)\b)?
    (?:\s(?P<scale>thousand|million|billion|trillion)\b)?""",
    re.VERBOSE,
)
_BEFORE = re.compile(r"(?:[^\W\d_]-?|[ .,:;?'\"()°])*(?:\b[^\W\d_]{1,20}\s?=|=|≈)?[ (]*")
_AFTER = re.compile(r"(?:\s?°|\s?[^\W\d_]+\.?(?:\^?[23])?|[ .,:;?'\"()/-])*")
_GLUED = """
cm mm km kg mg ml cl kwh mph kph hr hrs min mins sec secs am pm lb lbs oz ft in gb mb kb st nd rd th
"""
_NO_UNITS = """
pi sqrt sin cos tan log ln exp mod factorial dozen hundred or times plus minus over squared cubed
"""
_GLUED_UNITS, _NOT_UNITS = frozenset(_GLUED.split()), frozenset(_NO_UNITS.split())
_UNIT_LETTERS = frozenset("amgshlLJNWVACFK")
_GLUED_WORD = re.compile(r"[^\W\d_]+")


def read_number(text: str) -> Number | None:
    """The one number that a text holds, with or without words around it: `72`, `$1,000.00`, `18 dollars`, `x = 5`.

    None for anything else: no number or two of them, an expression with unknowns or operators, more than MAX_CHARS.
    """
    if len(text) > MAX_CHARS:
        return None
    text = re.sub(r"^(\W*[-+])\s+(?=[\d.\\])", r"\1", _plain(text).strip())
    found = list(_NUMBER.finditer(text))
    if len(found) != 1:
        return None
    before, after = text[: found[0].start()], text[found[0].end() :]
    if not _BEFORE.fullmatch(before) or not _AFTER.fullmatch(after) or not _are_units(before, after):
        return None
    return _value(found[0])


def leading_number(text: str) -> Number | None:
    """The number that a text begins with, whatever words follow; None where an operator or an unknown does."""
    text = _plain(text[:MAX_CHARS]).strip()
    found = _NUMBER.match(text)
    if found is None or re.match(r"\s?[-+*/^=<>!\\{]|\w|[.)]\s+\S", text[found.end() :]):
        return None
    return _value(found)


def last_number(text: str) -> Number | None:
    """The last number of a text, however much else it holds."""
    found = deque(_NUMBER.finditer(_plain(text[-TAIL_CHARS:])), 1)
    return _value(found[0]) if found else None


def _are_units(before: str, after: str) -> bool:
    """Whether the words beside a number are words, and no part of an expression (3x, 2 pi, two dozen)."""
    words = [word.lower() for word in _GLUED_WORD.findall(before + " " + after)]
    if not _NOT_UNITS.isdisjoint(words):
        return False
    follows = _GLUED_WORD.match(after)
    if follows is not None:
        return follows[0].lower() in _GLUED_UNITS
    first = _GLUED_WORD.search(after)
    return first is None or len(first[0]) > 1 or first[0] in _UNIT_LETTERS


def _value(found: re.Match[str]) -> Number | None:
    """None for a division by zero and for numbers of more than MAX_DIGITS digits or beyond 10 ** MAX_EXPONENT."""
    if found.end() - found.start() > 3 * MAX_DIGITS:
        return None
    group = found.groupdict()
    try:
        exponent = int(group["ten"] or group["e"] or group["p"] or 0) + _SCALES.get(group["scale"] or "", 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        numerator = group["n"] or group["n1"] or group["n2"]
        if group["ten"] is not None:
            value = Fraction(1)
        elif numerator is None:
            value = _fraction(group["plain"])
        else:
            whole = _fraction(group["whole"] or group["whole1"] or group["whole2"] or "0")
            value = whole + _fraction(numerator) / _fraction(group["d"] or group["d1"] or group["d2"])
        value *= Fraction(10) ** exponent
    except (ValueError, ZeroDivisionError):
        return None
    return Number(-value if group["sign"] == "-" else value, group["percent"] is not None)


def _fraction(digits: str) -> Fraction:
    digits = digits.replace(",", "").strip()
    if len(digits) > MAX_DIGITS:
        raise ValueError("too many digits")
    return Fraction(digits)
