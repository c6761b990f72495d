"""What one model did in one benchmark: a score per item and number, or why there is none. From lm-eval's samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halo_forge.artifacts import Status
from halo_forge.evaluate.bench.code_tests import CodeTest
from halo_forge.evaluate.bench.engine import CODE_FILTER

Number = tuple[str, str, str]
"""(lm-eval task, metric, filter). Subjects of a group are one task here."""
INVALID = "[invalid]"
"""What lm-eval's filters give for an answer that they find nothing in."""


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """answers: texts, or [log-likelihood, is greedy] of each choice."""

    task: str
    id: str
    prompt: str
    target: str
    answers: list[Any]
    scores: dict[str, float]


@dataclass(slots=True)
class Outcome:
    """scores: number -> item -> score. aggregates: numbers that are no mean over items, as lm-eval has them. problems:
    number, or None for all of them, -> (status, reason). higher: whether more of a metric is better."""

    scores: dict[Number, dict[str, float]] = field(default_factory=dict)
    aggregates: dict[Number, float] = field(default_factory=dict)
    problems: dict[Number | None, tuple[Status, str]] = field(default_factory=dict)
    higher: dict[str, bool] = field(default_factory=dict)
    items: list[ItemAnswer] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    num_items: int = 0
    num_total: int = 0
    num_fewshot: int = 0
    time_s: float = 0.0

    def problem(self, number: Number) -> tuple[Status, str] | None:
        return self.problems.get(None) or self.problems.get(number)


def failed(reason: str) -> Outcome:
    return Outcome(problems={None: ("failed", reason)})


def outcome_of(results: Mapping[str, Any], tests: CodeTest | None, why_no_tests: str) -> Outcome:
    """lm-eval's results of one benchmark, looked at item by item. What answers nothing has no score: empty or
    unreadable answers throughout are a failure, and so is a likelihood that is not a number."""
    outcome = Outcome()
    for task, samples in results["samples"].items():
        group = _group_of(task, results)
        outcome.versions[task] = str(results["versions"].get(task, ""))
        counts = results["n-samples"][task]
        outcome.num_items += counts["effective"]
        outcome.num_total += counts["original"]
        outcome.num_fewshot = max(outcome.num_fewshot, int(results["n-shot"].get(task) or 0))
        outcome.higher |= {
            name: value is not False for name, value in (results["higher_is_better"].get(task) or {}).items()
        }
        for sample in samples:
            _take_sample(outcome, task, group, sample, tests, why_no_tests)
        _take_aggregates(outcome, group, results["results"][task], is_whole=group == task)
    outcome.problems |= _what_broke(results["samples"], results)
    return outcome


def _group_of(task: str, results: Mapping[str, Any]) -> str:
    """The outermost group that a task was asked for as a part of."""
    name, parents = task, results.get("group_subtasks") or {}
    while True:
        parent = next((group for group, members in parents.items() if name in members and group != name), None)
        if parent is None:
            return name
        name = parent


def _take_sample(
    outcome: Outcome, task: str, group: str, sample: Mapping[str, Any], tests: CodeTest | None, why_no_tests: str
) -> None:
    item = f"{task}:{sample['doc_id']}"
    scores: dict[str, float] = {}
    for metric in sample["metrics"]:
        value = sample[metric]
        if metric != "bypass" and isinstance(value, int | float) and not isinstance(value, complex):
            scores[metric] = float(value)
    if sample["filter"] == CODE_FILTER:
        if tests is None:
            outcome.problems[(group, "pass@1", CODE_FILTER)] = ("not_measured", why_no_tests)
        else:
            scores["pass@1"] = _share_passed(sample, tests)
        outcome.scores.setdefault((group, "pass@1", CODE_FILTER), {})
        outcome.higher["pass@1"] = True
    for metric, value in scores.items():
        outcome.scores.setdefault((group, metric, sample["filter"]), {})[item] = value
    prompt = sample["arguments"][0][0] if sample["arguments"] else ""
    answers = [answer for own in sample["resps"] for answer in own]
    named = {
        metric if sample["filter"] == "none" else f"{metric},{sample['filter']}": v for metric, v in scores.items()
    }
    outcome.items.append(ItemAnswer(task, item, str(prompt), str(sample["target"]), answers, named))


def _share_passed(sample: Mapping[str, Any], tests: CodeTest) -> float:
    row = sample["doc"]
    programs = [program for own in sample["filtered_resps"] for program in own]
    passed = [tests(program, row["test"], row["entry_point"], row["prompt"]) for program in programs]
    return sum(passed) / max(1, len(passed))


def _take_aggregates(outcome: Outcome, group: str, found: Mapping[str, Any], *, is_whole: bool) -> None:
    """lm-eval's own value, where it is not the mean of the items' scores; of a group's parts there is none."""
    for key, value in found.items():
        metric, _, filter_name = key.partition(",")
        number = (group, metric, filter_name)
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float) or metric == "bypass":
            continue
        own = outcome.scores.get(number)
        if own and is_whole and not math.isclose(sum(own.values()) / len(own), value, abs_tol=1e-9):
            del outcome.scores[number]
            own = None
        if not own and is_whole:
            outcome.aggregates[number] = float(value)


def _what_broke(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], results: Mapping[str, Any]
) -> dict[Number | None, tuple[Status, str]]:
    everything = [sample for own in samples.values() for sample in own]
    if not everything:
        return {None: ("failed", "lm-eval gave no items")}
    answers = [answer for sample in everything for own in sample["resps"] for answer in own]
    if all(isinstance(answer, str) for answer in answers):
        if not any(answer.strip() for answer in answers):
            return {None: ("failed", f"all {len(answers)} answers are empty")}
        return dict(_unreadable(samples, results))
    sums = [float(answer[0] if isinstance(answer, tuple | list) else answer) for answer in answers]
    bad = sum(not math.isfinite(value) for value in sums)
    if bad:
        return {None: ("failed", f"{bad} of {len(sums)} likelihoods are not finite numbers")}
    several = [sample for sample in everything if len(sample["resps"]) > 1]
    if several and all(len({str(own[0]) for own in sample["resps"]}) == 1 for sample in several):
        return {None: ("failed", f"all choices are equally likely in all {len(several)} items")}
    return {}


def _unreadable(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], results: Mapping[str, Any]
) -> Iterator[tuple[Number | None, tuple[Status, str]]]:
    """Numbers whose filter finds an answer in not one of the texts."""
    for task, own in samples.items():
        for name in {sample["filter"] for sample in own}:
            extracted = [value for sample in own if sample["filter"] == name for value in sample["filtered_resps"]]
            if not extracted or any(value != INVALID for value in extracted):
                continue
            for metric in {metric for sample in own if sample["filter"] == name for metric in sample["metrics"]}:
                reason = f"`{name}` finds an answer in none of the {len(extracted)} texts"
                yield (_group_of(task, results), metric, name), ("failed", reason)
