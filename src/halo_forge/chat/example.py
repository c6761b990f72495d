"""Conversation -> Example: one rendering, its trained characters, the tokens they became.

What is trained: in each trained assistant turn everything from the end of the generation prompt through the token that
stops the answer; nothing else, unless `train_on` is "all" or names other roles. Every row either keeps that contract or
is refused by code:

    template_refused  mask_disagreement  stop_token_untrained  double_bos  no_assistant_turn  no_supervised_tokens
    media_not_rendered  media_truncated
    too_long  no_supervised_tokens_after_truncation  special_tokens_unsplittable  media_unsupported  invalid_unicode
    mixed_document  empty_conversation  bad_weight  reasoning_missing
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from halo_forge.chat.batch_encode import EncodedBatch, encode_batch
from halo_forge.chat.known import KnownTokenizer, known_tokenizer
from halo_forge.chat.origin import Origin, unmoved_edges, visible
from halo_forge.chat.placeholders import Stretch, place_media
from halo_forge.chat.reasoning import ReasoningPolicy, require_reasoning, strip_reasoning
from halo_forge.chat.records import Conversation, Example, Medium, Message
from halo_forge.chat.spans import Span, Turn
from halo_forge.chat.tokens import TokenizedText
from halo_forge.errors import DataError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainedRole = Literal["assistant", "user", "system"]
TrainOn = Literal["assistant", "last_assistant", "all"] | list[TrainedRole]
Overlong = Literal["drop", "truncate", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """`notes` are codes of what was done to the row or lost from it; empty for a row taken as it is.

    special_tokens_neutralised  content held the text of special tokens; it is encoded as text
    truncated                   cut at the end to the length limit
    merged_boundary             a token stands across the border between generation prompt and answer
    reasoning_not_rendered      the template leaves out reasoning of an assistant turn
    text_not_rendered           the template leaves out text beside a tool call
    system_not_rendered, tools_not_rendered  the template leaves out the system message, the tools
    """

    example: Example
    notes: tuple[str, ...]


class ChatEncoder:
    """Encodes conversations for one tokenizer; keeps what was learnt about its template and special tokens.

    Raises DataError for a tokenizer without a fast implementation, and, at the first conversation, for one without a
    usable chat template. `encode` raises RowError for a row that cannot become an example.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_seq_length: int,
        train_on: TrainOn = "assistant",
        overlong: Overlong = "drop",
        reasoning: ReasoningPolicy = "keep",
        fast: bool = True,
        known: KnownTokenizer | None = None,
    ) -> None:
        """`train_on`: which turns are trained, or the roles whose turns are (of a user's or system's turn: its text and
        the special token right after it). `reasoning`: rendered as the template does, taken out before that, or
        required in every trained answer. `fast=False` makes `encode_batch` encode every row by `encode`. `known`: the
        tokenizer with the placeholders of its media, for a model that reads more than text."""
        self.tokenizer = tokenizer
        self.max_seq_length, self.train_on, self.overlong = max_seq_length, train_on, overlong
        self.reasoning, self.fast = reasoning, fast
        self.other_roles = frozenset[str]() if isinstance(train_on, str) else frozenset(train_on) - {"assistant"}
        self.known = known or known_tokenizer(tokenizer)

    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        """Exactly what `encode` gives for each conversation, many times quicker; a refused row is in `problems`.

        Raises DataError where `encode` does."""
        return encode_batch(self, conversations)

    def reference(self) -> ChatEncoder:
        """The same policies one row at a time and without a limit of length: what `encode_batch` is held against."""
        return ChatEncoder(
            self.tokenizer,
            max_seq_length=2**31 - 1,
            train_on=self.train_on,
            reasoning=self.reasoning,
            fast=False,
            known=self.known,
        )

    def prepared(self, conversation: Conversation) -> Conversation | RowError:
        """The conversation as it is rendered under the reasoning policy, or why it is refused."""
        if self.reasoning == "strip":
            return strip_reasoning(conversation)
        if self.reasoning == "require":
            try:
                require_reasoning(conversation, self._turn_weights(conversation.messages))
            except RowError as error:
                return error
        return conversation

    def encode(self, conversation: Conversation) -> Encoded:
        _check_weights(conversation)
        prepared = self.prepared(conversation)
        if isinstance(prepared, RowError):
            raise prepared
        conversation = prepared
        media: tuple[Medium, ...] = ()
        if any(message.role == "document" for message in conversation.messages):
            ids, weights, notes = self._encode_document(conversation)
        else:
            ids, weights, notes, media = self._encode_chat(conversation)
        weights[0] = 0.0
        weights *= conversation.weight
        if not (weights > 0).any():
            raise RowError("no_supervised_tokens", "no token of the row is trained: every weight is 0")
        if len(ids) > self.max_seq_length:
            ids, weights = self._shorten(ids, weights, conversation, media)
            notes = [*notes, "truncated"]
        example = Example(input_ids=ids, loss_weights=weights, conversation_id=conversation.id, media=media)
        return Encoded(example=example, notes=tuple(dict.fromkeys(notes)))

    def _encode_document(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray, list[str]]:
        if len(conversation.messages) != 1:
            raise RowError("mixed_document", "a plain text stands alone; it cannot be one message among others")
        encoder = self.known.encoder
        tokens, neutralised = encoder.encode_as_text(conversation.messages[0].text)
        if not len(tokens):
            raise RowError("no_supervised_tokens", "the text is empty")
        if encoder.eos_id is None:
            raise DataError("the tokenizer has no end-of-text token", fix="set eos_token in tokenizer_config.json")
        leading = [encoder.bos_id] if self.known.adds_bos else []
        ids = np.concatenate((np.array(leading, np.int32), tokens.ids, np.array([encoder.eos_id], np.int32)))
        weights = np.ones(len(ids), dtype=np.float32)
        return ids, weights, ["special_tokens_neutralised"] if neutralised else []

    def _encode_chat(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray, list[str], tuple[Medium, ...]]:
        roles = [message.role for message in conversation.messages]
        if not roles:
            raise RowError("empty_conversation", "the row has no messages")
        if "assistant" not in roles and self.train_on != "all" and not self.other_roles:
            raise RowError("no_assistant_turn", "the row has no assistant message, so there is nothing to learn from")
        rendering = self.known.render(conversation)
        tokens, neutralised = self.known.encoder.encode(rendering.text, rendering.origin)
        notes = [*rendering.notes, *(["special_tokens_neutralised"] if neutralised else [])]
        ids, weights = tokens.ids, np.full(len(tokens), float(self.train_on == "all"), dtype=np.float32)
        wanted = self._turn_weights(conversation.messages)
        needs_eos = False
        for span, turn in zip(rendering.spans, rendering.turns, strict=True):
            weight = wanted[span.message]
            if weight == 0 and self.train_on != "all":
                continue
            needs_eos |= turn.is_last and turn.stop is None and weight > 0
            if self.train_on == "all" and conversation.messages[span.message].weight is None:
                continue
            first, last, merged = self._token_range(span, turn, tokens)
            weights[first : last + 1] = weight
            notes += ["merged_boundary"] if merged else []
        if needs_eos:
            ids = np.append(ids, np.int32(self.known.eos_for_answers()))
            weights = np.append(weights, np.float32(wanted[rendering.spans[-1].message]))
        if self.other_roles:
            self._train_texts(conversation, rendering.origin, tokens, weights)
        self._check_bos(ids)
        media, stands = self._place_media(rendering.media, tokens)
        weights[: len(stands)][stands] = 0.0  # what stands for an image is read and never said
        return ids, weights, notes, media

    def _place_media(
        self, stretches: Sequence[Stretch], tokens: TokenizedText
    ) -> tuple[tuple[Medium, ...], np.ndarray]:
        if self.known.placeholders is None:
            return (), np.zeros(len(tokens), dtype=bool)
        return place_media(tokens, stretches, self.known.placeholders)

    def _train_texts(
        self, conversation: Conversation, origin: Origin, tokens: TokenizedText, weights: np.ndarray
    ) -> None:
        """Weigh the turns of other roles, in place: the tokens of the text and the special token that ends it."""
        for segment in origin.segments:
            message = conversation.messages[segment.message]
            if message.role not in self.other_roles:
                continue
            start, end, extent = segment.start, segment.end, origin.extent(segment.message)
            before, after = unmoved_edges(message.text)
            if extent is not None and start == extent[0] and tokens.text[:start].endswith(before):
                start -= len(before)
            is_last = extent is not None and end == extent[1]
            if is_last and tokens.text.startswith(after, end):
                end += len(after)
            first, _ = tokens.first_token(start)
            if is_last:
                following = next((special for special in tokens.specials if special.start >= end), None)
                if following is not None and not visible(tokens.text[end : following.start]):
                    end = following.end
            weights[first : tokens.last_token(end) + 1] = 1.0 if message.weight is None else message.weight

    def _turn_weights(self, messages: Sequence[Message]) -> dict[int, float]:
        turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
        chosen = turns[-1:] if self.train_on == "last_assistant" else turns
        if not isinstance(self.train_on, str) and "assistant" not in self.train_on:
            chosen = []
        weights = {}
        for index in turns:
            own = messages[index].weight
            weights[index] = float(index in chosen) if own is None else own
        return weights

    def _token_range(self, span: Span, turn: Turn, tokens: TokenizedText) -> tuple[int, int, bool]:
        """(first token, last token, whether one stands across the beginning) of a turn."""
        first, merged = tokens.first_token(span.start)
        if span.end is not None:
            last = tokens.last_token(span.end)
            stops = [special for special in tokens.specials if special.end == span.end and special.text == turn.stop]
            if not stops or tokens.ids[last] != stops[0].token_id:
                raise RowError(
                    "stop_token_untrained", f"the token that stops message {span.message} is not among its tokens"
                )
            return first, last, merged
        if turn.stop is not None or not turn.is_last:
            raise RowError(
                "stop_token_untrained",
                f"the template writes no stop token after message {span.message}, so the model would not learn to stop"
                + ("" if turn.is_last else "; train the last answer only (train_on: last_assistant)"),
            )
        return first, tokens.last_token(len(tokens.text)), merged

    def _check_bos(self, ids: np.ndarray) -> None:
        bos = self.known.encoder.bos_id
        if bos is None:
            return
        if (len(ids) > 1 and ids[0] == bos and ids[1] == bos) or (
            not self.known.bos_opens_turns and int((ids == bos).sum()) > 1
        ):
            raise RowError("double_bos", "the row has more than one begin-of-text token; the template writes it twice")

    def _shorten(
        self, ids: np.ndarray, weights: np.ndarray, conversation: Conversation, media: Sequence[Medium]
    ) -> tuple[np.ndarray, np.ndarray]:
        reason = f"{len(ids)} tokens, limit {self.max_seq_length}"
        if self.overlong == "fail":
            source = conversation.source
            raise DataError(
                f"a row is too long: {reason}",
                where=f"{source.path}:{source.line}",
                fix="raise data.max_seq_length, or set data.overlong to drop or truncate",
            )
        if self.overlong == "drop":
            raise RowError("too_long", reason)
        if self.known.placeholders is not None and media:
            cut = np.isin(ids[self.max_seq_length :], list(self.known.placeholders.ids))
            if cut.any():
                raise RowError("media_truncated", f"{reason}: {int(cut.sum())} tokens of an image stand behind the cut")
        ids, weights = ids[: self.max_seq_length].copy(), weights[: self.max_seq_length].copy()
        if not (weights > 0).any():
            raise RowError(
                "no_supervised_tokens_after_truncation", f"{reason}: nothing that is trained stands before the cut"
            )
        return ids, weights


