"""The metrics of tool calls: per turn, by the model's own format, and what says nothing about a row."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import PreparedData
from halo_forge.chat import Conversation, Message, SourceRef, TextPart, ToolCall
from halo_forge.chat.call_format import UNKNOWN, CallFormat
from halo_forge.chat.tool_format import apply_tool_format
from halo_forge.config.schema import Config
from halo_forge.evaluate.call_scores import CALL_METRICS, CallScores, score_calls, turn_records
from halo_forge.evaluate.call_turns import acceptable_calls, call_task
from halo_forge.evaluate.code_scores import NO_TESTS, score_code
from halo_forge.evaluate.items import Item, conversations_to_items
from halo_forge.evaluate.metrics import METRICS, Answer
from halo_forge.models.generate import Prompt
from halo_forge.texts.calls.formats import KNOWN_FORMATS

TAGS = CallFormat("tool_call tags", KNOWN_FORMATS["tool_call tags"])
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},)
ROME = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
OSLO = ROME.replace("Rome", "Oslo")
NO_TOOL = '<tool_call>{"name": "wether", "arguments": {"city": "Rome"}}</tool_call>'
NO_CITY = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
BROKEN = '<tool_call>{"name": "weather", '


def said(role: Any, text: str, **more: Any) -> Message:
    return Message(role=role, parts=(TextPart(text=text),), **more)


def calling(*cities: str, weight: float | None = None) -> Message:
    return Message(
        role="assistant", weight=weight,
        parts=tuple(ToolCall(name="weather", arguments={"city": city}) for city in cities),
    )  # fmt: skip


def talk(*messages: Message, tools: Any = TOOLS, tests: dict[str, Any] | None = None) -> Conversation:
    turns = (said("user", "Weather?"), *messages)
    return Conversation(id=str(turns), messages=turns, tools=tools, tests=tests, source=SourceRef(path="r", line=1))


def item(conversation: Conversation) -> Item:
    return Item(
        id="a", example=None, prompt=Prompt((1,), frozenset({2})), reference="r", tests=conversation.tests,
        task=call_task(conversation, TAGS),
    )  # fmt: skip


def scored(conversation: Conversation, *answers: str) -> dict[str, float]:
    """The tuned scores of one row; the last answer is the item's own, those before it of earlier turns."""
    row = item(conversation)
    if row.task is not None:
        *before, last = row.task.turns
        placed = tuple(replace(turn, place=at) for at, turn in enumerate(before))
        row = replace(row, task=replace(row.task, turns=(*placed, last)))
    own = [Answer(answers[-1], 3, True)]
    earlier = [Answer(text, 3, True) for text in answers[:-1]]
    found = score_calls([row], (own, earlier), (own, earlier))
    return {name: float(values[0]) for name, values in found.tuned.items()}


WANTS_ROME = talk(calling("Rome"))


@pytest.mark.parametrize(
    ("answer", "match", "exact", "valid"),
    [
        (ROME, 1, 1, 1), (ROME.replace("Rome", "rome"), 1, 0, 1), (OSLO, 0, 0, 1), (NO_TOOL, 0, 0, 0),
        (NO_CITY, 0, 0, 0), (BROKEN, 0, 0, 0), ("Sunny.", 0, 0, 0), (ROME + ROME, 0, 0, 1), ("", 0, 0, 0),
        (f"I look.\n{ROME}", 1, 1, 1), (ROME + BROKEN, 0, 0, 0),
    ],
)  # fmt: skip
def test_a_row_that_wants_one_call(answer: str, match: int, exact: int, valid: int) -> None:
    assert scored(WANTS_ROME, answer) == {"call_match": match, "call_exact": exact, "call_valid": valid}


@pytest.mark.parametrize(("answer", "right"), [("Sunny.", 1), (ROME, 0), (BROKEN, 0), (NO_TOOL, 0)])
def test_a_row_that_wants_no_call(answer: str, right: int) -> None:
    """An attempt that cannot be read is an attempt: what it says is no answer to the user."""
    assert scored(talk(said("assistant", "Sunny.")), answer) == {"irrelevance_accuracy": right}


