"""What a person sees of an example: each token's text and weight, for a terminal, as JSON, and in first_batch.txt."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from halo_forge.chat.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"
_RESET = "\x1b[0m"
_REPLACEMENT = "\ufffd"
# Joiners make one picture of several emoji; every other invisible or direction-changing character is shown escaped.
_HARMLESS_FORMAT = {"\u200c", "\u200d"}


@dataclass(frozen=True, slots=True)
class TokenView:
    """`text` is what the token adds to the decoded text; where several tokens make one character, the last has it."""

    token_id: int
    text: str
    weight: float


def token_view(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[TokenView]:
    """One entry a token. The texts joined are exactly `tokenizer.decode(input_ids)`."""
    ids = example.input_ids.tolist()
    whole = _decode(tokenizer, ids)
    texts = _texts_by_window(tokenizer, ids)
    if "".join(texts) != whole:
        texts = _texts_by_prefix(tokenizer, ids, whole)
    weights = example.loss_weights.tolist()
    return [TokenView(*entry) for entry in zip(ids, texts, weights, strict=True)]


def view_as_json(views: list[TokenView]) -> dict[str, Any]:
    """{"text", "tokens", "token_ids", "weights"}: the decoded text, and three lists with an entry a token."""
    return {
        "text": "".join(view.text for view in views),
        "tokens": [view.text for view in views],
        "token_ids": [view.token_id for view in views],
        "weights": [view.weight for view in views],
    }


def view_as_ansi(views: list[TokenView], color: bool) -> str:
    """Trained stretches in colour by weight (yellow below 1, green at 1, magenta above), or between ⟦ and ⟧ with the
    weight where it is not 1. Control characters of the data are shown escaped, so nothing in it reaches the terminal.
    """
    pieces = []
    for weight, group in groupby(views, key=lambda view: view.weight):
        text = escape_controls("".join(view.text for view in group))
        if not color:
            text = text.replace(OPEN, "\\u27e6").replace(CLOSE, "\\u27e7")
        if weight > 0:
            text = _colored(text, weight) if color else f"{OPEN}{'' if weight == 1 else f'{weight:g}:'}{text}{CLOSE}"
        pieces.append(text)
    return "".join(pieces)


def first_batch_text(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase) -> str:
    """The content of first_batch.txt: every example of the first step with its trained tokens between ⟦ and ⟧."""
    blocks = [f"Trained tokens stand between {OPEN} and {CLOSE}; ↵ marks a line break of the data.\n"]
    for number, example in enumerate(examples, start=1):
        views = token_view(example, tokenizer)
        blocks.append(
            f"--- example {number}: conversation {escape_controls(example.conversation_id)}, {len(views)} tokens, "
            f"{example.num_supervised_tokens} trained\n{view_as_ansi(views, color=False)}\n"
        )
    return "\n".join(blocks)


def escape_controls(text: str) -> str:
    """The text with control, format and unassigned characters as \\x1b or \\u202e; a line break as ↵ and a break."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return "\\t"
    category = unicodedata.category(character)
    if (category[0] != "C" and category not in ("Zl", "Zp")) or character in _HARMLESS_FORMAT:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _colored(text: str, weight: float) -> str:
    code = "33" if weight < 1 else "32" if weight == 1 else "35"
    # A colour that runs over a line break would fill the terminal's line in some pagers.
    return "\n".join(f"\x1b[{code}m{line}{_RESET}" if line else "" for line in text.split("\n"))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _texts_by_window(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Decode a few tokens at a time; a text that ends in a replacement character waits for the rest of its bytes."""
    texts = []
    anchor = shown = 0
    for place in range(1, len(ids) + 1):
        before, now = _decode(tokenizer, ids[anchor:shown]), _decode(tokenizer, ids[anchor:place])
        if now.endswith(_REPLACEMENT) and place < len(ids):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        anchor, shown = shown, place
    return texts


def _texts_by_prefix(tokenizer: PreTrainedTokenizerBase, ids: list[int], whole: str) -> list[str]:
    """Decode every prefix: quadratic, but right for decoders that rewrite what they said before."""
    texts, shown = [], 0
    for place in range(1, len(ids) + 1):
        prefix = _decode(tokenizer, ids[:place])
        agreed = next(
            (n for n, (a, b) in enumerate(zip(prefix, whole, strict=False)) if a != b), min(len(prefix), len(whole))
        )
        until = len(whole) if place == len(ids) else max(agreed, shown)
        texts.append(whole[shown:until])
        shown = until
    return texts
