"""Rows with tools as tasks: which calls are wanted in which turn, and the turns before the last as prompts.

Every turn is asked with the reference's history before it, so that a slip in one is not counted again in the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from halo_forge.chat import Conversation, prompt_and_reference
from halo_forge.chat.call_format import CallFormat
from halo_forge.errors import RowError
from halo_forge.models.generate import Prompt
from halo_forge.texts.calls.match import Wanted
from halo_forge.texts.calls.record import Call
from halo_forge.texts.calls.schemas import name_of, parameters_of

CALLS = "calls"
"""The key of a row's `tests` that holds acceptable calls: [{name: {argument: [values]}}]."""


@dataclass(frozen=True, slots=True)
class CallTurn:
    """One turn of the assistant. `wanted` is empty where it is to call nothing. `place`: which of the prompts asked
    beside the items; None for the item's own, the last turn. `message` counts from 0."""

    message: int
    wanted: tuple[Wanted, ...]
    place: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTask:
    """`schemas`: name of each offered tool -> JSON Schema of its parameters."""

    schemas: Mapping[str, Mapping[str, Any]]
    turns: tuple[CallTurn, ...]
    format: CallFormat

    @property
    def calls(self) -> bool:
        return any(turn.wanted for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierTurn:
    """A turn before a row's last, to be answered too. example is None: no likelihood is measured of it."""

    id: str
    message: int
    prompt: Prompt
    prompt_text: str
    reference: str
    example: None = None


def call_task(conversation: Conversation, format: CallFormat) -> CallTask | None:
    """What the row wants of its trained turns; None where it neither offers tools nor calls any."""
    turns = [
        CallTurn(index, tuple(Wanted(Call(call.name, call.arguments)) for call in message.tool_calls))
        for index, message in enumerate(conversation.messages)
        if message.role == "assistant" and message.weight != 0
    ]
    if not turns or not (conversation.tools or any(turn.wanted for turn in turns)):
        return None
    accepted = acceptable_calls(conversation.tests)
    if accepted and len(accepted) == len(turns[-1].wanted):
        turns[-1] = replace(turns[-1], wanted=accepted)
    schemas = {name_of(tool): parameters_of(tool) for tool in conversation.tools}
    return CallTask(schemas=schemas, turns=tuple(turns), format=format)


def acceptable_calls(tests: Mapping[str, Any] | None) -> tuple[Wanted, ...]:
    """The calls that a row's `tests` accepts; empty where there are none, or they are not of this form."""
    raw = (tests or {}).get(CALLS)
    wanted: list[Wanted] = []
    for item in raw if isinstance(raw, list) else ():
        for name, accepts in item.items() if isinstance(item, dict) else ():
            if not isinstance(accepts, dict) or not all(isinstance(ones, list) for ones in accepts.values()):
                return ()
            wanted.append(Wanted(Call(str(name), {}), accepts))
    return tuple(wanted)


def with_prompts(
    task: CallTask,
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    earlier: list[EarlierTurn],
    lost: Counter[str],
) -> CallTask:
    """The task with a prompt for every turn before the last, appended to `earlier`; a turn that the template refuses
    is counted in `lost` and left out."""
    last = max(index for index, message in enumerate(conversation.messages) if message.role == "assistant")
    turns: list[CallTurn] = []
    for turn in task.turns:
        if turn.message == last:
            turns.append(turn)
            continue
        so_far = replace(conversation, messages=conversation.messages[: turn.message + 1])
        try:
            token_ids, reference, stop_token_ids = prompt_and_reference(so_far, tokenizer)
        except RowError as error:
            lost[f"answer of an earlier turn ({error.code})"] += 1
            continue
        turns.append(replace(turn, place=len(earlier)))
        text = str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        earlier.append(
            EarlierTurn(
                id=f"{conversation.id}#{turn.message}",
                message=turn.message,
                prompt=Prompt(tuple(token_ids), frozenset(stop_token_ids)),
                prompt_text=text,
                reference=reference,
            )
        )
    return replace(task, turns=tuple(turns))
