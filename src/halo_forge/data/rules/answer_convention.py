"""One answer convention in all rows (data.final_answer): found, rewritten, told, and asked for behind the question.

final_answer_rewritten    the answer ended in another known convention, or in several that agree
calculator_annotations    GSM8K's <<48/2=24>> in an answer
no_final_answer           the last answer ends in none: the row is left as it is, and its question asks for none
several_final_answers     it gives answers that differ      other_convention_asked   the row itself asks for another
final_answer_no_number    it is no number that can be read, so numeric_match says nothing about it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from halo_forge.chat.records import Conversation, Message, Part, TextPart
from halo_forge.config.schema import RowAction
from halo_forge.texts.final_answers import (
    INSTRUCTIONS,
    Convention,
    FinalAnswer,
    asked_conventions,
    ends_in,
    final_answers,
    same_answer,
    thought_length,
    with_convention,
    without_annotations,
)

CONTRADICTIONS = frozenset({"several_final_answers", "other_convention_asked"})
"""A row with one of them is left as it is, and nothing is asked of it."""
EXCERPT_CHARS = 120


class Settled(NamedTuple):
    """The conversation in the convention (its `id` is then stale), the codes of what was mended and of what was found
    and left, and where each was seen."""

    conversation: Conversation
    fixes: tuple[str, ...]
    flags: tuple[str, ...]
    found: dict[str, str]


def settle_answers(conversation: Conversation, convention: Convention, actions: Mapping[str, RowAction]) -> Settled:
    """Rewrite the final answer of every assistant turn. A row that contradicts itself is left as it is: its codes'
    actions decide whether it is trained."""
    found: dict[str, str] = {}
    fixes: list[str] = []
    mended = _each_answer(conversation, without_annotations)
    if mended is not conversation:
        found["calculator_annotations"] = _excerpt(conversation, "<<")
        if actions["calculator_annotations"] == "fix":
            fixes.append("calculator_annotations")
        else:
            mended = conversation
    last = _last_answer(mended)
    contradiction = _contradiction(mended, last, convention)
    if contradiction:
        found |= contradiction
    else:
        rewritten = _each_answer(mended, lambda text: _rewritten(text, convention))
        if rewritten is not mended:
            fixes.append("final_answer_rewritten")
            found["final_answer_rewritten"] = _end(last)
        mended = rewritten
        found |= _unread(_last_answer(mended))
    return Settled(mended, tuple(fixes), tuple(code for code in found if code not in fixes), found)


def with_instruction(conversation: Conversation, convention: Convention, *, asks_all: bool = False) -> Conversation:
    """Behind each question whose answer ends in the convention (asks_all: behind the last one, whatever its answer),
    what to end in; a row that says itself how to answer stays as it is."""
    messages = list(conversation.messages)
    if any(asked_conventions(turn.text) for turn in messages if turn.role in ("system", "user")):
        return conversation
    question = None
    for at, turn in enumerate(conversation.messages):
        is_last = at == len(messages) - 1
        if turn.role == "user":
            question = at
        elif turn.role == "assistant" and question is not None:
            if ends_in(turn.text, convention) or (asks_all and is_last):
                messages[question] = _asking(messages[question], INSTRUCTIONS[convention])
            question = None
    changed = tuple(messages)
    return conversation if changed == conversation.messages else replace(conversation, messages=changed)


def _asking(question: Message, instruction: str) -> Message:
    parts = list(question.parts)
    for at in reversed(range(len(parts))):
        if isinstance(part := parts[at], TextPart):
            parts[at] = TextPart(text=f"{part.text}\n\n{instruction}")
            return replace(question, parts=tuple(parts))
    return replace(question, parts=(*parts, TextPart(text=instruction)))


def _contradiction(conversation: Conversation, answer: str, convention: Convention) -> dict[str, str]:
    """Code and place of what makes the row say two things at once."""
    for turn in conversation.messages:
        asked = asked_conventions(turn.text) if turn.role in ("system", "user") else frozenset()
        if asked and convention not in asked:
            return {"other_convention_asked": _end(turn.text)}
    return {} if _agrees(final_answers(answer)) else {"several_final_answers": _end(answer)}


def _agrees(answers: Sequence[FinalAnswer]) -> bool:
    return all(same_answer(one, answers[-1]) for one in answers[:-1])


def _unread(answer: str) -> dict[str, str]:
    answers = final_answers(answer)
    if not answers:
        return {"no_final_answer": _end(answer)}
    return {} if answers[-1].number is not None else {"final_answer_no_number": answers[-1].text[:EXCERPT_CHARS]}


def _rewritten(text: str, convention: Convention) -> str:
    return with_convention(text, convention) if _agrees(final_answers(text)) else text


def _last_answer(conversation: Conversation) -> str:
    return next((turn.text for turn in reversed(conversation.messages) if turn.role == "assistant"), "")


def _each_answer(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """The conversation with every text part of assistant turns changed; itself where nothing changes. A change that
    leaves nothing is not made."""

    def changed(part: Part) -> Part:
        if not isinstance(part, TextPart):
            return part
        text = change(part.text)
        return part if text == part.text or not text[thought_length(text) :].strip() else TextPart(text=text)

    messages = tuple(
        replace(turn, parts=tuple(changed(part) for part in turn.parts)) if turn.role == "assistant" else turn
        for turn in conversation.messages
    )
    return conversation if messages == conversation.messages else replace(conversation, messages=messages)


def _excerpt(conversation: Conversation, mark: str) -> str:
    text = next((t.text for t in conversation.messages if t.role == "assistant" and mark in t.text), "")
    at = max(0, text.find(mark) - 20)
    return text[at : at + EXCERPT_CHARS]


def _end(text: str) -> str:
    return text[-EXCERPT_CHARS:]
