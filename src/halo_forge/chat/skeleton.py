"""What a template writes around the contents of one kind of conversation, learnt once and proven before it is used.

A kind is the sequence of roles, with or without reasoning: ("user", "assistant"). Its rendering is literal texts with
the contents between them, for every row whose contents meet the conditions that tracing the template gave (trace.py).
All else that `ChatEncoder.encode` derives for such a row is then the same at places that only move with the lengths
of the contents: spans, special tokens, notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

from halo_forge.chat.byte_tokens import ByteTokens
from halo_forge.chat.known import KnownTokenizer
from halo_forge.chat.messages import template_source
from halo_forge.chat.origin import visible
from halo_forge.chat.records import Conversation, Message, SourceRef, TextPart
from halo_forge.chat.trace import Conditions, TracedTemplate, Untraceable
from halo_forge.errors import DataError, RowError

Kind = tuple[str, ...]
"""A role for each message, after THINKING where the message has reasoning; that is a content of its own, before its
text."""

THINKING = "thinking "
DOCUMENT: Kind = ("document",)
_PROBE = "Qzv{}xjk"
_SPACES = (" ", "  ", "\n", "\t", "\u00a0", "\u2028")
# fmt: off
_HARD = (
    "plain", "two\nlines\n\nand more", "quotes \"double\" and 'single'",
    "braces {x} {{ y }} {% if z %}1{% endif %} {# c #}", "<b>html</b> &amp; <br/>",
    "back\\slash \\n \\\\ \\u0041", "1 2 3.50 1,000 007", "a" * 300, "word " * 400 + "end",
    "naïve 你好 Привет 👩\u200d👧", "e\u0301 Ω ½ ٣", "```py\nprint(1)\n```", "<|im_end|>", "x <|endoftext|> y",
    "user: assistant: system: tool", "NaN None null true", "%s %d {0}", "- a\n- b\n  - c", "# title", "é", "😀",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Place:
    """A place in every rendering of a kind: after so many bytes of literal text and so many contents."""

    literal_bytes: int
    num_contents: int


@dataclass(frozen=True, slots=True)
class TrainedTurn:
    message: int
    start: Place
    end: Place  # after the token that stops the turn


@dataclass(frozen=True, slots=True)
class Skeleton:
    """literals    one more than `order`; the rendering is literal, content, literal, ..., literal
    order          which content stands after each literal but the last
    num_contents   contents of a row, also those that the template leaves out
    words          none of these stands in a content of a row that this skeleton is for
    structural_ids, structural_places  the special tokens of the rendering, in order
    notes          what `encode` notes on every such row
    """

    kind: Kind
    literals: tuple[str, ...]
    order: tuple[int, ...]
    num_contents: int
    words: tuple[str, ...]
    trims: bool
    turns: tuple[TrainedTurn, ...]
    structural_ids: tuple[int, ...]
    structural_places: tuple[Place, ...]
    notes: tuple[str, ...]
    clock: bool

    def fits(self, text: str) -> bool:
        """Whether a content is one that the skeleton holds for, `words` aside."""
        first = text[0]
        if self.kind == DOCUMENT:
            return True
        # White space at the front can join the token before it; what cannot be seen cannot be traced by `encode`.
        if first.isspace() or (self.trims and text[-1].isspace()):
            return False
        return (first.isalnum() and first < "\U00020000") or visible(text)

    def render(self, contents: Sequence[str]) -> str:
        pieces = [self.literals[0]]
        for content, literal in zip(self.order, self.literals[1:], strict=True):
            pieces += [contents[content], literal]
        return "".join(pieces)


def conversation_of(kind: Kind, contents: Sequence[str]) -> Conversation:
    """A conversation of a kind, for trials."""
    left = iter(contents)
    messages = []
    for name in kind:
        role = name.removeprefix(THINKING)
        reasoning = next(left) if role != name else None
        messages.append(Message(role=role, parts=(TextPart(text=next(left)),), reasoning=reasoning))  # type: ignore[arg-type]
    return Conversation(id="trial", messages=tuple(messages), source=SourceRef(path="trial", line=1))


def num_contents(kind: Kind) -> int:
    return len(kind) + sum(name.startswith(THINKING) for name in kind)


def hard_contents(skeleton: Skeleton) -> list[list[str]]:
    """Contents that templates stumble over, for each a row of the kind; with the words, fragments and cases of those
    that the template looks for."""
    texts = [*_HARD]
    for word in skeleton.words:
        texts += [f"a {word} b", word[:-1], word.upper() + word.lower(), f"x{word[1:]}"]
    texts += [f"edge{space}" for space in _SPACES] + [f"{space}edge" for space in _SPACES]
    numbers = range(skeleton.num_contents)
    return [[text if number % 2 else f"{number}{text}" for number in numbers] for text in texts if text]


def learn_document(known: KnownTokenizer, tokens: ByteTokens) -> Skeleton | str:
    """Plain text between begin-of-text and end-of-text tokens."""
    encoder = known.encoder
    if encoder.eos_id is None or encoder.eos_id not in encoder.structural:
        return "the tokenizer has no end-of-text token among its special tokens"
    ids = [encoder.bos_id, encoder.eos_id] if known.adds_bos else [encoder.eos_id]
    spelled = [encoder.structural[number] for number in ids if number is not None]
    first = Place(len(spelled[0].encode()), 0) if known.adds_bos else Place(0, 0)
    places = (Place(0, 0), Place(first.literal_bytes, 1)) if known.adds_bos else (Place(0, 1),)
    return Skeleton(
        kind=DOCUMENT,
        literals=(spelled[0] if known.adds_bos else "", spelled[-1]),
        order=(0,),
        num_contents=1,
        words=(),
        trims=False,
        turns=(),
        structural_ids=tuple(number for number in ids if number is not None),
        structural_places=places,
        notes=(),
        clock=False,
    )


def learn_skeleton(known: KnownTokenizer, kind: Kind, tokens: ByteTokens) -> Skeleton | str:
    """The skeleton of a kind of conversation, or why it has none (its rows are then encoded one by one)."""
    if kind == DOCUMENT:
        return learn_document(known, tokens)
    contents = [_PROBE.format(number) for number in range(num_contents(kind))]
    conversation = conversation_of(kind, contents)
    try:
        conditions = _trace(known, conversation)
        rendering = known.render(conversation)
    except (Untraceable, RowError, DataError) as error:
        return str(error)
    text = rendering.text
    shown = [number for number, content in enumerate(contents) if content in text]
    if any(text.count(contents[number]) != 1 for number in shown):
        return "the template writes a content twice"
    order = sorted(shown, key=lambda number: text.index(contents[number]))
    starts = [text.index(contents[number]) for number in order]
    borders = [(start, start + len(contents[number])) for start, number in zip(starts, order, strict=True)]
    gaps = zip([0, *(end for _, end in borders)], [*starts, len(text)], strict=True)
    literals = [text[left:right] for left, right in gaps]

    def place(character: int) -> Place:
        before = sum(end <= character for _, end in borders)
        length = len(text[:character].encode()) - sum(len(contents[number]) for number in order[:before])
        return Place(length, before)

    turns = []
    for span, turn in zip(rendering.spans, rendering.turns, strict=True):
        if span.end is None or turn.stop is None or not span.start:
            return "the template ends an answer with no token of its own"
        turns.append(TrainedTurn(span.message, place(span.start), place(span.end)))
    specials = known.encoder.specials_in(text)
    if not {span.end for span in rendering.spans} <= {special.end for special in specials}:
        return "an answer does not end with a special token"
    return Skeleton(
        kind=kind,
        literals=tuple(literals),
        order=tuple(order),
        num_contents=len(contents),
        words=tuple(sorted(conditions.words)),
        trims=conditions.trims,
        turns=tuple(turns),
        structural_ids=tuple(special.token_id for special in specials),
        structural_places=tuple(place(special.start) for special in specials),
        notes=tuple(dict.fromkeys(rendering.notes)),
        clock=conditions.clock,
    )


def _trace(known: KnownTokenizer, conversation: Conversation) -> Conditions:
    """The conditions under which all renderings that `encode` looks at (the whole, and those that growing the
    conversation turn by turn takes) are the literals of this one. Raises Untraceable, RowError and DataError."""
    from transformers import PreTrainedTokenizerBase

    apply = getattr(known.tokenizer.apply_chat_template, "__func__", None)
    if apply is not PreTrainedTokenizerBase.apply_chat_template:
        raise Untraceable("the tokenizer renders with code of its own")
    facts = known.facts(conversation)
    messages = known.template_messages(conversation, facts)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    stages = {(len(messages), False), *((turn, True) for turn in turns if turn), *((turn + 1, False) for turn in turns)}
    if known.reads_parts(conversation):
        given = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    else:
        given = messages
    traced = TracedTemplate(template_source(known.tokenizer, ()))
    for count, prompt in sorted(stages):
        try:
            wanted = facts.render(messages[:count], (), prompt)
        except RowError:
            wanted = None
        if _render(traced, given[:count], prompt, known) != wanted:
            raise Untraceable("the traced rendering differs from the real one")
    return traced.conditions


def _render(traced: TracedTemplate, messages: list[dict[str, Any]], prompt: bool, known: KnownTokenizer) -> str | None:
    try:
        return traced.render(messages, prompt, known.tokenizer.special_tokens_map)
    except Untraceable:
        raise
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):  # a refusal, and what comes of it
        return None


def place_offsets(places: Sequence[Place], content_ends: np.ndarray) -> np.ndarray:
    """Byte offsets [rows, places] in the renderings of rows whose contents, in the order of the rendering, end after
    `content_ends` [rows, contents + 1] bytes of content (the first column is 0)."""
    literal = np.array([place.literal_bytes for place in places], dtype=np.int64)
    return content_ends[:, [place.num_contents for place in places]] + literal
