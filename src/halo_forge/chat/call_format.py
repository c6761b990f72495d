"""How a model writes its calls: found by rendering known calls with its own template and reading them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halo_forge.chat.example import prompt_and_reference
from halo_forge.chat.known import known_tokenizer
from halo_forge.chat.records import Conversation, Message, SourceRef, TextPart, ToolCall
from halo_forge.errors import DataError, RowError
from halo_forge.texts.calls.formats import format_of_samples
from halo_forge.texts.calls.record import Call, Read
from halo_forge.texts.calls.schemas import name_of, parameters_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class CallFormat:
    """name: as reports show it. read: None where the template renders no calls, or in a way that no reader knows; then
    every known format is tried on an answer."""

    name: str
    read: Read | None


UNKNOWN = CallFormat("unknown: every known format is tried", None)
_PROBE_TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {"name": name, "description": "Probe.", "parameters": {"type": "object", "properties": properties}},
    }
    for name, properties in (
        ("probe_alpha", {"text": {"type": "string"}, "count": {"type": "integer"}, "on": {"type": "boolean"}}),
        ("probe_beta", {"items": {"type": "array", "items": {"type": "number"}}, "nested": {"type": "object"}}),
    )
)
_ALPHA = Call("probe_alpha", {"count": 3, "on": True, "text": 'one, "two": {3}'})
_BETA = Call("probe_beta", {"items": [1, 2.5], "nested": {"key": "word"}})


def call_format_of(tokenizer: PreTrainedTokenizerBase) -> CallFormat:
    """The format that reads back exactly what the tokenizer's template writes, one call and (where the template allows
    them) two; kept with what else is known of the tokenizer."""
    known = known_tokenizer(tokenizer)
    if known.call_format is None:
        known.call_format = _find(tokenizer)
    found: CallFormat = known.call_format
    return found


def _find(tokenizer: PreTrainedTokenizerBase) -> CallFormat:
    samples = []
    for calls in ((_ALPHA,), (_BETA,), (_ALPHA, _BETA)):
        text = written_calls(tokenizer, calls, _PROBE_TOOLS)
        if text is not None:
            samples.append((text, calls))
    schemas = {name_of(tool): parameters_of(tool) for tool in _PROBE_TOOLS}
    found = format_of_samples(samples, schemas) if samples else None
    return UNKNOWN if found is None else CallFormat(*found)


def written_calls(
    tokenizer: PreTrainedTokenizerBase, calls: tuple[Call, ...], tools: tuple[dict[str, Any], ...]
) -> str | None:
    """The answer that the template makes of calls, without its stop token; None where it refuses them."""
    parts = tuple(
        ToolCall(name=call.name, arguments=call.arguments, call_id=f"abcdefgh{number}")
        for number, call in enumerate(calls)
    )
    messages = (Message(role="user", parts=(TextPart(text="Question?"),)), Message(role="assistant", parts=parts))
    probe = Conversation(id="", messages=messages, source=SourceRef(path="", line=0), tools=tools)
    try:
        return prompt_and_reference(probe, tokenizer)[1]
    except (RowError, DataError):
        return None
