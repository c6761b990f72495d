"""Thinking and final answer under real chat templates of thinking models: what is trained ends in the convention, with
the thoughts that the policy asks for, and the reference that answers are scored by is that very text."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from halo_forge.chat import ChatEncoder, Conversation, Message, SourceRef, TextPart, prompt_and_reference
from halo_forge.config.schema import DataSection
from halo_forge.data.reasons import action_table
from halo_forge.data.rules.answer_convention import settle_answers, with_instruction
from halo_forge.errors import RowError
from halo_forge.evaluate.metrics.overlap import answer_format, numeric_match
from halo_forge.texts.final_answers import INSTRUCTIONS, convention_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

pytestmark = pytest.mark.skipif(
    find_spec("trl") is None, reason="trl, whose package has the templates, is not installed"
)
THOUGHT = "Maybe \\boxed{3}? No, 4."
# template -> whether it keeps a `<think>` block of the last answer; some open it in the prompt, so only its end is said
TEMPLATES = ("qwen3", "qwen3_5_think", "qwen3_6", "qwen3_5_nothink", "qwen3_instruct_2507", "qwen2_5")
WRITES_FIELD = {"qwen3", "qwen3_5_think", "qwen3_6", "qwen3_5_nothink"}


@pytest.fixture(params=TEMPLATES)
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    import trl

    found = copy.deepcopy(tiny_tokenizer)
    found.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{request.param}.jinja").read_text()
    found.init_kwargs["template_name"] = request.param
    return found


def conversation(*turns: tuple[str, str, str | None]) -> Conversation:
    messages = tuple(
        Message(role=role, parts=(TextPart(text=text),), reasoning=thought)  # type: ignore[arg-type]
        for role, text, thought in turns
    )
    return Conversation(id="x", messages=messages, source=SourceRef(path="rows", line=1))


def settled(row: Conversation) -> Conversation:
    found = settle_answers(row, "hashes", action_table(DataSection()))
    assert found.fixes == ("final_answer_rewritten",)
    return with_instruction(found.conversation, "hashes")


FIELD = conversation(("user", "2+2?", None), ("assistant", "So 4.\nThe answer is: 4", THOUGHT))
INLINE = conversation(
    ("user", "2+2?", None), ("assistant", f"<think>\n{THOUGHT}\n</think>\n\nSo $\\boxed{{4}}$.", None)
)
EMPTY = conversation(("user", "2+2?", None), ("assistant", "<think>\n\n</think>\n\nSo 4.\nThe answer is: 4", None))


def trained_text(row: Conversation, tokenizer: PreTrainedTokenizerBase, reasoning: str) -> str:
    encoder = ChatEncoder(tokenizer, max_seq_length=2048, reasoning=reasoning)  # type: ignore[arg-type]
    example = encoder.encode(row).example
    return tokenizer.decode(example.input_ids[example.loss_weights > 0])


@pytest.mark.parametrize("row", [FIELD, INLINE], ids=["field", "inline"])
def test_what_is_trained_thinks_by_policy_and_ends_in_the_convention(
    tokenizer: PreTrainedTokenizerBase, row: Conversation
) -> None:
    row, name = settled(row), tokenizer.init_kwargs["template_name"]
    kept, stripped = (trained_text(row, tokenizer, policy) for policy in ("keep", "strip"))
    for text in (kept, stripped):
        assert text.rstrip().endswith("#### 4<|im_end|>")
        assert "The answer is" not in text
    assert (THOUGHT in kept) is (row.messages[1].reasoning is None or name in WRITES_FIELD)
    assert THOUGHT not in stripped
    if THOUGHT in kept:
        assert trained_text(row, tokenizer, "require") == kept


def test_required_thoughts_that_are_empty_are_missing(tokenizer: PreTrainedTokenizerBase) -> None:
    row = settled(EMPTY)
    assert trained_text(row, tokenizer, "keep").rstrip().endswith("#### 4<|im_end|>")
    with pytest.raises(RowError) as caught:
        trained_text(row, tokenizer, "require")
    assert caught.value.code == "reasoning_missing"


@pytest.mark.parametrize("row", [FIELD, INLINE, EMPTY], ids=["field", "inline", "empty"])
def test_prompt_target_and_scorer_agree(tokenizer: PreTrainedTokenizerBase, row: Conversation) -> None:
    """A model that says exactly what it was trained to say is right; one that guesses while thinking is not."""
    ids, reference, _ = prompt_and_reference(settled(row), tokenizer)
    assert INSTRUCTIONS["hashes"] in tokenizer.decode(ids)
    assert convention_of(reference) == "hashes"
    assert answer_format(reference, reference) == numeric_match(reference, reference) == 1
    guess = "<think>\nIt is\n#### 4\n</think>\n\nNo idea."
    assert answer_format(guess, reference) == numeric_match(guess, reference) == 0
    cut = "<think>\nIt is 4, so\n#### 4"
    assert answer_format(cut, reference) == numeric_match(cut, reference) == 0


def test_thinking_of_earlier_turns_that_a_template_drops_stays_out_of_the_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    row = settled(
        conversation(
            ("user", "2+2?", None), ("assistant", "The answer is: 4", "first thought"),
            ("user", "3+3?", None), ("assistant", "The answer is: 6", "second thought"),
        )
    )  # fmt: skip
    ids, reference, _ = prompt_and_reference(row, tokenizer)
    prompt = tokenizer.decode(ids)
    assert prompt.count(INSTRUCTIONS["hashes"]) == 2
    assert "#### 4" in prompt
    assert "first thought" not in prompt
    assert reference.endswith("#### 6")
