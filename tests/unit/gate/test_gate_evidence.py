"""What is no evidence: broken benchmarks, subsamples, slices that are not there; budgets; what need not be decided."""

from __future__ import annotations

from typing import Any

import pytest

from halo_forge.artifacts import Comparison, Direction, EvalReport, Measurement, Provenance, RuleResult, Verdict
from halo_forge.config.schema import GateRule, GateSection
from halo_forge.gate import judge_rules
from halo_forge.gate.benchmarks import benchmark_of
from halo_forge.gate.rules import check_rules

Numbers = tuple[float, float, float]
STAMP = Provenance(created_at="2026-01-01", code_version="0", config_sha256="c")


def row_of(
    metric: str,
    *,
    base: Numbers = (0.5, 0.4, 0.6),
    tuned: Numbers = (0.6, 0.5, 0.7),
    delta: Numbers = (0.1, 0.05, 0.15),
    direction: Direction = "higher",
    **fields: Any,
) -> Comparison:
    sides = (
        Measurement(metric=metric, value=v, low=low, high=high, direction=direction, **{"n": 60, **fields})
        for v, low, high in (base, tuned, delta)
    )
    return Comparison(**dict(zip(("base", "tuned", "delta"), sides, strict=True)), metric=metric)


def judged(rows: list[Comparison], *rules: dict[str, Any], **section: Any) -> tuple[Verdict, tuple[RuleResult, ...]]:
    report = EvalReport(
        provenance=STAMP, num_items=60, num_scored=60, confidence=0.95, decoding={}, comparisons=tuple(rows),
        answers="eval/answers.jsonl", weights_sha256="w", holdout_sha256="h", time_s=1.0,
    )  # fmt: skip
    return judge_rules(GateSection(rules=[GateRule(**rule) for rule in rules], **section), report)


# ------------------------------------------------------------------------------------------------ broken benchmarks


@pytest.mark.parametrize("rule", [{"min": 0.3}, {"min_delta": 0.0}, {"max_regression": 0.5}, {"max": 0.9}])
def test_a_benchmark_that_scores_0_where_guessing_scores_more_is_broken(rule: dict[str, float]) -> None:
    broken = row_of("bench.mmlu", tuned=(0.0, 0.0, 0.06), delta=(-0.5, -0.6, -0.4))
    verdict, (result,) = judged([broken], {"metric": "bench.mmlu", **rule})
    assert (verdict, result.cause) == ("INCONCLUSIVE", "broken")
    assert "guessing gets 25% right" in result.reason
    assert result.command == "halo-forge bench run --run RUN --tasks NAMES"


def test_a_generated_benchmark_may_honestly_score_0() -> None:
    poor = row_of("bench.gsm8k", tuned=(0.0, 0.0, 0.06), delta=(-0.5, -0.6, -0.4))
    assert judged([poor], {"metric": "bench.gsm8k", "min": 0.3})[0] == "FAIL"
    assert judged([poor], {"metric": "bench.gsm8k", "max_regression": 0.02})[0] == "FAIL"


def test_a_benchmark_that_failed_is_inconclusive_with_its_note() -> None:
    note = "0 of 60 answers could be read"
    failed = row_of("bench.humaneval", tuned=(0.0, 0.0, 0.06), status="failed", note=note)
    verdict, (result,) = judged([failed], {"metric": "bench.humaneval", "min": 0.1})
    assert (verdict, result.cause) == ("INCONCLUSIVE", "failed")
    assert note in result.reason


def test_two_zeros_never_pass_as_no_loss_and_still_fail_as_no_gain() -> None:
    zeros = row_of("bench.gsm8k", base=(0.0, 0.0, 0.06), tuned=(0.0, 0.0, 0.06), delta=(0.0, -0.02, 0.02))
    verdict, (result,) = judged([zeros], {"metric": "bench.gsm8k", "max_regression": 0.05})
    assert (verdict, result.cause, result.margin) == ("INCONCLUSIVE", "broken", None)
    assert judged([zeros], {"metric": "bench.gsm8k", "min_delta": -0.05})[0] == "INCONCLUSIVE"
    assert judged([zeros], {"metric": "bench.gsm8k", "min_delta": 0.1})[0] == "FAIL"


def test_a_change_of_exactly_0_is_no_broken_benchmark() -> None:
    same = row_of("bench.mmlu", delta=(0.0, -0.01, 0.01))
    assert judged([same], {"metric": "bench.mmlu", "max_regression": 0.02})[0] == "PASS"


