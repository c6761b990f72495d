"""What stands in a message's content: a text, or a list of parts as OpenAI, Anthropic, TRL and transformers write them.

    text         a string, {"type": "text" | "input_text" | "output_text", "text"}, {"type": "refusal", "refusal"}
    reasoning    {"type": "thinking", "thinking"}, {"type": "reasoning", "text"}
    tool call    {"type": "tool_use", "id", "name", "input"}
    tool result  {"type": "tool_result", "tool_use_id", "content"}
    media        {"type": "image" | "image_url" | "input_image" | "audio" | "audio_url" | "input_audio", ...}
Media is only named here, never opened or asked for: media.py finds it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from halo_forge.chat.records import MediaPart, Message, Part, TextPart
from halo_forge.data.conversion.tool_calls import parse_tool_calls
from halo_forge.data.files.rows import json_type
from halo_forge.errors import RowError

TEXT_KINDS: Mapping[str, str] = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal",
}  # fmt: skip
REASONING_KINDS: Mapping[str, str] = {"thinking": "thinking", "reasoning": "text"}
MEDIA_KINDS: Mapping[str, Literal["image", "audio"]] = {
    "image": "image", "image_url": "image", "input_image": "image",
    "audio": "audio", "audio_url": "audio", "input_audio": "audio",
}  # fmt: skip
OTHER_MEDIA = frozenset({"video", "video_url", "input_video", "file", "document", "input_file"})
MEDIA_COLUMNS: Mapping[str, Literal["image", "audio"]] = {
    "images": "image", "image": "image", "audio": "audio", "audios": "audio", "video": "image", "videos": "image",
}  # fmt: skip
SHOWN_PATH_CHARS = 60


@dataclass(slots=True)
class Content:
    """`parts` in their order, neighbouring texts as one. `results` are (call id, text) of tools that answered."""

    parts: list[Part] = field(default_factory=list)
    reasoning: str | None = None
    results: list[tuple[str | None, str]] = field(default_factory=list)

    def add_text(self, text: str) -> None:
        if self.parts and isinstance(last := self.parts[-1], TextPart):
            self.parts[-1] = TextPart(text=last.text + text)
        elif text:
            self.parts.append(TextPart(text=text))


def clean_text(text: str, fixes: set[str]) -> str:
    if "\0" in text:
        fixes.add("nul_removed")
        return text.replace("\0", "")
    return text


def text_of(message: Message) -> str:
    """`message.text`, quicker for the common message of one text."""
    parts = message.parts
    return parts[0].text if len(parts) == 1 and type(parts[0]) is TextPart else message.text


def parse_content(raw: Any, where: str, fixes: set[str]) -> Content:
    """Raises RowError `bad_content_type` naming what stands there instead of text."""
    content = Content()
    if isinstance(raw, str):
        content.add_text(clean_text(raw, fixes))
        return content
    if not isinstance(raw, list):
        raise RowError("bad_content_type", f"{where}: content is {json_type(raw)}, not a string or a list of parts")
    for part in raw:
        if isinstance(part, str):
            content.add_text(clean_text(part, fixes))
        elif isinstance(part, dict):
            _add_part(content, part, where, fixes)
        else:
            raise RowError("bad_content_type", f"{where}: a part is {json_type(part)}, not text or an object")
    return content


def _add_part(content: Content, part: dict[str, Any], where: str, fixes: set[str]) -> None:
    kind = part.get("type", "text")
    kind = kind if isinstance(kind, str) else ascii(kind)
    text = part.get(TEXT_KINDS.get(kind) or REASONING_KINDS.get(kind) or "")
    if kind in TEXT_KINDS and isinstance(text, str):
        content.add_text(clean_text(text, fixes))
    elif kind in REASONING_KINDS and isinstance(text, str):
        content.reasoning = (content.reasoning or "") + clean_text(text, fixes)
    elif kind == "tool_use":
        content.parts.extend(parse_tool_calls([part], where))
    elif kind == "tool_result":
        call_id = part.get("tool_use_id")
        result = parse_content(part.get("content") or "", f"{where}, tool result", fixes)
        if any(not isinstance(item, TextPart) for item in result.parts):
            raise RowError("media_unsupported", f"{where}: a tool result that is not text; this release reads text")
        content.results.append(
            (call_id if isinstance(call_id, str) else None, "".join(part.text for part in result.parts))  # type: ignore[union-attr]
        )
    elif kind in MEDIA_KINDS:
        content.parts.append(MediaPart(kind=MEDIA_KINDS[kind], path=media_path(part)))
    elif kind in OTHER_MEDIA:
        raise RowError("media_unsupported", f"{where} holds a part of type {kind}, which is not read")
    else:
        raise RowError("bad_content_type", f"{where}: a part of type {kind[:30]!a} without text that can be trained")


def media_path(part: Mapping[str, Any]) -> str:
    """The first name, address or bytes in the part (bytes as a data: URI); empty where the medium stands in a column
    beside the messages."""
    held = part.get("bytes") or part.get("data")
    if isinstance(held, bytes):
        return f"data:;base64,{base64.b64encode(held).decode()}"
    if isinstance(held, str) and held[:5].lower() != "data:" and (part.get("type") == "base64" or "format" in part):
        return f"data:;base64,{held}"  # Anthropic's source and OpenAI's input_audio hold bare base64
    names = (*MEDIA_KINDS, "path", "url", "source", "data", "file_id")
    for name in names:
        value = part.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, Mapping) and (path := media_path(value)):
            return path
    return ""


def refused_media(kind: str, path: str, where: str) -> RowError:
    named = f" ({path[:SHOWN_PATH_CHARS]}{'...' if len(path) > SHOWN_PATH_CHARS else ''})" if path else ""
    words = "an image" if kind == "image" else "audio"
    return RowError(
        "media_unsupported", f"{where} holds {words}{named}; a model of text cannot read it, so it was not opened"
    )


def media_column(value: Mapping[str, Any]) -> RowError | None:
    """A column beside the text that holds images or audio, without which the text says something else."""
    if MEDIA_COLUMNS.keys().isdisjoint(value):
        return None
    for name, kind in MEDIA_COLUMNS.items():
        held = value.get(name)
        if held:
            first = held[0] if isinstance(held, list) else held
            path = first if isinstance(first, str) else media_path(first) if isinstance(first, Mapping) else ""
            return refused_media(kind, path, f"the column {name}")
    return None
