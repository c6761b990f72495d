"""Where images and sounds stand in a rendering: the template writes a marker for each, a processor spells it out.

    template   <|im_start|>user\\n<image>What is this?<|im_end|>\\n
    spelled    <|im_start|>user\\n<fake><global-img><image><image><image><image><fake>What is this?<|im_end|>\\n

In the messages that a template is given, a medium is one code point that no text may hold (`SEATS`); the renderer
makes a part of it. So all that is known of content, its place and its masks, holds for rows with media as it does for
texts: a marker that stands in a user's words is his, and becomes ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from halo_forge.chat.origin import Origin
from halo_forge.chat.records import Conversation, MediaKind, MediaPart, Medium
from halo_forge.chat.tokens import TokenizedText
from halo_forge.errors import RowError

# Noncharacters of plane 1: never assigned, not printable (so origin.py leaves them), and refused in a row's texts.
SEATS: dict[MediaKind, str] = {"image": "\U0001fffe", "audio": "\U0001ffff"}
_SEAT = re.compile("|".join(SEATS.values()))
_KINDS = {seat: kind for kind, seat in SEATS.items()}


@dataclass(frozen=True, slots=True)
class Spelled:
    """What a processor writes in a marker's place, and codes of what was done to the medium."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placeholders:
    """One model's way with media.

    kind    what it reads          marker  what its template writes where a medium stands
    ids     the placeholder tokens, whose embeddings the model replaces
    spell   a medium's bytes -> `Spelled`; raises RowError where it cannot be used
    """

    kind: MediaKind
    marker: str
    ids: frozenset[int]
    spell: Callable[[MediaPart], Spelled]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Characters [start, end) that stand for a medium."""

    part: MediaPart
    start: int
    end: int


def content_with_seats(parts: Sequence[Any], text_of: Callable[[Any], str], index: int) -> str:
    """The content of a message as one string, a seat for each medium; RowError where a text holds a seat."""
    pieces = []
    for part in parts:
        if isinstance(part, MediaPart):
            pieces.append(SEATS[part.kind])
        elif text := text_of(part):
            if _SEAT.search(text):
                raise RowError("invalid_unicode", f"message {index} holds the noncharacter U+1FFFE or U+1FFFF")
            pieces.append(text)
    return "".join(pieces)


def parts_of_content(content: str) -> list[dict[str, Any]]:
    """The parts that templates of vision and audio models read."""
    parts: list[dict[str, Any]] = []
    cursor = 0
    for seat in _SEAT.finditer(content):
        parts += [{"type": "text", "text": content[cursor : seat.start()]}] if seat.start() > cursor else []
        parts.append({"type": _KINDS[seat[0]]})
        cursor = seat.end()
    rest = content[cursor:]
    return [*parts, {"type": "text", "text": rest}] if rest or not parts else parts


def holds_seat(content: Any) -> bool:
    return isinstance(content, str) and _SEAT.search(content) is not None


@dataclass(frozen=True, slots=True)
class Expansion:
    """A rendering with its media spelled out. `moved` gives the new place of a character of the old one."""

    text: str
    origin: Origin
    stretches: tuple[Stretch, ...]
    notes: tuple[str, ...]
    moved: Callable[[int], int]


def expanded(text: str, origin: Origin, parts: Sequence[MediaPart], placeholders: Placeholders) -> Expansion:
    """Spell every marker of the template. Raises RowError `media_not_rendered` where there are more or fewer of them
    than media, and what `spell` raises."""
    marker = placeholders.marker
    # In the shifted rendering content cannot be read: what is found there the template wrote.
    starts = [found.start() for found in re.finditer(re.escape(marker), origin.shifted)]
    if len(starts) != len(parts):
        raise RowError(
            "media_not_rendered",
            f"the chat template writes {len(starts)} places ({marker}) for {len(parts)} of {placeholders.kind}",
        )
    spelled = [placeholders.spell(part) for part in parts]
    added = list(accumulate((len(one.text) - len(marker) for one in spelled), initial=0))

    def moved(place: int) -> int:
        return place + added[sum(start + len(marker) <= place for start in starts)]

    return Expansion(
        text=_replaced(text, starts, len(marker), spelled),
        origin=Origin(
            shifted=_replaced(origin.shifted, starts, len(marker), spelled),
            slots=_template_slots(origin.slots, starts, len(marker), spelled),
            segments=tuple(replace(s, start=moved(s.start), end=moved(s.end)) for s in origin.segments),
        ),
        stretches=tuple(
            Stretch(part, start + shift, start + shift + len(one.text))
            for part, start, shift, one in zip(parts, starts, added, spelled, strict=False)
        ),
        notes=tuple(dict.fromkeys(note for one in spelled for note in one.notes)),
        moved=moved,
    )


def _replaced(text: str, starts: Sequence[int], length: int, spelled: Sequence[Spelled]) -> str:
    pieces, cursor = [], 0
    for start, one in zip(starts, spelled, strict=True):
        pieces += [text[cursor:start], one.text]
        cursor = start + length
    return "".join([*pieces, text[cursor:]])


def _template_slots(slots: np.ndarray, starts: Sequence[int], length: int, spelled: Sequence[Spelled]) -> np.ndarray:
    pieces, cursor = [], 0
    for start, one in zip(starts, spelled, strict=True):
        pieces += [slots[cursor:start], np.full(len(one.text), -1, dtype=slots.dtype)]
        cursor = start + length
    return np.concatenate([*pieces, slots[cursor:]])


def place_media(
    tokens: TokenizedText, stretches: Sequence[Stretch], placeholders: Placeholders
) -> tuple[tuple[Medium, ...], np.ndarray]:
    """(each medium with its placeholders among the tokens, bool [T]: tokens that stand for media).

    Raises RowError `special_tokens_unsplittable` where a placeholder came out of ordinary text."""
    is_placeholder = np.isin(tokens.ids, list(placeholders.ids))
    stands = np.zeros(len(tokens), dtype=bool)
    media = []
    for stretch in stretches:
        first, last = tokens.first_token(stretch.start)[0], tokens.last_token(stretch.end)
        stands[first : last + 1] = True
        own = first + np.flatnonzero(is_placeholder[first : last + 1])
        place = int(own[0]) if len(own) else first
        part = stretch.part
        media.append(Medium(kind=part.kind, path=part.path, sha256=part.sha256, place=place, num_tokens=len(own)))
    if (is_placeholder & ~stands).any():
        raise RowError("special_tokens_unsplittable", "the tokenizer makes a placeholder of an image out of text")
    return tuple(media), stands


def media_of(conversation: Conversation, count: int) -> list[MediaPart]:
    """The media of the first `count` messages, in order."""
    return [part for message in conversation.messages[:count] for part in message.parts if isinstance(part, MediaPart)]
