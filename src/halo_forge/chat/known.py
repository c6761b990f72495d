"""What has been found out about one tokenizer and its chat templates, and a row's rendering by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from halo_forge.chat.messages import CallStyle, messages_to_template, template_renderer, template_source
from halo_forge.chat.origin import REASONING, TEXT, Origin, trace_origin, visible
from halo_forge.chat.placeholders import Placeholders, Stretch, expanded, media_of
from halo_forge.chat.records import Conversation
from halo_forge.chat.spans import Span, Turn, agreed_spans, turns_of
from halo_forge.chat.template import TemplateFacts, learn_template
from halo_forge.chat.tokens import TextEncoder
from halo_forge.errors import DataError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Rendering:
    text: str
    origin: Origin
    spans: tuple[Span, ...]
    turns: tuple[Turn, ...]
    notes: tuple[str, ...]
    media: tuple[Stretch, ...] = ()


class KnownTokenizer:
    """What has been found out about one tokenizer and its templates."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, placeholders: Placeholders | None = None) -> None:
        self.tokenizer, self.placeholders = tokenizer, placeholders
        self.signature = _signature(tokenizer)
        self.encoder = TextEncoder(tokenizer, str(tokenizer.chat_template or ""))
        self._facts: dict[str, TemplateFacts] = {}
        self._reads_parts: dict[str, bool] = {}
        probe = tokenizer("a", add_special_tokens=True)["input_ids"]
        self.adds_bos = bool(probe) and probe[0] == tokenizer.bos_token_id
        self.bos_opens_turns = False
        self.fast: Any = None  # what batch_encode.py has learnt
        self.call_format: Any = None  # what call_format.py has found

    def facts(self, conversation: Conversation) -> TemplateFacts:
        source = template_source(self.tokenizer, conversation.tools)
        if source not in self._facts:
            renderers = [template_renderer(self.tokenizer, content_as_parts) for content_as_parts in (False, True)]
            self._facts[source] = learn_template(source, renderers, self.encoder)
            self._reads_parts[source] = self._facts[source].render is renderers[1]
            bos = self.tokenizer.bos_token
            self.bos_opens_turns |= bos is not None and any(
                bos in anchor for anchor in self._facts[source].lead.anchors
            )
        return self._facts[source]

    def reads_parts(self, conversation: Conversation) -> bool:
        """Whether the template is given text as a list of parts."""
        self.facts(conversation)
        return self._reads_parts[template_source(self.tokenizer, conversation.tools)]

    def eos_for_answers(self) -> int:
        if self.encoder.eos_id is None:
            raise DataError(
                "neither the chat template nor the tokenizer has a token to stop on",
                fix="set eos_token in tokenizer_config.json",
            )
        return self.encoder.eos_id

    def template_messages(self, conversation: Conversation, facts: TemplateFacts) -> list[dict[str, Any]]:
        style = facts.tools.style if facts.tools else CallStyle()
        return messages_to_template(conversation.messages, style, self.placeholders.kind if self.placeholders else None)

    def render_part(
        self, conversation: Conversation, count: int, prompt: bool
    ) -> tuple[str, Origin, tuple[Stretch, ...]]:
        """The first `count` messages with their media spelled out, where each character comes from, and which stand
        for media."""
        text, origin = self._render_part(conversation, count, prompt)
        media = media_of(conversation, count)
        if not media or self.placeholders is None:
            return text, origin, ()
        spelled = expanded(text, origin, media, self.placeholders)
        return spelled.text, spelled.origin, spelled.stretches

    def _render_part(self, conversation: Conversation, count: int, prompt: bool) -> tuple[str, Origin]:
        facts = self.facts(conversation)
        messages = self.template_messages(conversation, facts)[:count]

        def render(rows: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
            return facts.render(rows, tools, prompt)

        text = facts.render(messages, conversation.tools, prompt)
        origin = trace_origin(text, messages, conversation.tools, render, facts.literals)
        if origin is None:
            raise RowError(
                "mask_disagreement",
                "the template's output depends on the wording of the row in a way that cannot be followed, so it is "
                "not certain which characters are content",
            )
        return text, origin

    def render(self, conversation: Conversation) -> Rendering:
        facts = self.facts(conversation)
        if facts.plain_ending:
            raise RowError(
                "stop_token_untrained",
                f"the template ends an answer with {facts.plain_ending!r}, which is no token of this tokenizer: the "
                "model could never be told to stop there",
            )
        messages = self.template_messages(conversation, facts)
        text, origin = self._render_part(conversation, len(messages), False)
        notes = _missing_content(conversation, facts, origin, text)
        calls = [bool(message.tool_calls) for message in conversation.messages]
        turns = turns_of([message.role for message in conversation.messages], calls, facts)

        def grow(count: int, prompt: bool) -> str | None:
            try:
                return facts.render(messages[:count], conversation.tools, prompt)
            except RowError:
                return None

        spans = agreed_spans(text, origin, turns, grow)
        _check_all_calls(conversation, spans, text)
        rendering = Rendering(text, origin, tuple(spans), tuple(turns), tuple(notes))
        return self._spelled(rendering, conversation)

    def _spelled(self, rendering: Rendering, conversation: Conversation) -> Rendering:
        """The rendering with its media spelled out; everything that was found in it moves along."""
        media = media_of(conversation, len(conversation.messages))
        if not media or self.placeholders is None:
            return rendering
        new = expanded(rendering.text, rendering.origin, media, self.placeholders)
        spans = [
            replace(span, start=new.moved(span.start), end=None if span.end is None else new.moved(span.end))
            for span in rendering.spans
        ]
        notes = (*rendering.notes, *new.notes)
        return Rendering(new.text, new.origin, tuple(spans), rendering.turns, notes, new.stretches)


def _missing_content(conversation: Conversation, facts: TemplateFacts, origin: Origin, text: str) -> list[str]:
    """Notes on content that the template leaves out; RowError where the row makes no sense without it."""
    notes = []
    for index, message in enumerate(conversation.messages):
        if message.tool_calls and facts.tools is None:
            raise RowError(
                "template_refused",
                f"the chat template leaves out the tool call of message {index}; model.tool_format: auto writes it",
            )
        if message.reasoning and visible(message.reasoning) and not origin.shows(index, REASONING):
            notes.append("reasoning_not_rendered")
        if not visible(message.text) or origin.shows(index, TEXT):
            continue
        if message.role == "system":
            notes.append("system_not_rendered")
        elif message.role == "assistant" and message.tool_calls:
            notes.append("text_not_rendered")
        else:
            raise RowError("template_refused", f"the chat template leaves out the text of message {index}")
    declared = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in conversation.tools]
    if any(isinstance(tool.get("name"), str) and tool["name"] not in text for tool in declared):
        notes.append("tools_not_rendered")
    return notes


