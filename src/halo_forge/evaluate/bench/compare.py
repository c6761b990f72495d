"""Outcomes of one or two models -> measurements and comparisons under the names that gate rules know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from halo_forge.artifacts import Comparison, Direction, Measurement, Status
from halo_forge.evaluate.bench.outcome import Number, Outcome
from halo_forge.evaluate.bench.tasks import Benchmark
from halo_forge.evaluate.compare import compare_items, kind_of
from halo_forge.evaluate.statistics import Resampling
from halo_forge.metrics import BENCH_PREFIX
from halo_forge.runs import sha256_json


def compare_outcomes(
    benchmark: Benchmark, base: Outcome, tuned: Outcome, resampling: Resampling, *, is_subsampled: bool
) -> tuple[Comparison, ...]:
    """The headline first, then every other number. One that a model has no value of keeps its place, with the reason;
    what the other model did is still told."""
    rows = []
    for number, name in _names(benchmark, base, tuned).items():
        problem = tuned.problem(number) or base.problem(number)
        if problem is None and number in base.scores and number in tuned.scores:
            rows.append(_compared(name, number, base, tuned, resampling, is_subsampled))
            continue
        sides = [measured(name, number, side, resampling, is_subsampled=is_subsampled) for side in (base, tuned)]
        status, reason = problem or ("measured", "")
        delta = sides[1].model_copy(update={"value": None, "low": None, "high": None, "standard_error": None})
        if problem is None and None not in (sides[0].value, sides[1].value):
            delta = delta.model_copy(update={"value": sides[1].value - sides[0].value})  # type: ignore[operator]
        else:
            delta = delta.model_copy(update={"status": status if problem else "failed", "note": reason or None})
        rows.append(Comparison(metric=name, base=sides[0], tuned=sides[1], delta=delta))
    return tuple(rows)


def measure_outcome(
    benchmark: Benchmark, outcome: Outcome, resampling: Resampling, *, is_subsampled: bool
) -> tuple[Measurement, ...]:
    return tuple(
        measured(name, number, outcome, resampling, is_subsampled=is_subsampled)
        for number, name in _names(benchmark, outcome, outcome).items()
    )


def measured(
    name: str, number: Number, outcome: Outcome, resampling: Resampling, *, is_subsampled: bool
) -> Measurement:
    """One number of one model."""
    problem = outcome.problem(number)
    direction = _direction(number, outcome)
    if problem is not None:
        return _without_value(name, direction, problem, outcome.num_items, is_subsampled)
    if number in outcome.scores:
        return _compared(name, number, outcome, outcome, resampling, is_subsampled).tuned
    if number in outcome.aggregates:
        return Measurement(
            metric=name, value=outcome.aggregates[number], n=outcome.num_items, direction=direction,
            note="lm-eval's own aggregate of all items: no interval", subsampled=is_subsampled,
        )  # fmt: skip
    return _without_value(name, direction, ("failed", "lm-eval gave no such number"), 0, is_subsampled)


def _without_value(
    name: str, direction: Direction, problem: tuple[Status, str], n: int, is_subsampled: bool
) -> Measurement:
    status, reason = problem
    return Measurement(
        metric=name, value=None, n=n, status=status, direction=direction, note=reason, subsampled=is_subsampled
    )  # fmt: skip


def _compared(
    name: str, number: Number, base: Outcome, tuned: Outcome, resampling: Resampling, is_subsampled: bool
) -> Comparison:
    items = sorted(base.scores[number].keys() | tuned.scores[number].keys())
    sides = [
        np.array([outcome.scores[number].get(item, np.nan) for item in items], dtype=np.float64)
        for outcome in (base, tuned)
    ]
    return compare_items(
        name, _direction(number, tuned), kind_of(*sides), sides[0], sides[1], {}, resampling,
        is_subsampled=is_subsampled,
    )[0]  # fmt: skip


def _direction(number: Number, outcome: Outcome) -> Direction:
    return "higher" if outcome.higher.get(number[1], True) else "lower"


def _names(benchmark: Benchmark, base: Outcome, tuned: Outcome) -> Mapping[Number, str]:
    """Every number there is -> its metric, the headline first. Where everything broke there is the headline alone."""
    numbers = dict.fromkeys([*tuned.scores, *tuned.aggregates, *base.scores, *base.aggregates])
    headline = _headline(benchmark, list(numbers))
    names = {headline: f"{BENCH_PREFIX}{benchmark.name}"}
    for number in numbers:
        if number not in names:
            task, metric, filter_name = number
            parts = [task if task != benchmark.name else "", metric, filter_name if filter_name != "none" else ""]
            names[number] = ".".join([f"{BENCH_PREFIX}{benchmark.name}", *(part for part in parts if part)])
    return names


def _headline(benchmark: Benchmark, numbers: list[Number]) -> Number:
    task, metric, filter_name = benchmark.headline
    if not metric:
        return numbers[0] if numbers else (benchmark.tasks[0], "score", "none")
    return task or benchmark.tasks[0], metric, filter_name


def score_lines(benchmarks: Sequence[Benchmark], outcomes: Mapping[str, Outcome], weights_sha256: str) -> str:
    """What one model scored on each item, in the format of item_scores.py, so that the next version can be compared
    with it in pairs. A set is called as its headline; its hash is over the prompts, so another number of examples,
    another limit or other rows are another set. A number that broke has no scores."""
    sets = {f"{BENCH_PREFIX}{benchmark.name}": _sha256_of_items(outcomes[benchmark.name]) for benchmark in benchmarks}
    header = {"schema_version": 1, "weights_sha256": weights_sha256, "sets": sets}
    lines = [line for benchmark in benchmarks for line in _score_lines(benchmark, outcomes[benchmark.name])]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in (header, *lines))


def _score_lines(benchmark: Benchmark, outcome: Outcome) -> Iterator[dict[str, Any]]:
    scores: dict[str, dict[str, float]] = {}
    for number, name in _names(benchmark, outcome, outcome).items():
        of_items = outcome.scores.get(number, {}) if outcome.problem(number) is None else {}
        for item, score in of_items.items():
            if np.isfinite(score):
                scores.setdefault(item, {})[name] = score
    for item, own in sorted(scores.items()):
        yield {"set": f"{BENCH_PREFIX}{benchmark.name}", "id": item, "slices": {}, "scores": own}


def _sha256_of_items(outcome: Outcome) -> str:
    return sha256_json([outcome.versions, sorted({(item.id, item.prompt, item.target) for item in outcome.items})])
