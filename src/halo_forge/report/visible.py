"""Text from outside, made fit to be shown: nothing in it can hide, reorder or act.

Escaping for HTML is the template's work (autoescape). This module deals with what stays dangerous or invisible after
escaping: control characters, terminal escapes, direction overrides, invisible tags, lone surrogates, endless answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Kept as they are: tab and line feed, and the joiners U+200C and U+200D that many scripts and emoji need.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls, ANSI's escape among them
    "\xad\u061c\u200b\u200e\u200f\u2028\u2029"  # soft hyphen, direction marks, separators
    "\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # direction overrides and isolates, invisible operators
    "\U000e0000-\U000e0fff"  # tags: invisible text
    "\ud800-\udfff]"  # half a character, which cannot be encoded
)


def visible(text: str) -> str:
    """The same text with every hidden character shown as a symbol or by its number; encodable as UTF-8."""
    return _HIDDEN.sub(_shown, text.replace("\r\n", "\n"))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode has a picture for each of these: ␛ for escape
    if code == 0x7F:
        return "\u2421"
    return f"⟨U+{code:04X}⟩"


@dataclass(frozen=True, slots=True)
class Clipped:
    """The beginning of a text, and how many characters of it are left out."""

    text: str
    num_hidden: int


def clip(text: str, num_chars: int, num_lines: int = 28) -> Clipped:
    """At most `num_chars` characters and `num_lines` lines. A little more is not cut: a note about it would be as
    long."""
    kept = text if len(text) <= num_chars + 40 else text[:num_chars]
    lines = kept.split("\n")
    if len(lines) > num_lines:
        kept = "\n".join(lines[:num_lines])
    return Clipped(kept, len(text) - len(kept))


def cut(text: str, num_chars: int) -> str:
    """At most `num_chars` characters; a cut is shown as one."""
    return text if len(text) <= num_chars else text[: num_chars - 1] + "…"


def cut_path(place: str, num_chars: int = 120) -> str:
    """The end of a long path, where file name and line stand."""
    return place if len(place) <= num_chars else "…" + place[1 - num_chars :]


@dataclass(frozen=True, slots=True)
class Difference:
    """A text in three parts; only the middle one differs from the text that it was held against."""

    before: str
    differs: str
    after: str


def difference(text: str, reference: str) -> Difference:
    """Where `text` leaves `reference`, by common beginning and end. When less than half is in common, nothing is
    marked: two texts that differ throughout are read side by side, not by their difference."""
    shortest = min(len(text), len(reference))
    start = 0
    while start < shortest and text[start] == reference[start]:
        start += 1
    end = 0
    while end < shortest - start and text[-1 - end] == reference[-1 - end]:
        end += 1
    if start + end < max(len(text), len(reference)) / 2 or text == reference:
        return Difference(text, "", "")
    stop = len(text) - end
    return Difference(text[:start], text[start:stop] or "⟨missing⟩", text[stop:])
