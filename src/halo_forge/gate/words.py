"""The gate in words: rules, evidence, reasons with their numbers, and what would have turned them."""

from __future__ import annotations

import math

from halo_forge.artifacts import Cause, Comparison, Measurement, RuleResult, Verdict
from halo_forge.config.schema import GateSection
from halo_forge.gate.actions import Action
from halo_forge.gate.bounds import Bound, EvidenceKind, Margin, gain_of

MAX_ITEMS_WORTH_NAMING = 100_000


# ------------------------------------------------------------------------------------------------ rules


def subject(bound: Bound) -> str:
    """The metric, with its slice: `exact_match (source=faq)`."""
    return bound.metric if bound.slice == "all" else f"{bound.metric} ({bound.slice})"


def whose(bound: Bound) -> str:
    return "the released version's" if bound.against == "released" else "the base model's"


def rule_in_words(bound: Bound) -> str:
    name, limit = subject(bound), bound.limit
    if bound.kind == "min":
        return f"{name} is at least {number(limit)}"
    if bound.kind == "max":
        return f"{name} is at most {number(limit)}"
    if bound.kind == "max_regression":
        return f"even the bad end of the interval of {name} is worse than {whose(bound)} by at most {number(limit)}"
    if limit == 0:
        return f"{name} is not worse than {whose(bound)}"
    if limit < 0:
        return f"{name} is worse than {whose(bound)} by at most {number(-limit)}"
    return f"{name} is better than {whose(bound)} by at least {number(limit)}"


def is_measured(metric: str, min_items: int) -> str:
    return f"{metric} is measured on at least {min_items} items"


def no_rules() -> RuleResult:
    return RuleResult(
        rule="gate.rules holds at least one rule",
        metric="none",
        verdict="INCONCLUSIVE",
        reason="there is no rule, so nothing was shown",
        evidence="no rule",
        next_action="give gate.rules, for instance {metric: perplexity, min_delta: 0}",
    )


# ------------------------------------------------------------------------------------------------ evidence


def missing(metric: str, measured: Measurement | None) -> str:
    why = f": {measured.note}" if measured is not None and measured.note else ""
    if measured is not None and measured.status == "failed":
        return f"measuring {metric} failed{why}"
    return f"{metric} was not measured{why}"


def nothing_to_lose(bound: Bound) -> str:
    return (
        f"{subject(bound)} is 0 before and after: where nothing can be lost, no loss shows nothing, and a benchmark "
        "that broke looks the same"
    )


def evidence_missing(cause: Cause) -> str:
    return "no released version" if cause == "no_release" else "not in the report"


def evidence(row: Comparison, bound: Bound, confidence: float) -> str:
    """The numbers alone: `0.83 (95 % interval 0.72 to 0.91, n = 60)`."""
    if not bound.is_change:
        return _with_interval(row.tuned, confidence)
    before = "released" if bound.against == "released" else "base"
    change = _with_interval(row.delta, confidence)
    return f"{before} {_value(row.base)}, tuned {_value(row.tuned)}, change {change}"


def reason(bound: Bound, row: Comparison, verdict: Verdict, how: EvidenceKind, confidence: float) -> str:
    """The judgement with its numbers, and what would have made it another one."""
    limit = bound.limit
    if bound.is_change:
        since = " since the released version" if bound.against == "released" else ""
        start = f"{subject(bound)} goes from {_value(row.base)} to {_value(row.tuned)}{since},"
        how = "interval" if bound.kind == "max_regression" else how
        said = f"{_gain(row.delta, bound.least_gain, how, confidence)}; the rule asks for {_gain_asked(bound)}"
    else:
        start = f"{subject(bound)} {_with_interval(row.tuned, confidence, beside=limit)}"
        said = {
            ("min", "PASS"): f"is at least {number(limit)}",
            ("min", "FAIL"): f"is below {number(limit)}",
            ("max", "PASS"): f"is at most {number(limit)}",
            ("max", "FAIL"): f"is above {number(limit)}",
        }.get((bound.kind, verdict), f"may be on either side of {number(limit)}")
    return f"{start} {said}. {_otherwise(bound, verdict, how)}"


