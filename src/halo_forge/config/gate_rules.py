"""What cannot go together in the rules of the gate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches

from halo_forge.config.method_rules import Contradiction
from halo_forge.config.schema import Config, GateRule
from halo_forge.config.snippets import clipped, readable
from halo_forge.metrics import SUITE_METRICS

SLICE = re.compile(r"all|[^\s=]+=.+|each [^\s=]+")
SLICE_KINDS = ("source", "domain", "prompt_length", "answer_length")


def gate_contradictions(config: Config) -> Iterator[Contradiction]:
    gate = config.gate
    asked = [
        (f"rule {number} of gate.rules reads", "gate.rules", rule.metric) for number, rule in _numbered(gate.rules)
    ]
    asked += [("gate.required_metrics asks for", "gate.required_metrics", name) for name in gate.required_metrics]
    for who, key, metric in asked:
        if metric.startswith("schema_valid") and config.evaluation.json_schema is None:
            message = f"{who} {metric}, and evaluation.json_schema names no schema"
            yield (key, "evaluation.json_schema"), message, "evaluation.json_schema: FILE"
        if metric == "regex_match" and config.evaluation.regex is None:
            message = f"{who} regex_match, and evaluation.regex is not given"
            yield (key, "evaluation.regex"), message, "evaluation.regex: EXPRESSION"
        if metric in SUITE_METRICS and not config.evaluation.suites:
            message = f"{who} {metric}, and evaluation.suites names no suite"
            yield (key, "evaluation.suites"), message, "evaluation.suites: [safety-mini]"
    for name, times in Counter(gate.required_metrics).items():
        if times > 1:
            message = f"gate.required_metrics names {readable(clipped(name))} {times} times"
            yield ("gate.required_metrics",), message, None


def gate_rule_problems(config: Config) -> Iterator[tuple[tuple[str | int, ...], str, str | None]]:
    """(place below gate.rules, message, suggestion) of every rule that makes no sense by itself or beside another."""
    rules = config.gate.rules
    for number, rule in _numbered(rules):
        for leaf, message, suggestion in _rule_problems(rule):
            yield (number - 1, leaf), f"rule {number} of gate.rules {message}", suggestion
    for first, one in _numbered(rules):
        for second, other in _numbered(rules):
            same = first != second and (one.metric, one.slice) == (other.metric, other.slice)
            if same and one.min is not None and other.max is not None and one.min > other.max:
                message = (
                    f"rules {min(first, second)} and {max(first, second)} of gate.rules can never both hold: "
                    f"{one.metric} at least {one.min:g} and at most {other.max:g}"
                )
                yield (max(first, second) - 1,), message, None


def _numbered(rules: list[GateRule]) -> list[tuple[int, GateRule]]:
    return list(enumerate(rules, start=1))


def _rule_problems(rule: GateRule) -> Iterator[tuple[str, str, str | None]]:
    """(key, message, suggestion)"""
    if rule.min is not None and rule.max is not None and rule.min > rule.max:
        yield "min", f"can never hold: min {rule.min:g} is above max {rule.max:g}", None
    if rule.min_delta is not None and rule.max_regression is not None:
        message = "has both min_delta and max_regression, which are two limits on one change"
        yield "max_regression", message, "keep one of the two"
    if rule.against == "released" and rule.min_delta is None and rule.max_regression is None:
        message = "compares with the released version, and says by how much in neither of its limits"
        yield "against", message, "add min_delta or max_regression, or remove against"
    if not SLICE.fullmatch(rule.slice):
        kind = rule.slice.removeprefix("each").strip(" =")
        message = f"names no slice: {readable(clipped(rule.slice))} is not all, KIND=NAME or each KIND"
        yield "slice", message, f"slice: each {closest_kind(kind)}"


def closest_kind(kind: str) -> str:
    return next(iter(get_close_matches(kind, SLICE_KINDS, n=1)), "source")