def _check_all_calls(conversation: Conversation, spans: Sequence[Span], text: str) -> None:
    """Some templates write the first call of several and say nothing of the others."""
    for span in spans:
        calls = conversation.messages[span.message].tool_calls
        for name, count in Counter(call.name for call in calls).items() if len(calls) > 1 else ():
            if text.count(name, span.start, span.end) < count:
                raise RowError(
                    "template_refused", f"the chat template leaves out one of the tool calls of message {span.message}"
                )


_MAX_KNOWN = 4
_known: list[KnownTokenizer] = []


def _signature(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    return (len(tokenizer), str(tokenizer.chat_template), tokenizer.bos_token, tokenizer.eos_token)


def known_tokenizer(tokenizer: PreTrainedTokenizerBase) -> KnownTokenizer:
    """What is known of the last few tokenizers is kept: learning a template takes milliseconds, and splitting special
    tokens needs a second copy of the vocabulary. A tokenizer whose template or tokens were changed is learnt anew."""
    signature = _signature(tokenizer)
    for known in _known:
        if known.tokenizer is tokenizer and known.signature == signature:
            return known
    _known[:] = [known for known in _known if known.tokenizer is not tokenizer][-(_MAX_KNOWN - 1) :]
    _known.append(KnownTokenizer(tokenizer))
    return _known[-1]