def test_a_few_wrong_guesses_are_no_proof_of_a_broken_benchmark() -> None:
    unlucky = row_of("bench.mmlu", tuned=(0.0, 0.0, 0.1), n=20)  # 0.75 ** 20 = 0.003
    assert judged([unlucky], {"metric": "bench.mmlu", "min": 0.3})[0] == "FAIL"


@pytest.mark.parametrize(
    ("metric", "benchmark"),
    [("bench.mmlu", "mmlu"), ("bench.mmlu_stem", "mmlu"), ("bench.mmlu_pro", "mmlu_pro"),
     ("bench.humaneval/pass@1", "humaneval"), ("bench.truthfulqa_mc1", "truthfulqa_mc1"),
     ("bench.arc_easy.acc", "arc_easy"), ("bench.mmlux", None), ("bench.own_task", None),
     ("exact_match", None), ("mmlu", None), ("mmlu_stem", None), ("hellaswag", None), ("bench_mmlu", None)],
)  # fmt: skip
def test_benchmarks_are_known_by_how_a_name_begins(metric: str, benchmark: str | None) -> None:
    assert benchmark_of(metric) == benchmark


def test_a_users_metric_called_as_a_benchmark_is_none() -> None:
    """A scorer `mmlu` may honestly give 0 to every answer: nobody guesses at it."""
    rule: dict[str, Any] = {"metric": "mmlu", "min": 0.5}
    assert judged([row_of("mmlu", tuned=(0.0, 0.0, 0.06))], rule)[0] == "FAIL"
    renamed = {**rule, "metric": "bench.mmlu"}
    assert judged([row_of("bench.mmlu", tuned=(0.0, 0.0, 0.06))], renamed)[0] == "INCONCLUSIVE"
    (problem,) = check_rules([GateRule(**rule)])
    assert problem.endswith("there is no metric 'mmlu'; did you mean 'bench.mmlu'?")
    assert check_rules([GateRule(**rule)], also=["mmlu"]) == []


# ------------------------------------------------------------------------------------------------ subsamples, budgets


@pytest.mark.parametrize("rule", [{"min": 0.1}, {"min_delta": 0.0}, {"max_regression": 0.5}, {"min": 0.9}])
def test_a_subsample_never_gates_on_its_own(rule: dict[str, float]) -> None:
    verdict, (result,) = judged([row_of("exact_match", subsampled=True)], {"metric": "exact_match", **rule})
    assert (verdict, result.cause) == ("INCONCLUSIVE", "subsampled")
    assert "evaluation.max_prompts=null" in (result.command or "")


def test_one_subsampled_side_of_a_change_is_enough() -> None:
    row = row_of("exact_match")
    half = row.model_copy(update={"base": row.base.model_copy(update={"subsampled": True})})
    assert judged([half], {"metric": "exact_match", "min_delta": 0.0})[0] == "INCONCLUSIVE"
    assert judged([half], {"metric": "exact_match", "min": 0.1})[0] == "PASS"


@pytest.mark.parametrize(
    ("delta", "expected", "margin"),
    [
        ((0.01, -0.02, 0.04), "PASS", 0.0),  # the bad end spends the whole budget and no more
        ((0.01, -0.021, 0.04), "INCONCLUSIVE", -0.001),
        ((-0.015, -0.05, 0.02), "INCONCLUSIVE", -0.03),
        ((-0.025, -0.06, 0.01), "FAIL", -0.005),  # the measured loss is beyond it, wherever the interval ends
        ((-0.2, -0.3, -0.1), "FAIL", -0.18),
    ],
)
@pytest.mark.parametrize("evidence", ["interval", "point"])
def test_a_regression_budget_reads_the_bad_end(delta: Numbers, expected: Verdict, margin: float, evidence: str) -> None:
    rule = {"metric": "exact_match", "max_regression": 0.02}
    verdict, (result,) = judged([row_of("exact_match", delta=delta)], rule, evidence=evidence)
    assert verdict == expected
    assert result.margin == pytest.approx(margin)
    turned = tuple(-value for value in delta)
    falling = row_of("perplexity", delta=(turned[0], turned[2], turned[1]), direction="lower")
    assert judged([falling], {**rule, "metric": "perplexity"}, evidence=evidence)[0] == expected


def test_a_budget_without_an_interval_is_not_kept_even_on_point_evidence() -> None:
    row = row_of("exact_match")
    bare = row.model_copy(update={"delta": row.delta.model_copy(update={"low": None, "high": None})})
    assert judged([bare], {"metric": "exact_match", "max_regression": 0.02}, evidence="point")[0] == "INCONCLUSIVE"


