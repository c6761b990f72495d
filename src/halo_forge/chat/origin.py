"""Which characters of a rendered conversation come from its content, and from which message.

The conversation is rendered a second time with every character of its content moved to a rare code point that names
the message it stands in. The two renderings must agree character by character, up to that move; then each
character of the real rendering is known to be the template's or a message's. Some characters stay where
they are, because templates act on them: white space (trimmed), quotes, backslashes and what cannot be printed (escaped
in JSON or in a Python repr), and, only where the template inspects them, its own literals (`'</think>' in content`).

    real     <|im_start|>user\\nWhat is <|im_end|>?<|im_end|>\\n
    shifted  <|im_start|>user\\n⬚⬚⬚⬚ ⬚⬚ ⬚⬚⬚⬚⬚⬚⬚⬚⬚⬚⬚<|im_end|>\\n      the first <|im_end|> is text, the second structure
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RenderFunction = Callable[[list[dict[str, Any]], Sequence[dict[str, Any]]], str]

# 15 bits from U+20000 on: 8 messages x 4 fields x the low 10 bits of the character. These are assigned ideographs, so
# that a template which prints a Python repr does not escape them, and sorting and casing leave them alone.
_SHIFTED = 0x20000
_CODE_BITS = 10
_CODE_MASK = (1 << _CODE_BITS) - 1
_MESSAGES_TOLD_APART = 8
_SHIFTED_END = _SHIFTED + (_MESSAGES_TOLD_APART * 4 << _CODE_BITS)  # what is there already stays, like white space
_STAYING = "\"'\\"
TEXT, REASONING, CALL, _TOOLS = 0, 1, 2, 3
_TEXT_FIELDS = {"content": TEXT, "reasoning_content": REASONING}
_MAX_LITERALS = 64

_Spans = tuple[tuple[int, int], ...]
_Kept = dict[tuple[int, str], _Spans]  # (message index, field) -> the literals in it that stay unshifted


class _Shift(dict[int, int]):
    """str.translate table of one slot; grows as characters are met."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.first = _SHIFTED + (slot << _CODE_BITS)

    def __missing__(self, code: int) -> int:
        character = chr(code)
        stays = character in _STAYING or character.isspace() or not character.isprintable()
        stays |= _SHIFTED <= code < _SHIFTED_END
        self[code] = code if stays else self.first + (code & _CODE_MASK)
        return self[code]


_SHIFTS = tuple(_Shift(slot) for slot in range(_MESSAGES_TOLD_APART * 4))
_PLAIN_NAME = re.compile(r"[\w .:/-]*")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch whose visible characters all come from one field of one message; `end` is exclusive."""

    message: int
    field: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Origin:
    """`shifted` is the rendering with content moved away: what can be read in it was written by the template.

    slots     int16 [number of characters]; -1 = the template's, or a character that never moves
    segments  in order of appearance
    """

    shifted: str
    slots: np.ndarray
    segments: tuple[Segment, ...]

    def is_content(self, start: int, end: int) -> bool:
        """Whether any character of [start, end) comes from content."""
        return bool((self.slots[start:end] >= 0).any())

    def extent(self, message: int) -> tuple[int, int] | None:
        """First and one past the last visible character of a message, or None where nothing of it is visible."""
        mine = [segment for segment in self.segments if segment.message == message]
        return (mine[0].start, mine[-1].end) if mine else None

    def shows(self, message: int, field: int) -> bool:
        return any(segment.message == message and segment.field == field for segment in self.segments)


def visible(text: str) -> bool:
    """Whether a text has a character that moves, so that its place in a rendering can be seen."""
    return any(_SHIFTS[0][ord(character)] != ord(character) for character in text)


def unmoved_edges(text: str) -> tuple[str, str]:
    """What a text begins and ends with that never moves (quotes, backslashes), without the white space outside."""
    moves = [_SHIFTS[0][ord(character)] != ord(character) for character in text]
    if not any(moves):
        return "", ""
    return text[: moves.index(True)].lstrip(), text[len(text) - moves[::-1].index(True) :].rstrip()


def trace_origin(
    rendered: str,
    messages: list[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    render: RenderFunction,
    literals: tuple[str, ...],
) -> Origin | None:
    """The origin of every character of `rendered`, or None where the template's output depends on the content in a
    way that cannot be followed. `literals` are the template's own string constants. Raises what `render` raises."""
    # Only messages with something to see get a number: numbers come round again after eight.
    numbered = [index for index, message in enumerate(messages) if _shift_message(0, message, {}) != message]
    task = _Task(rendered, messages, tools, render, {index: number for number, index in enumerate(numbered)})
    shifted, slots = _compare(task, {})
    if slots is None:
        kept = _smallest_kept(task, _occurrences(messages, literals))
        if kept is None:
            return None
        shifted, slots = _compare(task, kept)
        if slots is None or not _claim_copies(task, shifted, slots, kept):
            return None
    return Origin(shifted, slots, _segments(slots, numbered))


