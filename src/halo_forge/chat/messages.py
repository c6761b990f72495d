"""Conversation -> the message dictionaries that chat templates read, and the one place where a template is rendered.

Templates are foreign code: they run in transformers' own sandbox (`tokenizer.apply_chat_template`), and whatever they
raise becomes a refused row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateSyntaxError

from halo_forge.chat.placeholders import content_with_seats, holds_seat, parts_of_content
from halo_forge.chat.records import MediaKind, MediaPart, Message, TextPart
from halo_forge.errors import DataError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_REASON_CHARS = 400


@dataclass(frozen=True, slots=True)
class CallStyle:
    """How a template wants an assistant message that calls tools: its arguments as an object or as JSON text, and
    an empty content as "" or left out."""

    arguments_as_text: bool = False
    empty_content: str | None = ""


Render = Callable[[list[dict[str, Any]], Sequence[dict[str, Any]], bool], str]
"""render(messages, tools, add_generation_prompt): one rendering by one template."""


def messages_to_template(
    messages: Sequence[Message], style: CallStyle, reads: MediaKind | None = None
) -> list[dict[str, Any]]:
    """The dictionaries `template_renderer` reads; media of the kind that the model `reads` are seats in the content
    (placeholders.py). Raises RowError `media_unsupported` for others."""
    return [_message_to_template(index, message, style, reads) for index, message in enumerate(messages)]


def _message_to_template(index: int, message: Message, style: CallStyle, reads: MediaKind | None) -> dict[str, Any]:
    content: str | None = message.text
    media = [part for part in message.parts if isinstance(part, MediaPart)]
    if any(part.kind != reads for part in media):
        who = f"a model that reads {reads}" if reads else "a text model"
        raise RowError("media_unsupported", f"message {index} holds an image or audio, which {who} cannot read")
    if media:
        content = content_with_seats(message.parts, _text_of_part, index)
    if message.tool_calls and not content:
        content = style.empty_content
    row: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning is not None:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [
            {
                "type": "function",
                **({"id": call.call_id} if call.call_id is not None else {}),
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False)
                    if style.arguments_as_text
                    else call.arguments,
                },
            }
            for call in message.tool_calls
        ]
    if message.name is not None:
        row["name"] = message.name
    if message.call_id is not None:
        row["tool_call_id"] = message.call_id
    return row


def _text_of_part(part: Any) -> str:
    return part.text if isinstance(part, TextPart) else ""


def template_source(tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict[str, Any]]) -> str:
    """The chat template that transformers picks for a conversation with these tools; DataError where there is none."""
    name = getattr(tokenizer, "name_or_path", "") or "tokenizer"
    if not tokenizer.chat_template:
        raise DataError(
            "this tokenizer has no chat template, so it is not said how a conversation becomes text",
            where=name,
            expected="a chat_template in tokenizer_config.json or a chat_template.jinja beside it",
            fix="take an instruction-tuned model, or train on plain text (rows with a `text` field)",
        )
    try:
        return tokenizer.get_chat_template(None, list(tools) or None)
    except ValueError as error:
        raise DataError(
            "the tokenizer has several chat templates and none is the default",
            where=name,
            expected=str(error),
            fix="keep one template, or name one of them `default`",
        ) from None


def template_renderer(tokenizer: PreTrainedTokenizerBase, content_as_parts: bool) -> Render:
    """The one rendering, by transformers itself. `content_as_parts` gives text as [{"type": "text", ...}], the only
    form that templates of vision models read.

    The renderer raises RowError `template_refused` with the template's own words, DataError for invalid Jinja."""

    def render(messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], add_generation_prompt: bool) -> str:
        messages = [
            _with_parts(message) if content_as_parts or holds_seat(message.get("content")) else message
            for message in messages
        ]
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, tools=list(tools) or None, add_generation_prompt=add_generation_prompt, tokenize=False
                )
            )
        except TemplateSyntaxError as error:
            raise DataError(
                f"the chat template is not valid Jinja: {error.message}",
                where=f"{getattr(tokenizer, 'name_or_path', '') or 'tokenizer'}, template line {error.lineno}",
                fix="take the template of the model's own repository",
            ) from None
        except Exception as error:  # a template is foreign code and may raise anything
            reason = str(error) or type(error).__name__
            raise RowError(
                "template_refused", f"the chat template refuses the row: {reason[:MAX_REASON_CHARS]}"
            ) from None

    return render


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": parts_of_content(content)} if isinstance(content, str) else message
