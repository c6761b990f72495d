"""What a row becomes: a Conversation (what was said) and then an Example (what is trained).

Nothing here knows a tokenizer or torch; numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Role = Literal["system", "user", "assistant", "tool", "document"]
"""`document` is a plain text for continued pretraining: rendered without any template and trained whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    text: str


MediaKind = Literal["image", "audio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPart:
    """An image or a sound in a message. As rows name it first; once the row is settled (media/store.py) `path` is an
    absolute file, or `cache:<sha256>` for bytes that came inside a row, and `sha256` is that of its bytes."""

    kind: MediaKind
    path: str
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]
    call_id: str | None = None


Part = TextPart | MediaPart | ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `weight` overrides the loss weight of an assistant turn (0 = not trained); None = by policy.
    A tool's answer is a message of role `tool` whose `name` is the tool."""

    role: Role
    parts: tuple[Part, ...]
    reasoning: str | None = None
    name: str | None = None
    call_id: str | None = None
    weight: float | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    path: str
    line: int  # 1-based line (JSONL, CSV) or row number (JSON array, Parquet)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """`id` is the sha256 of the content (not of the source), so equal rows have equal ids.
    `weight` multiplies the loss of the whole conversation. `tests` is what an answer is verified by (verify/row_tests):
    never shown to a model."""

    id: str
    messages: tuple[Message, ...]
    source: SourceRef
    tools: tuple[dict[str, Any], ...] = ()
    slices: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0
    tests: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """An image or a sound that an example is read with.

    path, sha256       where its bytes are, and their hash: what is read is what was prepared
    place, num_tokens  its placeholders in input_ids: the first one, and how many; 0 and 0 where the model reads it
                       beside the tokens (an encoder of its own)
    """

    kind: MediaKind
    path: str
    sha256: str
    place: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Tokens of one conversation and what each contributes to the loss.

    input_ids     int32 [T]
    loss_weights  float32 [T]; loss_weights[t] weighs -log p(input_ids[t] | input_ids[:t]); 0 = not trained;
                  loss_weights[0] is always 0 because nothing predicts the first token
    source        name of the source that it comes from, "" without names
    media         what else the model reads, in order
    """

    input_ids: np.ndarray
    loss_weights: np.ndarray
    conversation_id: str
    source: str = ""
    media: tuple[Medium, ...] = ()

    def __post_init__(self) -> None:
        if self.input_ids.shape != self.loss_weights.shape or self.input_ids.ndim != 1:
            raise ValueError("input_ids and loss_weights must be 1-d and of equal length")
        if not len(self.input_ids) or self.loss_weights[0] != 0:
            raise ValueError("an example has tokens, and its first token is never trained")
        if not (self.loss_weights > 0).any():
            raise ValueError("an example needs at least one supervised token")

    @property
    def num_supervised_tokens(self) -> int:
        return int((self.loss_weights > 0).sum())
