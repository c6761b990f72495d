"""The tool calls of one conversation: held against the tools that the row offers, and what kind of row it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halo_forge.chat.records import Conversation
from halo_forge.texts.calls.arguments import call_problem
from halo_forge.texts.calls.record import Call
from halo_forge.texts.calls.schemas import name_of, parameters_of

OFFERS, CALLS, CALLS_SEVERAL, CALLS_AGAIN = 1, 2, 4, 8
"""Bits of `call_traits`: tools are offered; some turn calls; some turn calls several tools; several turns call."""


def call_findings(conversation: Conversation) -> dict[str, str]:
    """Code -> the first place of every kind of call that does not fit its tool. Turns that are never trained (weight 0)
    may be as wrong as they like: they may be there to be corrected."""
    found: dict[str, str] = {}
    schemas = {name_of(tool): parameters_of(tool) for tool in conversation.tools}
    for number, message in enumerate(conversation.messages, start=1):
        if message.role != "assistant" or message.weight == 0:
            continue
        for call in message.tool_calls:
            if not schemas:
                found.setdefault("calls_without_tools", f"message {number}: {call.name[:60]}")
            elif problem := call_problem(Call(call.name, call.arguments), schemas):
                found.setdefault(problem[0], f"message {number}: {problem[1]}")
    return found


def call_traits(conversation: Conversation) -> int:
    """What the row does with tools, as bits."""
    counts = [len(message.tool_calls) for message in conversation.messages if message.role == "assistant"]
    num_calling = sum(count > 0 for count in counts)
    return (
        OFFERS * bool(conversation.tools)
        | CALLS * (num_calling > 0)
        | CALLS_SEVERAL * any(count > 1 for count in counts)
        | CALLS_AGAIN * (num_calling > 1)
    )


def strings_in(value: Any) -> Iterator[str]:
    """Every string in the arguments of a call."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)


def calls_told(traits: NDArray[np.integer]) -> Sequence[str]:
    """One sentence on what the rows do with tools; none where no row has to do with any.

    traits  [num_rows] of `call_traits`
    """
    concerned = traits[traits > 0]
    if not len(concerned):
        return ()
    calling = concerned[(concerned & CALLS) > 0]
    counts = [
        (int(((calling & (CALLS_SEVERAL | CALLS_AGAIN)) == 0).sum()), "call one tool"),
        (int(((calling & CALLS_SEVERAL) > 0).sum()), "call several at once"),
        (int(((calling & CALLS_AGAIN) > 0).sum()), "call over several turns"),
        (len(concerned) - len(calling), "are offered tools and call none"),
    ]
    told = ", ".join(f"{count} {words}" for count, words in counts)
    return (f"tools: of {len(concerned)} rows with tools {told}",)