def _otherwise(bound: Bound, verdict: Verdict, how: EvidenceKind) -> str:
    if bound.kind == "max_regression":
        return _otherwise_budget(bound, verdict)
    what = "gain" if bound.is_change else "value"
    wrong, right = ("above", "at or below") if bound.kind == "max" else ("below", "at or above")
    limit = number(bound.limit)
    if how == "point":
        other = f"It would have failed with a {what} {wrong} {limit}"
        return f"{other}." if verdict == "PASS" else f"It would have passed with a {what} {right} {limit}."
    if verdict == "PASS":
        return (
            f"It would have failed with the whole interval {wrong} {limit}, and decided nothing with the interval "
            "across it."
        )
    if verdict == "FAIL":
        return f"It would have passed with the whole interval {right} {limit}."
    return f"It would have passed with the whole interval {right} {limit}, and failed with all of it {wrong}."


def _otherwise_budget(bound: Bound, verdict: Verdict) -> str:
    limit = number(bound.limit)
    if verdict == "PASS":
        return (
            f"It would have failed with a measured loss above {limit}, and decided nothing with the bad end of the "
            "interval beyond it."
        )
    passed = f"It would have passed with the bad end of the interval at a loss of at most {limit}"
    return f"{passed}." if verdict == "FAIL" else f"{passed}, and failed with a measured loss above it."


def _gain_asked(bound: Bound) -> str:
    limit = bound.least_gain
    if bound.kind == "max_regression":
        return f"a loss of at most {number(bound.limit)} at the bad end of the interval"
    if limit == 0:
        return "no loss"
    return f"a gain of at least {number(limit)}" if limit > 0 else f"a loss of at most {number(-limit)}"


def _gain(delta: Measurement, limit: float, how: EvidenceKind, confidence: float) -> str:
    gain, low, high = gain_of(delta)
    said = f"a gain of {number(gain, limit)}" if gain >= 0 else f"a loss of {number(-gain, -limit)}"
    if how == "point" or low is None or high is None:
        return f"{said} (n = {delta.n})"
    ends = f"{number(low, limit)} to {number(high, limit)}"
    return f"{said} ({100 * confidence:g} % interval of the gain {ends}, n = {delta.n})"


# ------------------------------------------------------------------------------------------------ next steps


def next_words(action: Action | None, margin: Margin, n: int, cause: Cause) -> str | None:
    """What to do after a FAIL or a verdict across the limit, where the numbers are there."""
    if action is None or cause != "across":
        return action.words if action else None
    wanted = items_to_decide(margin, n)
    if wanted is None:
        return (
            "the measured number is too close to the limit for any affordable number of rows: move the limit, or "
            "improve the model"
        )
    return f"{action.words}; about {wanted:,} items would decide if the numbers stay as they are"


def next_measurement(metric: str, cause: Cause, action: Action | None, section: GateSection) -> str | None:
    """What to do about a measurement that decides nothing."""
    if action is None:
        return None
    if cause == "too_few":
        return f"{action.words}; at least {max(section.min_items, 2)} items are needed"
    if cause == "not_measured" and metric == "schema_valid":
        return "give evaluation.json_schema and evaluate again"
    return action.words


def items_to_decide(margin: Margin, n: int) -> int | None:
    """About how many items shrink the interval to one side of the limit: its width falls with the square root of n.
    Two significant digits; None when that is more than anyone would run."""
    reach = margin.low if margin.value > 0 else margin.high
    if reach is None or margin.value == 0:
        return None
    wanted = n * ((margin.value - reach) / margin.value) ** 2
    if not wanted < MAX_ITEMS_WORTH_NAMING:
        return None
    step: int = 10 ** max(0, math.floor(math.log10(max(wanted, 1))) - 1)
    return max(n + 1, math.ceil(wanted / step) * step)


# ------------------------------------------------------------------------------------------------ numbers


def number(value: float, beside: float | None = None) -> str:
    """Three significant digits, or as many as it takes to look different from `beside`, which it is compared with."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if beside is None or value == beside or text != f"{beside:.{digits}g}":
            return text
    return repr(value)


def _with_interval(measured: Measurement, confidence: float, beside: float | None = None) -> str:
    if measured.value is None or measured.status != "measured":
        return _value(measured)
    parts = [f"n = {measured.n}"]
    if measured.low is not None and measured.high is not None:
        low, high = number(measured.low, beside), number(measured.high, beside)
        parts.insert(0, f"{100 * confidence:g} % interval {low} to {high}")
    return f"{number(measured.value, beside)} ({', '.join(parts)})"


def _value(measured: Measurement) -> str:
    if measured.status != "measured" or measured.value is None:
        return measured.status.replace("_", " ")
    return number(measured.value)