# ------------------------------------------------------------------------------------------------ slices


SLICES = [
    row_of("exact_match"),
    row_of("exact_match", slice="source=faq", tuned=(0.9, 0.8, 0.95)),
    row_of("exact_match", slice="source=forum", tuned=(0.2, 0.1, 0.3)),
    row_of("exact_match", slice="domain=law", tuned=(0.1, 0.05, 0.2)),
]


def test_each_source_judges_every_slice_of_that_kind() -> None:
    verdict, results = judged(SLICES, {"metric": "exact_match", "min": 0.5, "slice": "each source"})
    assert verdict == "FAIL"
    assert [(result.slice, result.verdict) for result in results] == [("source=faq", "PASS"), ("source=forum", "FAIL")]
    assert "exact_match (source=forum)" in results[1].reason


def test_one_slice_is_judged_by_itself() -> None:
    assert judged(SLICES, {"metric": "exact_match", "min": 0.5, "slice": "source=faq"})[0] == "PASS"
    verdict, (result,) = judged(SLICES, {"metric": "exact_match", "min": 0.5, "slice": "source=fqa"})
    assert (verdict, result.cause) == ("INCONCLUSIVE", "no_slice")
    assert "did you mean source=faq?" in result.reason


def test_each_kind_that_is_not_there_is_undecided_not_skipped() -> None:
    verdict, (result,) = judged(SLICES, {"metric": "exact_match", "min": 0.5, "slice": "each language"})
    assert (verdict, result.cause) == ("INCONCLUSIVE", "no_slice")


def test_a_slice_that_one_metric_lacks_was_lost() -> None:
    rows = [*SLICES[:2], row_of("stop_rate", slice="source=forum")]
    verdict, results = judged(rows, {"metric": "exact_match", "min": 0.5, "slice": "each source"})
    assert verdict == "INCONCLUSIVE"
    assert [(result.slice, result.cause) for result in results] == [
        ("source=faq", "held"),
        ("source=forum", "no_slice"),
    ]


def test_a_number_that_stands_twice_decides_nothing() -> None:
    rows = [row_of("exact_match", tuned=(0.1, 0.05, 0.2)), row_of("exact_match")]
    for order in (rows, rows[::-1]):
        assert judged(order, {"metric": "exact_match", "min": 0.5})[0] == "INCONCLUSIVE"


# ------------------------------------------------------------------------------------------------ required or not


def test_a_rule_that_is_not_required_may_stay_undecided_but_not_fail() -> None:
    rows = [row_of("exact_match"), row_of("bench.mmlu", tuned=(0.6, 0.3, 0.8))]
    asked = {"metric": "exact_match", "min": 0.5}
    optional = {"metric": "bench.mmlu", "min": 0.5, "required": False}
    verdict, results = judged(rows, asked, optional)
    assert (verdict, results[1].verdict, results[1].blocking) == ("PASS", "INCONCLUSIVE", False)
    assert judged(rows[:1], asked, optional)[0] == "PASS"
    assert judged([rows[0], row_of("bench.mmlu", tuned=(0.3, 0.2, 0.4))], asked, optional)[0] == "FAIL"


def test_with_nothing_decided_nothing_passes() -> None:
    assert judged([], {"metric": "exact_match", "min": 0.5, "required": False})[0] == "INCONCLUSIVE"


def test_required_metrics_must_be_measured_and_nothing_else() -> None:
    rows = [row_of("exact_match"), row_of("bench.ifeval", tuned=(0.01, 0.0, 0.05))]
    asked = {"metric": "exact_match", "min": 0.5}
    verdict, results = judged(rows, asked, required_metrics=["bench.ifeval"])
    assert (verdict, results[1].rule) == ("PASS", "bench.ifeval is measured on at least 20 items")
    needed = ["bench.ifeval"]
    assert judged(rows[:1], asked, required_metrics=needed)[0] == "INCONCLUSIVE"
    assert judged([rows[0], row_of("bench.ifeval", n=19)], asked, required_metrics=needed)[0] == "INCONCLUSIVE"
    assert (
        judged([rows[0], row_of("bench.ifeval", subsampled=True)], asked, required_metrics=needed)[0] == "INCONCLUSIVE"
    )


def test_required_metrics_alone_show_nothing() -> None:
    assert judged([row_of("bench.ifeval")], required_metrics=["bench.ifeval"])[0] == "INCONCLUSIVE"