def conversation_to_example(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
    train_on: TrainOn = "assistant",
    overlong: Overlong = "drop",
) -> Encoded:
    """One conversation by itself; see `ChatEncoder`, which is quicker for many."""
    encoder = ChatEncoder(tokenizer, max_seq_length=max_seq_length, train_on=train_on, overlong=overlong)
    return encoder.encode(conversation)


def prompt_and_reference(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], str, list[int]]:
    """`question` of a text model, without its media."""
    return question(conversation, known_tokenizer(tokenizer))[:3]


def question(conversation: Conversation, known: KnownTokenizer) -> tuple[list[int], str, list[int], tuple[Medium, ...]]:
    """(prompt ids, reference answer, stop token ids, media of the prompt) for generating the last assistant turn anew.

    The prompt is everything before that turn with the generation prompt. The reference is the turn's text; where the
    template writes more into the answer (tool calls, reasoning, an empty `<think>` block), it is the exact trained
    text without the stop token, which is what a trained model will say. Raises RowError as `encode` does,
    and `no_prompt` where nothing stands before the answer.
    """
    messages = conversation.messages
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not turns:
        raise RowError("no_assistant_turn", "the row has no assistant message, so there is no answer to compare with")
    last = turns[-1]
    if last == 0:
        raise RowError("no_prompt", "nothing stands before the answer, so there is nothing to ask a model")
    facts = known.facts(conversation)
    text, origin, stretches = known.render_part(conversation, last, True)
    tokens, _ = known.encoder.encode(text, origin)
    media = place_media(tokens, stretches, known.placeholders)[0] if known.placeholders else ()
    answered = known.render(_first_messages(conversation, last + 1))
    span, turn = answered.spans[-1], answered.turns[-1]
    end = len(answered.text) if span.end is None else span.end - len(turn.stop or "")
    reference = answered.text[span.start : end]
    if reference.strip() == messages[last].text.strip():
        reference = messages[last].text
    stops = [facts.stop.final or facts.stop.middle]
    if facts.tools is not None and (conversation.tools or messages[last].tool_calls):
        stops.append(facts.tools.stop.final or facts.tools.stop.middle)
    stop_ids = known.encoder.ids_of([stop for stop in stops if stop is not None])
    if known.encoder.eos_id is not None:
        stop_ids.append(known.encoder.eos_id)
    return tokens.ids.tolist(), reference, list(dict.fromkeys(stop_ids)), media


def _first_messages(conversation: Conversation, count: int) -> Conversation:
    return Conversation(
        id=conversation.id,
        messages=conversation.messages[:count],
        source=conversation.source,
        tools=conversation.tools,
    )


def _check_weights(conversation: Conversation) -> None:
    weights = [conversation.weight, *(m.weight for m in conversation.messages if m.weight is not None)]
    if any(not math.isfinite(weight) or weight < 0 for weight in weights):
        raise RowError("bad_weight", f"weights are numbers from 0 up, found {min(weights)}")
