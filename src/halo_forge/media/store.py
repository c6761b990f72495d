"""Where the bytes of images and sounds are: a file beside the rows, or the cache for bytes that came inside a row.

A row's media are read once while it is prepared and named by their hash from then on; whoever reads them later reads
the same bytes or is told that they changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import replace
from pathlib import Path

from halo_forge.chat.records import Conversation, MediaPart, Medium, Message, Part
from halo_forge.errors import DataError, RowError
from halo_forge.runs import cache_directory, write_atomic

CACHE = "cache:"
MAX_BYTES = 512 * 2**20
SHOWN_CHARS = 80


def media_directory() -> Path:
    """$HALO_FORGE_MEDIA, or `media` in the cache."""
    named = os.environ.get("HALO_FORGE_MEDIA")
    if named:
        return Path(named).expanduser()
    return cache_directory() / "media"


def keep_bytes(data: bytes) -> str:
    """The path of bytes that came inside a row: kept once, by content."""
    sha256 = hashlib.sha256(data).hexdigest()
    place = _cached(sha256)
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, data)
    return CACHE + sha256


def settle_media(conversation: Conversation, directory: Path) -> Conversation:
    """The conversation with every image and sound found, read and named by its hash; `directory` is where relative
    paths start. Raises RowError `url_refused`, `media_missing`."""
    if not has_media(conversation):
        return conversation
    return replace(conversation, messages=tuple(_settled(message, directory) for message in conversation.messages))


def has_media(conversation: Conversation) -> bool:
    return any(isinstance(part, MediaPart) for message in conversation.messages for part in message.parts)


def media_parts(messages: tuple[Message, ...]) -> list[MediaPart]:
    """All media of the messages, in order."""
    return [part for message in messages for part in message.parts if isinstance(part, MediaPart)]


def read_medium(medium: MediaPart | Medium) -> bytes:
    """The bytes that were prepared. Raises DataError where they are gone or are others."""
    place = _cached(medium.path.removeprefix(CACHE)) if medium.path.startswith(CACHE) else Path(medium.path)
    try:
        if place.exists() and not place.is_file():  # a device or a pipe would never end
            raise OSError(None, "not a file")
        data = place.read_bytes()
    except OSError as error:
        raise DataError(
            f"an {medium.kind} of the prepared rows cannot be read: {error.strerror or error}", where=str(place),
            expected=f"the file with sha256 {medium.sha256[:16]}...", fix="put it back, or prepare the rows again",
        ) from None  # fmt: skip
    if hashlib.sha256(data).hexdigest() != medium.sha256:
        raise DataError(
            f"this {medium.kind} changed after the rows were prepared", where=str(place),
            expected=f"sha256 {medium.sha256[:16]}...", fix="restore it, or prepare the rows again with --fresh",
        )  # fmt: skip
    return data


def _settled(message: Message, directory: Path) -> Message:
    parts: tuple[Part, ...] = tuple(
        _settled_part(part, directory) if isinstance(part, MediaPart) else part for part in message.parts
    )
    return replace(message, parts=parts)


def _settled_part(part: MediaPart, directory: Path) -> MediaPart:
    path = part.path if part.path.startswith(CACHE) else _local_path(part, directory)
    place = _cached(path.removeprefix(CACHE)) if path.startswith(CACHE) else Path(path)
    try:
        if place.stat().st_size > MAX_BYTES:
            raise RowError("media_too_large", f"{_shown(part.path)} is larger than {MAX_BYTES // 2**20} MB")
        data = place.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in a path
        reason = error.strerror if isinstance(error, OSError) else error
        raise RowError("media_missing", f"the {part.kind} {_shown(part.path)} cannot be read: {reason}") from None
    return replace(part, path=path, sha256=hashlib.sha256(data).hexdigest())


def _local_path(part: MediaPart, directory: Path) -> str:
    named = part.path
    if not named:
        raise RowError("media_missing", f"the row speaks of an {part.kind} and names none")
    if named.startswith("data:"):
        return keep_bytes(_of_data_address(named, part.kind))
    if "://" in named[:12]:
        if not named.startswith("file://"):
            raise RowError("url_refused", f"{_shown(named)}: rows are not downloaded from; save the {part.kind} first")
        named = named.removeprefix("file://")
    try:
        return str((directory / Path(named).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise RowError("media_missing", f"the {part.kind} {_shown(part.path)} cannot be looked for: {error}") from None


def _of_data_address(address: str, kind: str) -> bytes:
    head, _, body = address.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("not base64")
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RowError("media_missing", f"the data: address of an {kind} cannot be read: {error}") from None


def _cached(sha256: str) -> Path:
    return media_directory() / sha256[:2] / sha256


def _shown(text: str) -> str:
    return ascii(text[:SHOWN_CHARS])[1:-1] + ("..." if len(text) > SHOWN_CHARS else "")
