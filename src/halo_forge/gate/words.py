"""The gate in words: rules, reasons with their numbers, and what to do next (after seed 002's failure handling)."""

from __future__ import annotations

import math
from typing import Literal

from halo_forge.artifacts import Comparison, Measurement, RuleResult, Verdict
from halo_forge.config.schema import GateSection
from halo_forge.gate.bounds import Bound, BoundKind, Margin, gain_of

MAX_ITEMS_WORTH_NAMING = 100_000

NEXT_WHEN_FAILED = {
    "perplexity": "the loss on held-out answers is high: improve the quality of the training data, or train longer "
    "(training.num_train_epochs)",
    "stop_rate": "answers do not end by themselves: look in first_batch.txt whether the stop token is trained, or "
    "raise evaluation.max_new_tokens",
    "answer_length": "look at the answers in eval/answers.jsonl: their length is not what the rule expects",
}
NEXT_WHEN_BELOW = "results are below what is expected: review the choice of the model, or the data"
NEXT_WHEN_NO_GAIN = (
    "the tuned model is not enough better than the base: look at the loss curve; if it is unstable, adjust the "
    "learning rate or the batch size, else improve the data or train longer"
)
NEXT_WHEN_FEW = "evaluate more rows: raise data.holdout_split or evaluation.max_prompts, or give data.holdout_file"


def rule_in_words(metric: str, kind: BoundKind, limit: float) -> str:
    if kind == "min":
        return f"{metric} is at least {number(limit)}"
    if kind == "max":
        return f"{metric} is at most {number(limit)}"
    if limit == 0:
        return f"{metric} is not worse than the base model's"
    if limit < 0:
        return f"{metric} is worse than the base model's by at most {number(-limit)}"
    return f"{metric} is better than the base model's by at least {number(limit)}"


def no_rules() -> RuleResult:
    return RuleResult(
        rule="gate.rules holds at least one rule",
        metric="none",
        verdict="INCONCLUSIVE",
        reason="there is no rule, so nothing was shown",
        evidence="no rule",
        next_action="give gate.rules, for instance {metric: perplexity, min_delta: 0}",
    )


def missing(metric: str, measured: Measurement | None) -> str:
    why = f": {measured.note}" if measured is not None and measured.note else ""
    if measured is not None and measured.status == "failed":
        return f"measuring {metric} failed{why}"
    return f"{metric} was not measured{why}"


def evidence(row: Comparison, kind: BoundKind, confidence: float) -> str:
    """The numbers alone: `0.83 (95 % interval 0.72 to 0.91, n = 60)`."""
    if kind != "min_delta":
        return _with_interval(row.tuned, confidence)
    change = _with_interval(row.delta, confidence)
    return f"base {_value(row.base)}, tuned {_value(row.tuned)}, change {change}"


def reason(
    bound: Bound, row: Comparison, verdict: Verdict, how: Literal["interval", "point"], confidence: float
) -> str:
    """The judgement with its numbers, and what would have made it another one."""
    limit = bound.limit
    if bound.kind == "min_delta":
        subject = f"{bound.metric} goes from {_value(row.base)} to {_value(row.tuned)},"
        said = f"{_gain(row.delta, limit, how, confidence)}; the rule asks for {_gain_asked(limit)}"
    else:
        subject = f"{bound.metric} {_with_interval(row.tuned, confidence, beside=limit)}"
        said = {
            ("min", "PASS"): f"is at least {number(limit)}",
            ("min", "FAIL"): f"is below {number(limit)}",
            ("max", "PASS"): f"is at most {number(limit)}",
            ("max", "FAIL"): f"is above {number(limit)}",
        }.get((bound.kind, verdict), f"may be on either side of {number(limit)}")
    return f"{subject} {said}. {_otherwise(bound, verdict, how)}"


def _otherwise(bound: Bound, verdict: Verdict, how: Literal["interval", "point"]) -> str:
    what = "gain" if bound.kind == "min_delta" else "value"
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


def _gain_asked(limit: float) -> str:
    if limit == 0:
        return "no loss"
    return f"a gain of at least {number(limit)}" if limit > 0 else f"a loss of at most {number(-limit)}"


def _gain(delta: Measurement, limit: float, how: Literal["interval", "point"], confidence: float) -> str:
    gain, low, high = gain_of(delta)
    said = f"a gain of {number(gain, limit)}" if gain >= 0 else f"a loss of {number(-gain, -limit)}"
    if how == "point" or low is None or high is None:
        return f"{said} (n = {delta.n})"
    ends = f"{number(low, limit)} to {number(high, limit)}"
    return f"{said} ({100 * confidence:g} % interval of the gain {ends}, n = {delta.n})"


def next_action(bound: Bound, measured: Measurement, margin: Margin, verdict: Verdict) -> str | None:
    if verdict == "PASS":
        return None
    if verdict == "FAIL":
        if bound.kind == "min_delta":
            return NEXT_WHEN_NO_GAIN
        return NEXT_WHEN_FAILED.get(bound.metric, NEXT_WHEN_BELOW)
    wanted = items_to_decide(margin, measured.n)
    if wanted is None:
        return f"the measured number is too close to the limit for any affordable number of rows; {NEXT_WHEN_BELOW}"
    return f"{NEXT_WHEN_FEW}; about {wanted:,} items would decide if the numbers stay as they are"


def next_measurement(metric: str, measured: Measurement | None, section: GateSection | None) -> str:
    """What to do about a measurement that decides nothing."""
    if measured is not None and measured.status == "failed":
        return "find out why: the note says what failed, eval/answers.jsonl has every answer; then evaluate again"
    if measured is not None and measured.status == "measured" and section is not None:
        if measured.n < section.min_items or measured.low is None:
            return f"{NEXT_WHEN_FEW}; at least {max(section.min_items, 2)} items are needed"
        return "correct the rule, or find out why this number is not finite, and evaluate again"
    if metric == "schema_valid":
        return "give evaluation.json_schema and evaluate again"
    return "remove the rule, or give held-out rows that this metric applies to (data.holdout_file) and evaluate again"


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
