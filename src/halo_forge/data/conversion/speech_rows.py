"""Rows of speech: a sound and what is said in it, as a conversation of one sound and its transcript.

    sound       audio: a path, a data: address, {path | bytes | array + sampling_rate} as datasets give it
                audio_filepath (NeMo), file_name (folders), path (Common Voice): a path that ends like a sound's
    transcript  text | sentence | transcription | transcript | normalized_text
Paths start at the rows' file; a Common Voice table (it has a client_id) keeps its sounds in `clips`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from halo_forge.chat.records import MediaPart, Message, TextPart
from halo_forge.data.conversion.content_parts import clean_text
from halo_forge.data.files.rows import json_type
from halo_forge.errors import RowError
from halo_forge.media.sounds import SUFFIXES, bytes_of_samples
from halo_forge.media.store import keep_bytes

TRANSCRIPTS = ("text", "sentence", "transcription", "transcript", "normalized_text")
NAMING = ("audio_filepath", "file_name", "path")
"""Columns that name a sound only where they end like one: other rows have them, too."""
SOUND_COLUMNS = ("audio", *NAMING)


def is_speech_row(value: Mapping[str, Any]) -> bool:
    return sound_column(value) is not None and any(name in value for name in TRANSCRIPTS)


def sound_column(value: Mapping[str, Any]) -> str | None:
    """The column that holds the row's sound."""
    if value.get("audio") is not None:
        return "audio"
    return next((name for name in NAMING if _ends_like_a_sound(value.get(name))), "audio" if "audio" in value else None)


def _ends_like_a_sound(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(SUFFIXES)


def speech_messages(value: Mapping[str, Any], fixes: set[str]) -> list[Message]:
    """[the sound, its transcript]. Raises RowError."""
    column = sound_column(value)
    held = value.get(column) if column is not None else None
    if held is None or held == "":
        raise RowError("media_missing", "the row names no sound")
    transcript = next((name for name in TRANSCRIPTS if value.get(name) is not None), None)
    if transcript is None:
        raise RowError("null_content", f"the sound has no transcript ({', '.join(TRANSCRIPTS)})")
    text = value[transcript]
    if not isinstance(text, str):
        raise RowError("bad_content_type", f"{transcript} is {json_type(text)}, not a string")
    text = clean_text(text, fixes).strip()
    if not text:
        raise RowError("empty_content", f"{transcript} is empty or white space only")
    sound = sound_part(held, str(column))
    if column == "path" and "client_id" in value and "/" not in sound.path:
        sound = replace(sound, path=f"clips/{sound.path}")
    return [Message(role="user", parts=(sound,)), Message(role="assistant", parts=(TextPart(text=text),))]


def sound_part(held: Any, where: str) -> MediaPart:
    """A sound as a row holds it. Bytes and samples are kept in the cache, by their content. Raises RowError."""
    if isinstance(held, str):
        return MediaPart(kind="audio", path=held)
    if isinstance(held, bytes):
        return MediaPart(kind="audio", path=keep_bytes(held))
    if not isinstance(held, Mapping):
        raise RowError("media_missing", f"{where} is {json_type(held)}, not a sound")
    if held.get("array") is not None:
        return MediaPart(kind="audio", path=keep_bytes(bytes_of_samples(held["array"], held.get("sampling_rate"))))
    data = held.get("bytes")
    if isinstance(data, bytes):
        return MediaPart(kind="audio", path=keep_bytes(data))
    if isinstance(data, str) and data:
        return MediaPart(kind="audio", path=keep_bytes(_decoded(data, where)))
    path = held.get("path")
    if isinstance(path, str) and path:
        return MediaPart(kind="audio", path=path)
    raise RowError("media_missing", f"{where} has neither bytes, nor samples, nor a path")


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise RowError("audio_broken", f"the bytes in {where} are text that is not base64") from None
