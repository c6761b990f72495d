"""One limit and how far a measurement is on its right side.

With `evidence: interval` the whole confidence interval must be on one side of the limit; an interval across it decides
nothing. A regression budget reads the interval in either case: its bad end within the budget is a PASS, a measured
loss beyond the budget a FAIL. Everything else in the gate is words and bookkeeping around `judge_margin`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from halo_forge.artifacts import Measurement, Verdict
from halo_forge.config.schema import GateRule

BoundKind = Literal["min", "max", "min_delta", "max_regression"]
Reference = Literal["base", "released"]
EvidenceKind = Literal["interval", "point"]


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit of a rule; a rule with several is judged bound by bound. `slice` names one slice or `each KIND`."""

    metric: str
    kind: BoundKind
    limit: float
    slice: str = "all"
    against: Reference = "base"
    required: bool = True

    @property
    def is_change(self) -> bool:
        return self.kind in ("min_delta", "max_regression")

    @property
    def least_gain(self) -> float:
        """The smallest gain that a bound on a change allows; below 0 it is a loss."""
        return self.limit if self.kind == "min_delta" else 0.0 - self.limit


@dataclass(frozen=True, slots=True)
class Margin:
    """How far value, and the ends of its interval, are on the right side of the limit; the ends None without one."""

    value: float
    low: float | None
    high: float | None


def bounds_of(rule: GateRule) -> Iterator[Bound]:
    kinds: tuple[BoundKind, ...] = ("min", "max", "min_delta", "max_regression")
    for kind in kinds:
        limit: float | None = getattr(rule, kind)
        if limit is not None:
            against: Reference = rule.against if kind in ("min_delta", "max_regression") else "base"
            yield Bound(rule.metric, kind, limit, rule.slice, against, rule.required)


def margin_of(bound: Bound, measured: Measurement) -> Margin:
    """Margin of a finite measurement. A delta counts in the metric's good direction: lower perplexity is a gain."""
    value, low, high = gain_of(measured) if bound.is_change else _numbers(measured)
    if bound.kind == "max":
        return Margin(bound.limit - value, _difference(bound.limit, high), _difference(bound.limit, low))
    limit = bound.least_gain if bound.is_change else bound.limit
    return Margin(value - limit, _difference(low, limit), _difference(high, limit))


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


def judge_margin(margin: Margin, evidence: EvidenceKind, *, is_budget: bool = False) -> Verdict:
    """A margin of exactly 0 is on the right side: at least means at least. is_budget: a regression budget, which is
    spent as soon as the measured value is beyond it."""
    if is_budget:
        if margin.value < 0:
            return "FAIL"
        return "PASS" if margin.low is not None and margin.low >= 0 else "INCONCLUSIVE"
    if evidence == "point":
        return "PASS" if margin.value >= 0 else "FAIL"
    if margin.low is not None and margin.low >= 0:
        return "PASS"
    if margin.high is not None and margin.high < 0:
        return "FAIL"
    return "INCONCLUSIVE"


def deciding_margin(margin: Margin, verdict: Verdict, evidence: EvidenceKind, *, is_budget: bool) -> float | None:
    """The number that made the verdict: at least 0 for a PASS, below 0 otherwise."""
    if verdict == "FAIL" and not is_budget and evidence == "interval":
        return margin.high
    if verdict == "FAIL" or (evidence == "point" and not is_budget):
        return margin.value
    return margin.low