def test_parallel_calls_in_any_order() -> None:
    both = talk(calling("Rome", "Oslo"))
    assert scored(both, OSLO + ROME)["call_match"] == 1
    assert scored(both, ROME)["call_match"] == 0


def test_every_turn_counts() -> None:
    row = talk(
        calling("Rome"), said("tool", "sun"), said("assistant", "Sunny."), said("user", "And Oslo?"), calling("Oslo")
    )
    assert scored(row, ROME, "Sunny.", OSLO) == {
        "call_match": 1, "call_exact": 1, "call_valid": 1, "multi_turn_match": 1,
    }  # fmt: skip
    assert scored(row, OSLO, "Sunny.", OSLO)["call_match"] == 0
    assert scored(row, ROME, "Sunny.", ROME)["call_match"] == 0
    called_again = scored(row, ROME, ROME, OSLO)
    assert (called_again["call_match"], called_again["multi_turn_match"]) == (1, 0)


def test_turns_that_are_not_trained_are_not_asked() -> None:
    row = talk(calling("Oslo", weight=0.0), said("tool", "no"), calling("Rome"))
    task = call_task(row, TAGS)
    assert task is not None
    assert [turn.message for turn in task.turns] == [3]


def test_acceptable_calls_of_a_row_are_taken_instead_of_the_trained_one() -> None:
    row = talk(calling("Rome"), tests={"calls": [{"weather": {"city": ["Rome", "Roma"]}}]})
    assert scored(row, ROME.replace("Rome", "Roma"))["call_match"] == 1
    assert scored(WANTS_ROME, ROME.replace("Rome", "Roma"))["call_match"] == 0
    for odd in (None, {}, {"calls": 3}, {"calls": [3]}, {"calls": [{"f": 3}]}, {"calls": [{"f": {"a": 1}}]}):
        assert acceptable_calls(odd) == ()
    assert score_code([item(row)], [Answer("x", 1, True)], [Answer("x", 1, True)]).inapplicable["pass_at_1"] == NO_TESTS


def test_rows_without_tools_say_nothing() -> None:
    plain = talk(said("assistant", "Sunny."), tools=())
    assert call_task(plain, UNKNOWN) is None
    found = score_calls([item(plain)], ([Answer("x", 1, True)], []), ([Answer("x", 1, True)], []))
    assert found.inapplicable.keys() == set(CALL_METRICS)
    assert not found.base
    assert all(METRICS[name].score is None for name in CALL_METRICS)


def test_a_row_whose_turn_has_no_answer_says_nothing() -> None:
    none: CallScores = score_calls([item(WANTS_ROME)], ([None], []), ([Answer(ROME, 1, True)], []))
    assert none.inapplicable.keys() == set(CALL_METRICS)


def test_items_carry_the_tools_and_a_prompt_for_every_turn(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    apply_tool_format(tokenizer, "auto")
    row = talk(
        calling("Rome"), said("tool", "SUN"), said("assistant", "Sunny."), said("user", "And Oslo?"), calling("Oslo")
    )
    prepared = PreparedData.model_construct(max_seq_length=1024)
    asked = conversations_to_items([row, talk(said("assistant", "Hi."), tools=())], Config(), prepared, tokenizer)
    first, second = asked.items
    assert second.task is None
    assert first.task is not None
    assert first.task.format.name == "tool_call tags"
    assert [(turn.message, turn.place, len(turn.wanted)) for turn in first.task.turns] == [
        (1, 0, 1),
        (3, 1, 0),
        (5, None, 1),
    ]
    assert "SUN" not in asked.earlier[0].prompt_text
    assert "SUN" in asked.earlier[1].prompt_text
    assert asked.earlier[0].reference == ROME
    assert first.reference == OSLO
    records = turn_records(asked.earlier, [Answer("b", 1, True)] * 2, [Answer("t", 1, True)] * 2)
    assert [(record["message"], record["base"], record["tuned"]) for record in records.values()] == [
        (1, "b", "t"),
        (3, "b", "t"),
    ]
    assert asked.notes == []
    assert Counter(turn.id for turn in asked.earlier).most_common(1)[0][1] == 1
