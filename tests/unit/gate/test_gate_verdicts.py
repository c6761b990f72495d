"""Reports in, verdicts out: boundaries, broken numbers, planted regressions."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from halo_forge.artifacts import Comparison, Direction, EvalReport, Measurement, Provenance, Status, Verdict
from halo_forge.config.schema import Config, GateRule, GateSection
from halo_forge.errors import ConfigError
from halo_forge.gate import decide, judge_rules

Numbers = tuple[float | None, float | None, float | None]  # value, low, high


def measurement(
    metric: str, numbers: Numbers, direction: Direction = "higher", n: int = 60, status: Status = "measured"
) -> Measurement:
    value, low, high = numbers
    return Measurement(metric=metric, value=value, n=n, low=low, high=high, direction=direction, status=status)


def comparison(
    metric: str,
    tuned: Numbers,
    *,
    base: Numbers = (0.5, 0.4, 0.6),
    delta: Numbers = (0.3, 0.2, 0.4),
    direction: Direction = "higher",
    n: int = 60,
) -> Comparison:
    base_measured, tuned_measured, delta_measured = (
        measurement(metric, numbers, direction, n) for numbers in (base, tuned, delta)
    )
    return Comparison(metric=metric, base=base_measured, tuned=tuned_measured, delta=delta_measured)


def report_of(*rows: Comparison) -> EvalReport:
    return EvalReport(
        provenance=Provenance(created_at="2026-01-01", code_version="0", config_sha256="c"),
        num_items=60, num_scored=60, confidence=0.95, decoding={}, comparisons=rows, answers="eval/answers.jsonl",
        weights_sha256="w", holdout_sha256="h", time_s=1.0,
    )  # fmt: skip


def verdict_on(rule: GateRule, row: Comparison, evidence: Literal["interval", "point"] = "interval") -> Verdict:
    section = GateSection(rules=[rule], evidence=evidence)
    verdict, results = judge_rules(section, report_of(row))
    assert [result.verdict for result in results] == [verdict]
    return verdict


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.7, 0.9, "PASS"),  # touching the limit is at least the limit
        (0.70001, 0.9, "PASS"),
        (0.69999, 0.9, "INCONCLUSIVE"),
        (0.5, 0.7, "INCONCLUSIVE"),  # the upper end could still be enough
        (0.5, 0.69999, "FAIL"),
    ],
)
def test_min_needs_the_whole_interval(low: float, high: float, expected: Verdict) -> None:
    row = comparison("exact_match", ((low + high) / 2, low, high))
    assert verdict_on(GateRule(metric="exact_match", min=0.7), row) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(15.0, 20.0, "PASS"), (15.0, 20.1, "INCONCLUSIVE"), (20.0, 25.0, "INCONCLUSIVE"), (20.1, 25.0, "FAIL")],
)
def test_max_needs_the_whole_interval(low: float, high: float, expected: Verdict) -> None:
    row = comparison("perplexity", ((low + high) / 2, low, high), direction="lower")
    assert verdict_on(GateRule(metric="perplexity", max=20.0), row) == expected


@pytest.mark.parametrize(
    ("direction", "delta", "expected"),
    [
        ("higher", (0.2, 0.1, 0.3), "PASS"),
        ("higher", (0.2, 0.0, 0.3), "INCONCLUSIVE"),
        ("higher", (-0.2, -0.3, -0.1), "FAIL"),
        ("lower", (-0.2, -0.3, -0.1), "PASS"),  # a smaller perplexity is a gain
        ("lower", (-0.2, -0.3, -0.05), "INCONCLUSIVE"),
        ("lower", (0.2, 0.1, 0.3), "FAIL"),
    ],
)
def test_min_delta_counts_in_the_good_direction(direction: Direction, delta: Numbers, expected: Verdict) -> None:
    row = comparison("perplexity", (0.7, 0.6, 0.8), delta=delta, direction=direction)
    assert verdict_on(GateRule(metric="perplexity", min_delta=0.1), row) == expected


def test_a_negative_min_delta_allows_that_much_loss() -> None:
    rule = GateRule(metric="exact_match", min_delta=-0.05)
    assert verdict_on(rule, comparison("exact_match", (0.5, 0.4, 0.6), delta=(-0.01, -0.05, 0.02))) == "PASS"
    assert verdict_on(rule, comparison("exact_match", (0.5, 0.4, 0.6), delta=(-0.2, -0.3, -0.1))) == "FAIL"


def test_point_evidence_judges_the_value_alone() -> None:
    rule = GateRule(metric="exact_match", min=0.7)
    assert verdict_on(rule, comparison("exact_match", (0.7, 0.1, 0.9)), "point") == "PASS"
    assert verdict_on(rule, comparison("exact_match", (0.6999, 0.6, 0.9)), "point") == "FAIL"
    assert verdict_on(rule, comparison("exact_match", (0.8, None, None)), "point") == "PASS"


def test_a_planted_regression_fails_whatever_else_passes() -> None:
    report = report_of(
        comparison("perplexity", (3.0, 2.8, 3.2), delta=(-9.0, -10.0, -8.0), direction="lower"),
        comparison("exact_match", (0.2, 0.1, 0.3), base=(0.6, 0.5, 0.7), delta=(-0.4, -0.5, -0.3)),
        comparison("token_f1", (0.8, 0.6, 0.9)),
    )
    rules = [
        GateRule(metric="perplexity", max=20.0, min_delta=0.0),
        GateRule(metric="token_f1", min=0.7),
        GateRule(metric="exact_match", min_delta=0.0),
    ]
    decision = decide(Config(gate=GateSection(rules=rules)), report, "r")
    assert decision.verdict == "FAIL"
    assert [rule.verdict for rule in decision.rules] == ["PASS", "PASS", "INCONCLUSIVE", "FAIL"]
    assert "learning rate" in (decision.rules[-1].next_action or "")
    assert (decision.report_sha256, decision.weights_sha256) == ("r", "w")
    assert decision.provenance.inputs == {"eval/report.json": "r"}


def test_one_undecided_rule_keeps_a_pass_away() -> None:
    report = report_of(
        comparison("perplexity", (3.0, 2.8, 3.2), direction="lower"), comparison("exact_match", (0.7, 0.6, 0.8))
    )
    section = GateSection(rules=[GateRule(metric="perplexity", max=20.0), GateRule(metric="exact_match", min=0.7)])
    assert judge_rules(section, report)[0] == "INCONCLUSIVE"


@pytest.mark.parametrize("evidence", ["interval", "point"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bound", ["min", "max", "min_delta"])
def test_numbers_that_are_not_finite_never_pass(bad: float, bound: str, evidence: Literal["interval", "point"]) -> None:
    rule = GateRule.model_validate({"metric": "exact_match", bound: 0.5})
    row = comparison("exact_match", (bad, bad, bad), delta=(bad, bad, bad))
    assert verdict_on(rule, row, evidence) == "INCONCLUSIVE"
    if evidence == "interval":
        half_bad = comparison("exact_match", (0.9, bad, bad), delta=(0.9, bad, bad))
        assert verdict_on(rule, half_bad) == "INCONCLUSIVE"


def test_a_gain_over_a_broken_base_is_no_gain() -> None:
    row = comparison("exact_match", (0.9, 0.8, 1.0), base=(math.nan, None, None), delta=(0.9, 0.8, 1.0))
    assert verdict_on(GateRule(metric="exact_match", min_delta=0.1), row) == "INCONCLUSIVE"


@pytest.mark.parametrize("status", ["failed", "not_measured"])
def test_a_broken_metric_decides_nothing_and_says_why(status: Status) -> None:
    empty = Measurement(metric="perplexity", value=None, n=60, status=status, direction="lower", note="it broke")
    row = Comparison(metric="perplexity", base=empty, tuned=empty, delta=empty)
    verdict, results = judge_rules(GateSection(), report_of(row))
    assert verdict == "INCONCLUSIVE"
    assert all("it broke" in result.reason and result.next_action for result in results)


def test_a_failed_metric_with_a_leftover_value_does_not_pass() -> None:
    broken = measurement("exact_match", (0.99, 0.98, 1.0), status="failed")
    row = Comparison(metric="exact_match", base=broken, tuned=broken, delta=broken)
    assert verdict_on(GateRule(metric="exact_match", min=0.5), row) == "INCONCLUSIVE"


def test_a_metric_missing_from_the_report_decides_nothing() -> None:
    section = GateSection(rules=[GateRule(metric="schema_valid", min=0.9)])
    verdict, (result,) = judge_rules(section, report_of())
    assert verdict == "INCONCLUSIVE"
    assert "not measured" in result.reason
    assert "evaluation.json_schema" in (result.next_action or "")


@pytest.mark.parametrize(("n", "expected"), [(19, "INCONCLUSIVE"), (20, "PASS")])
def test_too_few_items_decide_nothing(n: int, expected: Verdict) -> None:
    row = comparison("exact_match", (0.9, 0.8, 1.0), n=n)
    assert verdict_on(GateRule(metric="exact_match", min=0.5), row) == expected
    hopeless = comparison("exact_match", (0.1, 0.0, 0.2), n=n)
    assert verdict_on(GateRule(metric="exact_match", min=0.5), hopeless) == ("FAIL" if n == 20 else "INCONCLUSIVE")


@pytest.mark.parametrize("numbers", [(0.9, None, None), (0.9, 0.95, 0.6)])
def test_no_interval_or_a_crossed_one_decides_nothing(numbers: Numbers) -> None:
    assert verdict_on(GateRule(metric="exact_match", min=0.5), comparison("exact_match", numbers)) == "INCONCLUSIVE"


def test_a_change_without_direction_is_neither_good_nor_bad() -> None:
    row = comparison("answer_length", (30.0, 29.0, 31.0), delta=(9.0, 8.0, 10.0), direction="none")
    assert verdict_on(GateRule(metric="answer_length", min_delta=1.0), row) == "INCONCLUSIVE"
    assert verdict_on(GateRule(metric="answer_length", max=40.0), row) == "PASS"


def test_no_rules_is_not_a_pass() -> None:
    assert judge_rules(GateSection(rules=[]), report_of())[0] == "INCONCLUSIVE"


def test_a_slice_does_not_stand_for_the_whole() -> None:
    easy = measurement("exact_match", (0.99, 0.98, 1.0)).model_copy(update={"slice": "easy"})
    row = Comparison(metric="exact_match", base=easy, tuned=easy, delta=easy)
    assert judge_rules(GateSection(rules=[GateRule(metric="exact_match", min=0.5)]), report_of(row))[0] != "PASS"


def test_a_metric_nobody_knows_is_an_error_and_one_in_the_report_is_not() -> None:
    section = GateSection(rules=[GateRule(metric="my_task", min=0.5)])
    with pytest.raises(ConfigError, match="no metric 'my_task'"):
        judge_rules(section, report_of())
    assert judge_rules(section, report_of(comparison("my_task", (0.6, 0.55, 0.65))))[0] == "PASS"


def test_a_benchmark_that_did_not_run_is_undecided_not_unknown() -> None:
    section = GateSection(rules=[GateRule(metric="bench.mmlu", min=0.5)])
    verdict, (result,) = judge_rules(section, report_of())
    assert (verdict, result.cause) == ("INCONCLUSIVE", "not_measured")
