"""Which rules make sense at all: known before anything is trained, without a report."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from halo_forge.config.schema import GateRule, GateSection
from halo_forge.errors import ConfigError, ConfigProblem
from halo_forge.gate.benchmarks import CHANCE, benchmark_of
from halo_forge.metrics import METRIC_FACTS
from halo_forge.suites.metrics import SUITE_METRICS

_FACTS = METRIC_FACTS | SUITE_METRICS
SHARES = frozenset(name for name, fact in _FACTS.items() if fact.is_share)
"""Metrics from 0 to 1."""
UNDIRECTED = frozenset(name for name, fact in _FACTS.items() if fact.direction == "none")
"""Metrics of which neither more nor less is better."""
KNOWN_METRICS = frozenset(_FACTS)
"""Every metric the evaluation can report of itself; a user's scorers add theirs."""
BENCHMARKS = "bench."
"""How metrics of `bench run` begin, for any task by name."""

ELSEWHERE = frozenset({"judge_win_rate"})
"""Metrics that stand in a file of their own beside the report: the judge's, from 0 to 1."""


def check_rules(rules: Sequence[GateRule], also: Collection[str] = ()) -> list[str]:
    """What is wrong with the rules, one sentence each, in their order; empty when they can be judged. also: metrics
    beside our own, those of evaluation.scorers."""
    return [problem for number, rule in enumerate(rules, start=1) for problem in _rule_problems(number, rule, also)]


def _rule_problems(number: int, rule: GateRule, also: Collection[str]) -> list[str]:
    place = f"rule {number} of gate.rules"
    if not is_known(rule.metric, also):
        return [f"{place}: {unknown_metric(rule.metric, KNOWN_METRICS.union(also))}"]
    problems = []
    for name in ("min_delta", "max_regression"):
        if rule.metric in UNDIRECTED and getattr(rule, name) is not None:
            problems.append(f"{place}: {rule.metric} has no better direction, so {name} says nothing; use min and max")
    if rule.metric in SHARES | ELSEWHERE:
        limits = (
            ("min", rule.min, 0.0), ("max", rule.max, 0.0), ("min_delta", rule.min_delta, -1.0),
            ("max_regression", rule.max_regression, 0.0),
        )  # fmt: skip
        for name, limit, lowest in limits:
            if limit is not None and not lowest <= limit <= 1:
                hint = f"; did you mean {limit / 100:g}?" if 1 < limit <= 100 else ""
                problems.append(f"{place}: {rule.metric} is a share from 0 to 1, and {name} is {limit:g}{hint}")
    return problems


def is_known(metric: str, also: Collection[str] = ()) -> bool:
    """Whether a report could have it: a metric of the evaluation or of the user, or one that begins as those of
    benchmarks do."""
    known = metric in KNOWN_METRICS | ELSEWHERE or metric in also
    return known or metric.startswith(BENCHMARKS) or benchmark_of(metric) is not None


def unknown_metric(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted({*known, *CHANCE, *ELSEWHERE}), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"
    return f"there is no metric {name!r}{hint}"


def require_known_metrics(section: GateSection, also: Collection[str] = ()) -> None:
    """ConfigError with every problem of the section's rules, for the start of a run."""
    problems = [ConfigProblem(message=text, where="gate.rules") for text in check_rules(section.rules, also)]
    for name in section.required_metrics:
        if not is_known(name, also):
            message = unknown_metric(name, KNOWN_METRICS.union(also))
            problems.append(ConfigProblem(message=message, where="gate.required_metrics"))
    if problems:
        raise ConfigError(problems)