@dataclass(frozen=True, slots=True)
class _Task:
    rendered: str
    messages: list[dict[str, Any]]
    tools: Sequence[dict[str, Any]]
    render: RenderFunction
    numbers: dict[int, int]  # message -> its number among those that show


def _slot(number: int, field: int) -> int:
    return (number % _MESSAGES_TOLD_APART) * 4 + field


def _compare(task: _Task, kept: _Kept) -> tuple[str, np.ndarray | None]:
    """(the shifted rendering, the slot of each character, or None where the two renderings do not correspond)."""
    rendered = task.rendered
    shifted = task.render(
        [
            _shift_message(
                task.numbers.get(index, 0),
                message,
                {name: kept[index, name] for name in _TEXT_FIELDS if (index, name) in kept},
            )
            for index, message in enumerate(task.messages)
        ],
        [_shift_odd_strings(tool, _slot(0, _TOOLS)) for tool in task.tools],
    )
    if len(shifted) != len(rendered):
        return shifted, None
    real, moved = _code_points(rendered), _code_points(shifted)
    changed = real != moved
    target = moved[changed]
    if ((target < _SHIFTED) | (target >= _SHIFTED_END) | ((target ^ real[changed]) & _CODE_MASK != 0)).any():
        return shifted, None
    slots = np.full(len(rendered), -1, dtype=np.int16)
    slots[changed] = (target - _SHIFTED) >> _CODE_BITS
    return shifted, slots


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _shift_message(number: int, message: dict[str, Any], kept: dict[str, _Spans]) -> dict[str, Any]:
    shifted = dict(message)
    for name, field in _TEXT_FIELDS.items():
        if message.get(name):
            shifted[name] = _shift_text(message[name], _slot(number, field), kept.get(name, ()))
    slot = _slot(number, CALL)
    if "tool_calls" in message:
        shifted["tool_calls"] = [
            {
                **{key: _shift_odd(value, slot) for key, value in call.items() if key != "function"},
                "function": {
                    "name": _shift_odd(call["function"]["name"], slot),
                    "arguments": _shift_values(call["function"]["arguments"], slot),
                },
            }
            for call in message["tool_calls"]
        ]
    for name in ("name", "tool_call_id"):
        if name in message:
            shifted[name] = _shift_odd(message[name], slot)
    return shifted


def _shift_text(text: str, slot: int, kept: _Spans = ()) -> str:
    pieces, cursor = [], 0
    for start, end in kept:
        pieces += [text[cursor:start].translate(_SHIFTS[slot]), text[start:end]]
        cursor = end
    pieces.append(text[cursor:].translate(_SHIFTS[slot]))
    return "".join(pieces)


def _shift_values(value: Any, slot: int) -> Any:
    """Arguments of a call: every string, but keys only where they hold more than a name (templates sort by key)."""
    if isinstance(value, str):
        return _shift_text(value, slot)
    if isinstance(value, dict):
        return {_shift_odd(key, slot): _shift_values(item, slot) for key, item in value.items()}
    if isinstance(value, list):
        return [_shift_values(item, slot) for item in value]
    return value


