"""One limit and how far a measurement is on its right side.

With `evidence: interval` the whole confidence interval must be on one side of the limit; an interval across it decides
nothing. Everything else in the gate is words and bookkeeping around `judge_margin`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from halo_forge.artifacts import Measurement, Verdict
from halo_forge.config.schema import GateRule

BoundKind = Literal["min", "max", "min_delta"]


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit of a rule; a rule with several is judged bound by bound."""

    metric: str
    kind: BoundKind
    limit: float


@dataclass(frozen=True, slots=True)
class Margin:
    """How far value, and the ends of its interval, are on the right side of the limit; the ends None without one."""

    value: float
    low: float | None
    high: float | None


def bounds_of(rule: GateRule) -> Iterator[Bound]:
    if rule.min is not None:
        yield Bound(rule.metric, "min", rule.min)
    if rule.max is not None:
        yield Bound(rule.metric, "max", rule.max)
    if rule.min_delta is not None:
        yield Bound(rule.metric, "min_delta", rule.min_delta)


def margin_of(bound: Bound, measured: Measurement) -> Margin:
    """Margin of a finite measurement. A delta counts in the metric's good direction: lower perplexity is a gain."""
    value, low, high = gain_of(measured) if bound.kind == "min_delta" else _numbers(measured)
    if bound.kind == "max":
        return Margin(bound.limit - value, _difference(bound.limit, high), _difference(bound.limit, low))
    return Margin(value - bound.limit, _difference(low, bound.limit), _difference(high, bound.limit))


def gain_of(delta: Measurement) -> tuple[float, float | None, float | None]:
    """(gain, low, high): a change of a lower-is-better metric, turned around."""
    value, low, high = _numbers(delta)
    return (-value, _negated(high), _negated(low)) if delta.direction == "lower" else (value, low, high)


def _numbers(measured: Measurement) -> tuple[float, float | None, float | None]:
    if measured.value is None:
        raise ValueError(f"{measured.metric} has no value to judge")
    return measured.value, measured.low, measured.high


def _negated(value: float | None) -> float | None:
    return None if value is None else -value


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def judge_margin(margin: Margin, evidence: Literal["interval", "point"]) -> Verdict:
    """A margin of exactly 0 is on the right side: at least means at least."""
    if evidence == "point":
        return "PASS" if margin.value >= 0 else "FAIL"
    if margin.low is not None and margin.low >= 0:
        return "PASS"
    if margin.high is not None and margin.high < 0:
        return "FAIL"
    return "INCONCLUSIVE"
