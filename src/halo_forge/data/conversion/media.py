"""Images and sounds of a row: found in its columns and put where they belong in its messages.

    a part that names its file          {"type": "image", "path": ...}, image_url, input_audio, ...: there
    parts without a name, and a column  the column's media in their order
    markers and a column                LLaVA's way: each `<image>` (`<audio>`) of the text becomes the next one
    a column alone                      before the first user's text

Nothing is opened here: what a name stands for, and whether it may be read, media/store.py finds out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from halo_forge.chat.records import MediaKind, MediaPart, Message, Part, TextPart
from halo_forge.data.conversion.content_parts import MEDIA_COLUMNS, media_path
from halo_forge.data.conversion.speech_rows import sound_part
from halo_forge.errors import RowError

MARKERS: Mapping[MediaKind, str] = {"image": "<image>", "audio": "<audio>"}


def with_media(messages: list[Message], value: Mapping[str, Any], fixes: set[str]) -> list[Message]:
    """The messages with every medium of the row's columns at its place. Raises RowError media_count_mismatch,
    media_missing, media_unsupported."""
    for kind in MARKERS:
        messages = _placed(messages, kind, _column(value, kind), fixes)
    return messages


def _column(value: Mapping[str, Any], kind: MediaKind) -> list[str]:
    """The names of what the columns hold, in order."""
    found: list[str] = []
    for name, column_kind in MEDIA_COLUMNS.items():
        held = value.get(name)
        if not held or column_kind != kind:
            continue
        if name.startswith("video"):
            raise RowError("media_unsupported", f"the column {name} holds video, which is not read")
        for number, item in enumerate(held if isinstance(held, list) else [held], start=1):
            source = sound_part(item, name).path if kind == "audio" else _image(item)
            if not source:
                raise RowError("media_missing", f"the column {name}: number {number} names no file and holds no bytes")
            found.append(source)
    return found


def _image(item: Any) -> str:
    return item if isinstance(item, str) else media_path(item) if isinstance(item, Mapping) else ""


def _placed(messages: list[Message], kind: MediaKind, sources: Sequence[str], fixes: set[str]) -> list[Message]:
    parts = [part for message in messages for part in message.parts if isinstance(part, MediaPart)]
    unnamed = sum(part.kind == kind and not part.path for part in parts)
    named = sum(part.kind == kind and bool(part.path) for part in parts)
    if unnamed:
        return _named(messages, kind, sources, f"{unnamed} parts of type {kind} without a file")
    if not sources:
        return messages
    if named:
        if named != len(sources):
            raise _mismatch(f"{named} parts of type {kind} with a file of their own", sources)
        return messages
    marker = MARKERS[kind]
    marked = sum(part.text.count(marker) for part in _asked_texts(messages))
    if marked:
        split = [_split_at(message, kind) if message.role != "assistant" else message for message in messages]
        return _named(split, kind, sources, f"{marked} markers {marker}")
    first = next((at for at, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise _mismatch("no user's message", sources)
    fixes.add("media_placed_first")
    ahead: tuple[Part, ...] = tuple(MediaPart(kind=kind, path=source) for source in sources)
    before, after = messages[:first], messages[first + 1 :]
    return [*before, replace(messages[first], parts=(*ahead, *messages[first].parts)), *after]


def _asked_texts(messages: Sequence[Message]) -> Iterator[TextPart]:
    for message in messages:
        if message.role != "assistant":
            yield from (part for part in message.parts if isinstance(part, TextPart))


def _split_at(message: Message, kind: MediaKind) -> Message:
    parts: list[Part] = []
    for part in message.parts:
        if not isinstance(part, TextPart):
            parts.append(part)
            continue
        for number, text in enumerate(part.text.split(MARKERS[kind])):
            parts += [MediaPart(kind=kind, path="")] if number else []
            parts += [TextPart(text=text)] if text else []
    return replace(message, parts=tuple(parts))


def _named(messages: Sequence[Message], kind: MediaKind, sources: Sequence[str], found: str) -> list[Message]:
    """Every unnamed part of a kind gets the next of the sources; there are as many of them."""
    waiting = list(sources)
    named = []
    for message in messages:
        parts: list[Part] = []
        for part in message.parts:
            if isinstance(part, MediaPart) and part.kind == kind and not part.path:
                if not waiting:
                    raise _mismatch(found, sources)
                part = MediaPart(kind=kind, path=waiting.pop(0))
            parts.append(part)
        named.append(replace(message, parts=tuple(parts)))
    if waiting:
        raise _mismatch(found, sources)
    return named


def _mismatch(found: str, sources: Sequence[str]) -> RowError:
    return RowError("media_count_mismatch", f"{found}, and {len(sources)} in the row's columns")