def _shift_odd_strings(value: Any, slot: int) -> Any:
    """Tool declarations: templates compare their names and types, so only strings that could hold markup move."""
    if isinstance(value, str):
        return _shift_odd(value, slot)
    if isinstance(value, dict):
        return {key: _shift_odd_strings(item, slot) for key, item in value.items()}
    if isinstance(value, list):
        return [_shift_odd_strings(item, slot) for item in value]
    return value


def _shift_odd(text: Any, slot: int) -> Any:
    return text if not isinstance(text, str) or _PLAIN_NAME.fullmatch(text) else _shift_text(text, slot)


def _occurrences(messages: list[dict[str, Any]], literals: tuple[str, ...]) -> list[tuple[int, str, int, int]]:
    if not literals:
        return []
    pattern = re.compile("|".join(re.escape(literal) for literal in sorted(literals, key=len, reverse=True)))
    return [
        (index, name, *match.span())
        for index, message in enumerate(messages)
        for name in _TEXT_FIELDS
        for match in pattern.finditer(message.get(name) or "")
    ]


def _smallest_kept(task: _Task, occurrences: list[tuple[int, str, int, int]]) -> _Kept | None:
    """The fewest template literals that must stay readable for the template to render as it did.

    A literal goes with its counterparts (`<think>` with `</think>`) and with the same ones in the other messages of
    its side of the conversation: the template reads them together."""

    def kind(occurrence: tuple[int, str, int, int]) -> tuple[bool, str]:
        index, name, start, end = occurrence
        literal = task.messages[index][name][start:end]
        return task.messages[index]["role"] == "assistant", "".join(filter(str.isalnum, literal))

    needed = list(occurrences)
    if not needed or _compare(task, _grouped(needed))[1] is None:
        return None
    kinds = list(dict.fromkeys(map(kind, occurrences)))
    if len(kinds) > _MAX_LITERALS:
        return None
    for dropped in kinds:
        fewer = [occurrence for occurrence in needed if kind(occurrence) != dropped]
        if _compare(task, _grouped(fewer))[1] is not None:
            needed = fewer
    return _grouped(needed)


def _grouped(occurrences: list[tuple[int, str, int, int]]) -> _Kept:
    kept: _Kept = {}
    for index, name, start, end in occurrences:
        kept[index, name] = (*kept.get((index, name), ()), (start, end))
    return kept


def _claim_copies(task: _Task, shifted: str, slots: np.ndarray, kept: _Kept) -> bool:
    """A literal kept readable in a user's, system's or tool's text is still that text: find the copy and claim it.

    In an assistant's text it is the template that gives the literal its meaning (it parses `</think>` and writes its
    own), so there it stays the template's.
    """
    for (index, name), spans in kept.items():
        if task.messages[index]["role"] == "assistant":
            continue
        text = task.messages[index][name]
        slot = _slot(task.numbers.get(index, 0), _TEXT_FIELDS[name])
        copy = _shift_text(text, slot, spans).strip()
        start = shifted.find(copy)
        if start < 0 or not visible(text):
            return False
        slots[start : start + len(copy)] = slot
    return True


def _segments(slots: np.ndarray, numbered: list[int]) -> tuple[Segment, ...]:
    places = np.flatnonzero((slots >= 0) & (slots & 3 != _TOOLS))
    if not len(places):
        return ()
    found = slots[places]
    borders = np.flatnonzero(np.diff(found))
    firsts = places[np.concatenate(([0], borders + 1))]
    lasts = places[np.concatenate((borders, [len(places) - 1]))]
    segments, current = [], 0
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        slot = int(slots[first])
        # Numbers come modulo 8; content appears nearly in order, so the nearest one is meant.
        candidates = range(slot >> 2, len(numbered), _MESSAGES_TOLD_APART)
        current = min(candidates, key=lambda number: abs(number - current))
        segments.append(Segment(numbered[current], slot & 3, first, last + 1))
    return tuple(segments)
