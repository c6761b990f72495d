"""Which rules make sense at all: known before anything is trained, without a report."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from halo_forge.config.schema import GateRule, GateSection
from halo_forge.errors import ConfigError, ConfigProblem
from halo_forge.gate.benchmarks import CHANCE, benchmark_of
from halo_forge.metrics import BENCH_PREFIX, JUDGED_METRIC, METRIC_FACTS

SHARES = frozenset(name for name, fact in METRIC_FACTS.items() if fact.is_share)
"""Metrics from 0 to 1."""
UNDIRECTED = frozenset(name for name, fact in METRIC_FACTS.items() if fact.direction == "none")
"""Metrics of which neither more nor less is better."""
KNOWN_METRICS = frozenset(METRIC_FACTS)
"""Every metric the evaluation can report of itself; a user's scorers add theirs."""


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
    if rule.metric in SHARES or rule.metric == JUDGED_METRIC:
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
    """Whether a report could have it: a metric of the evaluation, the judge or the user, or of a benchmark, which may
    be any task of lm-eval."""
    return metric in KNOWN_METRICS or metric == JUDGED_METRIC or metric in also or metric.startswith(BENCH_PREFIX)


def unknown_metric(name: str, known: Collection[str]) -> str:
    benchmark = BENCH_PREFIX + name.removeprefix("benchmark.")
    candidates = sorted({*known, *(BENCH_PREFIX + other for other in CHANCE), JUDGED_METRIC})
    close = [benchmark] if benchmark_of(benchmark) else difflib.get_close_matches(name, candidates, n=1)
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
