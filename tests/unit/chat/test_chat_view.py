"""What a person sees: every token's text, what is trained, and never a raw control character."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.chat import (
    Conversation,
    Example,
    Message,
    SourceRef,
    TextPart,
    TokenView,
    conversation_to_example,
    escape_controls,
    first_batch_text,
    token_view,
    view_as_ansi,
    view_as_json,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoded(question: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    said = [("user", question), ("assistant", answer)]
    messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in said)  # type: ignore[arg-type]
    row = Conversation(id="c1", messages=messages, source=SourceRef(path="r", line=1))
    return conversation_to_example(row, tokenizer, max_seq_length=10_000).example


@settings(max_examples=100, deadline=None)
@given(answer=st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_texts_joined_are_the_decoded_text(answer: str, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    example = encoded("é", answer, tiny_tokenizer)
    views = token_view(example, tiny_tokenizer)
    assert "".join(view.text for view in views) == tiny_tokenizer.decode(example.input_ids)
    assert [view.token_id for view in views] == example.input_ids.tolist()
    assert [view.weight for view in views] == example.loss_weights.tolist()


def test_a_character_made_by_several_tokens_stands_with_the_last(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    views = token_view(encoded("a", "👩‍👧 \ufffd!", tiny_tokenizer), tiny_tokenizer)
    texts = [view.text for view in views]
    assert "👩" in texts
    assert texts[texts.index("👩") - 1] == ""
    trained = "".join(view.text for view in views if view.weight > 0)
    assert trained == "👩‍👧 \ufffd!<|im_end|>"


def test_cut_in_the_middle_of_a_character(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encoded("a", "👩", tiny_tokenizer)
    first = int(np.flatnonzero(whole.loss_weights)[0])
    cut = Example(
        input_ids=whole.input_ids[: first + 2], loss_weights=whole.loss_weights[: first + 2], conversation_id="c"
    )
    views = token_view(cut, tiny_tokenizer)
    assert "".join(view.text for view in views) == tiny_tokenizer.decode(cut.input_ids)


def test_decoders_that_drop_a_leading_space() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "▁c": 2, "<unk>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    example = Example(
        input_ids=np.array([0, 1, 2], np.int32), loss_weights=np.array([0, 1, 1], np.float32), conversation_id="c"
    )
    views = token_view(example, tokenizer)
    assert [view.text for view in views] == ["a", " b", " c"]


def test_json_view(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    example = encoded("a", "b", tiny_tokenizer)
    view = view_as_json(token_view(example, tiny_tokenizer))
    assert list(view) == ["text", "tokens", "token_ids", "weights"]
    assert view["text"] == "".join(view["tokens"]) == tiny_tokenizer.decode(example.input_ids)
    assert len(view["tokens"]) == len(view["token_ids"]) == len(view["weights"]) == len(example.input_ids)


def test_trained_stretches_are_bracketed_or_coloured(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    views = token_view(encoded("a ⟦b⟧", "c\nd", tiny_tokenizer), tiny_tokenizer)
    plain = view_as_ansi(views, color=False)
    assert plain == ("<|im_start|>user↵\na \\u27e6b\\u27e7<|im_end|>↵\n<|im_start|>assistant↵\n⟦c↵\nd<|im_end|>⟧↵\n")
    colored = view_as_ansi(views, color=True)
    assert "\x1b[32mc↵\x1b[0m\n\x1b[32md<|im_end|>\x1b[0m" in colored
    assert colored.count("\x1b") == 4


def test_weights_are_told_apart() -> None:
    views = [TokenView(1, "a", 0.0), TokenView(2, "b", 0.5), TokenView(3, "c", 1.0), TokenView(4, "d", 2.0)]
    assert view_as_ansi(views, color=False) == "a⟦0.5:b⟧⟦c⟧⟦2:d⟧"
    assert view_as_ansi(views, color=True) == "a\x1b[33mb\x1b[0m\x1b[32mc\x1b[0m\x1b[35md\x1b[0m"


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(), max_size=40))
def test_no_control_character_is_shown_raw(text: str) -> None:
    shown = escape_controls(text)
    for character in shown.replace("\u200c", "").replace("\u200d", "").replace("↵\n", ""):
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\r\x07", "\\x0d\\x07"),
        ("a\u202eb", "a\\u202eb"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("👩‍👧", "👩‍👧"),
        ("é\t", "é\\t"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


def test_first_batch_text(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    examples = [encoded("a", "b\x1b[31m", tiny_tokenizer), encoded("c", "d", tiny_tokenizer)]
    text = first_batch_text(examples, tiny_tokenizer)
    assert "\x1b" not in text
    assert re.findall(r"⟦([^⟧]+)⟧", text.partition("---")[2]) == ["b\\x1b[31m<|im_end|>", "d<|im_end|>"]
    assert f"--- example 2: conversation c1, {len(examples[1].input_ids)} tokens, 2 trained\n" in text
