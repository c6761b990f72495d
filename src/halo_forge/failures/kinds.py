"""Which answers are wrong, and in which way: the metric that decides, and one kind for each failure.

A kind is told from what can be seen, in this order: nothing was said, it was refused, it says that it does not know, it
repeats itself, it was cut off; then what the metric is about (code, tools, JSON, number, label); then the length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halo_forge.errors import UsageError
from halo_forge.evaluate.call_scores import CALL_METRICS
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.metrics import METRICS, Answer
from halo_forge.evaluate.metrics.json_answers import repaired_json
from halo_forge.evaluate.score import Scored
from halo_forge.failures.records import MetricChoice
from halo_forge.texts.abstention import abstains
from halo_forge.texts.calls.formats import read_calls
from halo_forge.texts.calls.match import calls_match
from halo_forge.texts.json_documents import parse_json
from halo_forge.texts.refusal import refuses
from halo_forge.traits.answers import is_repetitive

STRICTEST_FIRST = (
    "pass_at_1", "call_match", "json_match", "numeric_match", "class_accuracy", "schema_valid", "regex_match",
)  # fmt: skip
SHORT_ANSWER_WORDS = 12
"""Up to this median length a reference is the answer; a longer one is one of many right ones."""
RIGHT_FROM = {"rate": 1.0, "fraction": 0.5}
MAX_NAMED_FIELDS = 2
TOO_LONG, TOO_SHORT, SPARE_WORDS = 2.0, 0.5, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """right [N]: 1 or 0, nan where the metric says nothing about the item. scores [N]: the metric itself."""

    metric: str
    why: MetricChoice
    right_from: float
    scores: np.ndarray
    right: np.ndarray


def deciding_metric(items: Sequence[Item], scored: Scored, named: str | None = None) -> Deciding:
    """The metric by which answers are right or wrong. Raises UsageError for one that cannot decide."""
    chosen: tuple[str, MetricChoice] = (named, "--metric") if named is not None else _chosen(items, scored)
    metric, why = chosen
    usable = [name for name in scored.tuned if _decides(name, scored)]
    if metric not in usable:
        raise UsageError(
            f"{metric} does not say of single answers whether they are right", where="--metric",
            expected=", ".join(usable),
        )  # fmt: skip
    right_from = RIGHT_FROM[scored.kind(metric)]
    scores = scored.tuned[metric]
    right = np.where(np.isnan(scores), np.nan, scores >= right_from)
    return Deciding(metric=metric, why=why, right_from=right_from, scores=scores, right=right)


def _chosen(items: Sequence[Item], scored: Scored) -> tuple[str, MetricChoice]:
    for name in scored.own:
        if _decides(name, scored) and scored.kind(name) == "rate":
            return name, "a scorer of yours"
    for name in STRICTEST_FIRST:
        if name in scored.tuned and np.isfinite(scored.tuned[name]).any():
            return name, "the strictest that applies"
    words = [len(item.reference.split()) for item in items if item.prompt is not None]
    if not words or float(np.median(words)) <= SHORT_ANSWER_WORDS:
        return "exact_match", "short answers"
    return "token_f1", "free text"


def _decides(name: str, scored: Scored) -> bool:
    direction = METRICS[name].direction if name in METRICS else scored.own[name]
    return direction == "higher" and scored.kind(name) in RIGHT_FROM and bool(np.isfinite(scored.tuned[name]).any())


def failure_kind(item: Item, answer: Answer, metric: str) -> str:
    """In which way a wrong answer is wrong, in words that are equal for equal kinds."""
    text, reference = answer.text, item.reference
    if not text.strip():
        return "nothing was said"
    if refuses(text) and not refuses(reference):
        return "refused"
    if abstains(text) and not abstains(reference):
        return "says that it does not know"
    if is_repetitive(text) and not is_repetitive(reference):
        return "repeats itself"
    if not answer.stopped:
        return "cut off"
    if metric == "pass_at_1":
        return "code that fails its tests"
    if metric in CALL_METRICS:
        return _call_kind(item, answer)
    if metric == "numeric_match":
        return "wrong number"
    if metric == "class_accuracy":
        return "wrong label"
    expected = parse_json(reference)
    if expected is not None and isinstance(expected[0], dict | list):
        return _json_kind(text, expected[0])
    return _text_kind(text, reference, metric)


def _call_kind(item: Item, answer: Answer) -> str:
    """Of the last turn: where that is right, an earlier one is not."""
    task = item.task
    if task is None or not task.turns:
        return "wrong tool call"
    said, wanted = read_calls(answer.text, task.schemas, task.format.read), task.turns[-1].wanted
    if said.problem is not None:
        return "a tool call that cannot be read"
    if not wanted:
        return "a tool call where none is wanted" if said.calls else "wrong call in an earlier turn"
    if not said.calls:
        return "no tool call"
    if sorted(call.name for call in said.calls) != sorted(want.call.name for want in wanted):
        return "other tools called"
    return "wrong call in an earlier turn" if calls_match(said.calls, wanted, task.schemas) else "wrong arguments"


def _json_kind(text: str, expected: object) -> str:
    said = parse_json(text)
    if said is None:
        return "JSON with something around it" if parse_json(repaired_json(text)) is not None else "not JSON"
    if not isinstance(said[0], dict) or not isinstance(expected, dict):
        return "another JSON value"
    if said[0].keys() != expected.keys():
        return "other JSON keys"
    wrong = sorted(key for key in expected if json.dumps(said[0][key]) != json.dumps(expected[key]))
    if len(wrong) > MAX_NAMED_FIELDS:
        return "wrong value of several JSON keys"
    return f"wrong value of {' and '.join(wrong)}" if wrong else "equal JSON, written otherwise"


def _text_kind(text: str, reference: str, metric: str) -> str:
    said, expected = len(text.split()), len(reference.split())
    if said > TOO_LONG * expected + SPARE_WORDS:
        return "too long"
    if expected > SPARE_WORDS and said < TOO_SHORT * expected:
        return "too short"
    return f"fails {metric}" if metric not in ("exact_match", "token_f1") else "another text"
