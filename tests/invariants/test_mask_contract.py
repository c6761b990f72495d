"""The mask contract on a template whose rendering can be written down by hand (ChatML), over random conversations.

The oracle below knows nothing of the implementation: it writes the rendering with f-strings and marks the trained
characters while writing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from halo_forge.chat import ChatEncoder, Conversation, Message, SourceRef, TextPart, prompt_and_reference
from halo_forge.chat.origin import visible
from halo_forge.errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"]
ORDINARY = [
    "Paris",
    " the answer is 42",
    "naïve café",
    "你好，世界",
    "👩‍👩‍👧‍👦",
    "e\u0301",
    "\u202e",
    "\t",
    " ",
    "  ",
    "\n",
    "\n\n",
    '"',
    "\\n",
    "{'a': 1}",
    "assistant\n",
    "user",
    "<|im_",
    "end|>",
    "<",
    "𠀀𠀁",
    "\ue101\ue1a1",
    "\ufdd0",
]
Turn = tuple[str, str]


@dataclass(frozen=True)
class Expected:
    text: str
    trained: list[tuple[int, int]]  # characters, one range an assistant turn


def write_chatml(turns: list[Turn]) -> Expected:
    text = "" if turns[0][0] == "system" else f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"
    trained = []
    for role, content in turns:
        text += f"<|im_start|>{role}\n"
        start = len(text)
        text += f"{content}<|im_end|>"
        if role == "assistant":
            trained.append((start, len(text)))
        text += "\n"
    return Expected(text, trained)


def conversation(turns: list[Turn]) -> Conversation:
    messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in turns)  # type: ignore[arg-type]
    return Conversation(id="c", messages=messages, source=SourceRef(path="rows.jsonl", line=1))


def texts(pieces: list[str]) -> st.SearchStrategy[str]:
    # SmolLM2's vocabulary has no token for some control bytes and for the lead bytes of planes 4 and up.
    free = st.text(st.characters(exclude_categories=("Cs", "Cc"), max_codepoint=0x3FFFF), max_size=12)
    return st.lists(st.one_of(st.sampled_from(pieces), free), max_size=6).map("".join)


def turn_lists(pieces: list[str]) -> st.SearchStrategy[list[Turn]]:
    text = texts(pieces)
    system = st.one_of(st.just([]), text.map(lambda content: [("system", content)]))
    pair = st.tuples(text, text).map(lambda both: [("user", both[0]), ("assistant", both[1])])
    return st.tuples(system, st.lists(pair, min_size=1, max_size=4)).map(
        lambda both: both[0] + [turn for pair in both[1] for turn in pair]
    )


def seen_of(text: str) -> str:
    return "".join(character for character in text if visible(character))


def runs(weights: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of trained tokens, end exclusive."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], weights > 0, [0])).astype(int)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


@pytest.fixture(scope="module")
def encoder(smollm2_tokenizer: PreTrainedTokenizerBase) -> ChatEncoder:
    return ChatEncoder(smollm2_tokenizer, max_seq_length=100_000)


@SETTINGS
@given(turns=turn_lists(ORDINARY))
def test_rows_without_special_strings_are_what_apply_chat_template_makes(
    turns: list[Turn], encoder: ChatEncoder, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    expected = write_chatml(turns)
    assume(not any(special in content for _, content in turns for special in SPECIALS[:3]))
    encoded = encoder.encode(conversation(turns))
    messages = [{"role": role, "content": content} for role, content in turns]
    assert encoded.example.input_ids.tolist() == smollm2_tokenizer.apply_chat_template(messages)["input_ids"]
    assert encoded.example.input_ids.tolist() == smollm2_tokenizer(expected.text)["input_ids"]
    assert encoded.example.input_ids.dtype == np.int32
    assert encoded.example.loss_weights.dtype == np.float32


@SETTINGS
@given(turns=turn_lists(ORDINARY + SPECIALS))
def test_trained_tokens_of_each_turn_are_its_text_and_the_stop_token(
    turns: list[Turn], encoder: ChatEncoder, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    expected = write_chatml(turns)
    encoded = encoder.encode(conversation(turns))
    example = encoded.example
    assert smollm2_tokenizer.decode(example.input_ids) == expected.text
    stop = smollm2_tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = runs(example.loss_weights)
    assert len(found) == len(expected.trained)
    for (first, end), (start, stop_at) in zip(found, expected.trained, strict=True):
        answer = expected.text[start:stop_at]
        decoded = smollm2_tokenizer.decode(example.input_ids[first:end])
        assert example.input_ids[end - 1] == stop
        if "merged_boundary" in encoded.notes:
            # The heading's line break shares a token with the answer's own leading white space.
            assert answer.lstrip() == decoded.lstrip()
            assert answer.endswith(decoded.lstrip("\n")) or decoded.endswith(answer)
        else:
            assert decoded == answer
    assert set(np.unique(example.loss_weights)) <= {0.0, 1.0}
    assert example.loss_weights[0] == 0


@SETTINGS
@given(turns=turn_lists(ORDINARY + SPECIALS))
def test_only_the_template_writes_structure(
    turns: list[Turn], encoder: ChatEncoder, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    encoded = encoder.encode(conversation(turns))
    start, end = smollm2_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    num_rendered = len(turns) + (turns[0][0] != "system")
    specials = [token for token in encoded.example.input_ids.tolist() if token in smollm2_tokenizer.all_special_ids]
    assert specials == [start, end] * num_rendered
    held = any(special in content for _, content in turns for special in smollm2_tokenizer.added_tokens_encoder)
    assert ("special_tokens_neutralised" in encoded.notes) == held


@SETTINGS
@given(turns=turn_lists(ORDINARY + SPECIALS))
def test_the_prompt_is_a_prefix_of_the_example_and_the_reference_its_answer(
    turns: list[Turn], encoder: ChatEncoder, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    row = conversation(turns)
    encoded = encoder.encode(row)
    prompt, reference, stops = prompt_and_reference(row, smollm2_tokenizer)
    assert reference == turns[-1][1]
    assert stops == [smollm2_tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ids = encoded.example.input_ids.tolist()
    if "merged_boundary" in encoded.notes:
        prompt = prompt[:-1]
    assert ids[: len(prompt)] == prompt
    if "merged_boundary" not in encoded.notes:
        assert runs(encoded.example.loss_weights)[-1][0] == len(prompt)


@SETTINGS
@given(turns=turn_lists(ORDINARY + SPECIALS), train_on=st.sampled_from([["user"], ["assistant", "user"], ["system"]]))
def test_turns_of_listed_roles_are_trained_with_what_ends_them_and_no_others(
    turns: list[Turn],
    train_on: list[Literal["assistant", "user", "system"]],
    encoder: ChatEncoder,
    smollm2_tokenizer: PreTrainedTokenizerBase,
) -> None:
    listed = [(role, content) for role, content in turns if role in train_on]
    by_role = ChatEncoder(smollm2_tokenizer, max_seq_length=100_000, train_on=train_on)
    seen = [text for role, text in listed if role == "assistant" or visible(text)]
    if not seen:
        with pytest.raises(RowError) as error:
            by_role.encode(conversation(turns))
        assert error.value.code == "no_supervised_tokens"
        return
    example = by_role.encode(conversation(turns)).example
    assert example.input_ids.tolist() == encoder.encode(conversation(turns)).example.input_ids.tolist()
    found = [smollm2_tokenizer.decode(example.input_ids[first:end]) for first, end in runs(example.loss_weights)]
    assert [seen_of(text) for text in found] == [seen_of(text) + "<|im_end|>" for text in seen]


@SETTINGS
@given(turns=turn_lists(ORDINARY), limit=st.integers(8, 60))
def test_truncation_only_takes_away_and_says_so(
    turns: list[Turn], limit: int, encoder: ChatEncoder, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    whole = encoder.encode(conversation(turns)).example
    cut = ChatEncoder(smollm2_tokenizer, max_seq_length=limit, overlong="truncate")
    supervised_before_cut = bool((whole.loss_weights[:limit] > 0).any())
    if len(whole.input_ids) > limit and not supervised_before_cut:
        with pytest.raises(RowError) as error:
            cut.encode(conversation(turns))
        assert error.value.code == "no_supervised_tokens_after_truncation"
        return
    encoded = cut.encode(conversation(turns))
    assert encoded.example.input_ids.tolist() == whole.input_ids[:limit].tolist()
    assert encoded.example.loss_weights.tolist() == whole.loss_weights[:limit].tolist()
    assert ("truncated" in encoded.notes) == (len(whole.input_ids) > limit)


@pytest.mark.parametrize("train_on", ["assistant", "last_assistant", "all"])
def test_train_on_chooses_whole_turns(train_on: str, smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")]
    make: Callable[..., ChatEncoder] = ChatEncoder
    example = make(smollm2_tokenizer, max_seq_length=4096, train_on=train_on).encode(conversation(turns)).example
    trained = [smollm2_tokenizer.decode(example.input_ids[first:end]) for first, end in runs(example.loss_weights)]
    if train_on == "all":
        assert trained == [smollm2_tokenizer.decode(example.input_ids[1:])]
    else:
        assert trained == ["one<|im_end|>", "two<|im_end|>"][-1 if train_on == "last_assistant" else 0 :]


def test_a_turn_with_the_text_of_another_turn_keeps_its_own_place(
    encoder: ChatEncoder, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    turns = [("user", "same"), ("assistant", "same"), ("user", "same"), ("assistant", "same"), ("user", "same")]
    example = encoder.encode(conversation(turns)).example
    found = runs(example.loss_weights)
    assert [smollm2_tokenizer.decode(example.input_ids[first:end]) for first, end in found] == ["same<|im_end|>"] * 2
    assert all(left[1] < right[0] for left, right in pairwise(found))
