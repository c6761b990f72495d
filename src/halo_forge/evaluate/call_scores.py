"""The metrics of tool calls: every answer read by the model's own format, held against what the row wants.

    call_match            rows that want calls: in every turn that calls, names and arguments are the wanted ones
    call_exact            the same with JSON values that are equal character by character
    call_valid            rows that want calls: in every such turn there are calls, all readable, of offered tools, and
                          their arguments fit the tools' JSON Schemas
    irrelevance_accuracy  rows that offer tools and want no call: no turn calls, or tries to
    multi_turn_match      rows with several turns of which one calls: every turn is right, those without a call too

Axes: N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from halo_forge.evaluate.call_turns import CallTask, CallTurn, EarlierTurn
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.metrics import Answer
from halo_forge.texts.calls.arguments import call_problem
from halo_forge.texts.calls.formats import read_calls
from halo_forge.texts.calls.match import calls_match
from halo_forge.texts.calls.record import Said

FloatArray = npt.NDArray[np.float64]
CALL_METRICS = ("call_match", "call_exact", "call_valid", "irrelevance_accuracy", "multi_turn_match")
_WHY_NOT = {
    "call_match": "no answered row wants a tool call",
    "call_exact": "no answered row wants a tool call",
    "call_valid": "no answered row offers tools and wants a call",
    "irrelevance_accuracy": "no answered row offers tools and wants no call",
    "multi_turn_match": "no answered row has several turns and a tool call",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallScores:
    """base, tuned: metric -> score per item [N], nan where it says nothing."""

    base: dict[str, FloatArray] = field(default_factory=dict)
    tuned: dict[str, FloatArray] = field(default_factory=dict)
    inapplicable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Answers = Sequence[Answer | None]


def score_calls(items: Sequence[Item], base: tuple[Answers, Answers], tuned: tuple[Answers, Answers]) -> CallScores:
    """base, tuned: answers to the items [N], and to the earlier turns that their tasks name."""
    tasks = {index: item.task for index, item in enumerate(items) if item.task is not None and item.prompt is not None}
    sides = []
    for own, earlier in (base, tuned):
        scores = {name: np.full(len(items), np.nan) for name in CALL_METRICS}
        for index, task in tasks.items():
            for name, score in _scores(task, own[index], earlier).items():
                scores[name][index] = score
        sides.append(scores)
    silent = [name for name in CALL_METRICS if np.isnan(sides[0][name]).all() or np.isnan(sides[1][name]).all()]
    base_scores, tuned_scores = (
        {name: values for name, values in scores.items() if name not in silent} for scores in sides
    )
    formats = dict.fromkeys(task.format.name for task in tasks.values())
    return CallScores(
        base=base_scores,
        tuned=tuned_scores,
        inapplicable={name: _WHY_NOT[name] for name in silent},
        notes=tuple(f"tool calls are read in the model's own format: {name}" for name in formats),
    )


def turn_records(turns: Sequence[EarlierTurn], base: Answers, tuned: Answers) -> dict[int, dict[str, Any]]:
    """Place of each earlier turn that both answered -> its line in eval/answers.jsonl."""
    return {
        place: {
            "message": turn.message, "prompt": turn.prompt_text, "reference": turn.reference,
            "base": said.text if said else None, "tuned": says.text if says else None,
        }
        for place, (turn, said, says) in enumerate(zip(turns, base, tuned, strict=True))
    }  # fmt: skip


def _scores(task: CallTask, own: Answer | None, earlier: Answers) -> dict[str, float]:
    """Scores of one row; none where a turn has no answer."""
    said: list[tuple[CallTurn, Said]] = []
    for turn in task.turns:
        answer = own if turn.place is None else earlier[turn.place]
        if answer is None:
            return {}
        said.append((turn, read_calls(answer.text, task.schemas, task.format.read)))
    calling = [(turn, says) for turn, says in said if turn.wanted]
    scores: dict[str, float] = {}
    if not calling:
        if task.schemas:
            scores["irrelevance_accuracy"] = float(not any(says.attempts for _, says in said))
        return scores
    scores["call_match"] = float(all(_right(turn, says, task) for turn, says in calling))
    scores["call_exact"] = float(all(_right(turn, says, task, exact=True) for turn, says in calling))
    if task.schemas:
        scores["call_valid"] = float(all(_valid(says, task) for _, says in calling))
    if len(said) > 1:
        quiet = not any(says.attempts for turn, says in said if not turn.wanted)
        scores["multi_turn_match"] = float(bool(scores["call_match"]) and quiet)
    return scores


def _right(turn: CallTurn, said: Said, task: CallTask, *, exact: bool = False) -> bool:
    return said.problem is None and calls_match(said.calls, turn.wanted, task.schemas, exact=exact)


def _valid(said: Said, task: CallTask) -> bool:
    if said.problem is not None or not said.calls:
        return False
    return all(call_problem(call, task.schemas) is None for call in said.calls)
