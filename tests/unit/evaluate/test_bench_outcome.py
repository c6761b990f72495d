"""From lm-eval's samples to numbers: what is broken is failed, never 0."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from halo_forge.artifacts import EvalReport
from halo_forge.evaluate.bench.code_tests import sandbox_tests
from halo_forge.evaluate.bench.compare import compare_outcomes, measure_outcome, score_lines
from halo_forge.evaluate.bench.outcome import Outcome, outcome_of
from halo_forge.evaluate.bench.tasks import BENCHMARKS, benchmark_named
from halo_forge.evaluate.released import compare_versions, read_scores
from halo_forge.evaluate.statistics import Resampling
from halo_forge.gate.rules import check_rules, is_known

NO_TESTS = (None, "no sandbox")


def results(task: str, samples: list[dict[str, Any]], values: dict[str, float], **more: Any) -> dict[str, Any]:
    return {
        "samples": {task: samples}, "versions": {task: 1.0}, "n-shot": {task: 5}, "results": {task: values},
        "n-samples": {task: {"effective": len(samples), "original": 100}}, "higher_is_better": {task: {}}, **more,
    }  # fmt: skip


def answered(number: int, text: str, extracted: str, score: float) -> dict[str, Any]:
    return {
        "doc_id": number, "doc": {}, "target": "7", "arguments": [("question", {})], "resps": [[text]],
        "filtered_resps": [extracted], "filter": "strict-match", "metrics": ["exact_match"], "exact_match": score,
    }  # fmt: skip


def chosen(number: int, likelihoods: list[float], score: float) -> dict[str, Any]:
    return {
        "doc_id": number, "doc": {}, "target": 1, "arguments": [("question", " a")],
        "resps": [[(value, False)] for value in likelihoods], "filtered_resps": [(v, False) for v in likelihoods],
        "filter": "none", "metrics": ["acc", "acc_norm"], "acc": score, "acc_norm": score,
    }  # fmt: skip


def headline(name: str, outcome: Outcome) -> Any:
    return measure_outcome(BENCHMARKS[name], outcome, Resampling(), is_subsampled=True)[0]


def gsm8k(*samples: dict[str, Any]) -> Outcome:
    mean = sum(sample["exact_match"] for sample in samples) / len(samples)
    return outcome_of(results("gsm8k", list(samples), {"exact_match,strict-match": mean}), *NO_TESTS)


def test_a_score_of_zero_is_measured_when_answers_were_read() -> None:
    row = headline("gsm8k", gsm8k(answered(0, "#### 3", "3", 0.0), answered(1, "no number", "[invalid]", 0.0)))
    assert (row.metric, row.status, row.value, row.n) == ("bench.gsm8k", "measured", 0.0, 2)
    assert row.subsampled


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([answered(0, "  ", "[invalid]", 0.0), answered(1, "", "[invalid]", 0.0)], "empty"),
        ([answered(0, "seven", "[invalid]", 0.0), answered(1, "eight", "[invalid]", 0.0)], "none of the 2 texts"),
    ],
)
def test_answers_that_say_nothing_are_a_failure(samples: list[dict[str, Any]], reason: str) -> None:
    row = headline("gsm8k", gsm8k(*samples))
    assert (row.status, row.value) == ("failed", None)
    assert reason in row.note


@pytest.mark.parametrize(
    ("likelihoods", "reason"), [([float("nan"), -1.0], "not finite"), ([-2.0, -2.0], "equally likely")]
)
def test_likelihoods_that_say_nothing_are_a_failure(likelihoods: list[float], reason: str) -> None:
    samples = [chosen(number, likelihoods, 0.0) for number in range(3)]
    row = headline("hellaswag", outcome_of(results("hellaswag", samples, {"acc,none": 0.0}), *NO_TESTS))
    assert (row.status, row.value) == ("failed", None)
    assert reason in row.note


def test_comparisons_name_the_headline_first_and_count_flips() -> None:
    def side(scores: list[float]) -> Outcome:
        samples = [chosen(number, [-1.0, -2.0], score) for number, score in enumerate(scores)]
        return outcome_of(results("hellaswag", samples, {"acc,none": sum(scores) / len(scores)}), *NO_TESTS)

    base, tuned = side([0, 0, 1, 1]), side([1, 1, 1, 0])
    rows = compare_outcomes(BENCHMARKS["hellaswag"], base, tuned, Resampling(), is_subsampled=False)
    assert [row.metric for row in rows] == ["bench.hellaswag", "bench.hellaswag.acc"]
    assert (rows[0].base.value, rows[0].tuned.value, rows[0].wins, rows[0].losses) == (0.5, 0.75, 2, 1)
    assert rows[0].test == "McNemar exact"
    broken = Outcome(problems={None: ("failed", "it raised")})
    rows = compare_outcomes(BENCHMARKS["hellaswag"], base, broken, Resampling(), is_subsampled=False)
    assert rows[0].base.value == 0.5
    assert (rows[0].tuned.status, rows[0].delta.status, rows[0].delta.value) == ("failed", "failed", None)


def test_a_released_version_is_compared_with_as_a_base_is(tmp_path: Path) -> None:
    """The scores that two versions kept give what a run of both would have given; what broke gives nothing."""
    before = gsm8k(*(answered(n, "#### 7", "7", float(n % 3 == 0)) for n in range(30)))
    now = gsm8k(*(answered(n, "#### 7", "7", float(n % 2 == 0)) for n in range(30)))
    broken = gsm8k(*(answered(n, "seven", "[invalid]", 0.0) for n in range(30)))
    fewer = gsm8k(*(answered(n, "#### 7", "7", 1.0) for n in range(29)))
    benchmark, resampling = BENCHMARKS["gsm8k"], Resampling()
    expected = compare_outcomes(benchmark, before, now, resampling, is_subsampled=True)
    scores = {}
    for name, outcome in (("before", before), ("now", now), ("broken", broken), ("fewer", fewer)):
        path = tmp_path / name
        path.write_text(score_lines([benchmark], {"gsm8k": outcome}, "w"))
        scores[name] = read_scores(path)
    report = EvalReport.model_construct(comparisons=expected)
    assert compare_versions(scores["now"], scores["before"], report, resampling) == expected
    for name in ("broken", "fewer"):
        assert compare_versions(scores[name], scores["before"], report, resampling) == ()
        assert compare_versions(scores["now"], scores[name], report, resampling) == ()
    failed = EvalReport.model_construct(
        comparisons=compare_outcomes(benchmark, before, broken, resampling, is_subsampled=True)
    )
    assert compare_versions(scores["now"], scores["before"], failed, resampling) == ()


def test_subjects_of_a_group_are_one_number() -> None:
    samples = {f"mmlu_{name}": [chosen(0, [-1.0, -2.0], score)] for name, score in (("law", 1.0), ("logic", 0.0))}
    found = {
        "samples": samples, "versions": {}, "n-shot": {}, "higher_is_better": {},
        "results": {name: {"acc,none": own[0]["acc"]} for name, own in samples.items()} | {"mmlu": {"acc,none": 0.5}},
        "n-samples": {name: {"effective": 1, "original": 1} for name in samples},
        "group_subtasks": {"mmlu": ["mmlu_humanities"], "mmlu_humanities": list(samples)},
    }  # fmt: skip
    row = headline("mmlu", outcome_of(found, *NO_TESTS))
    assert (row.value, row.n) == (0.5, 2)


def test_a_number_that_is_no_mean_is_lm_evals_own() -> None:
    samples = [chosen(0, [-1.0, -2.0], 1.0)]
    outcome = outcome_of(results("own", samples, {"acc,none": 12.5, "acc_norm,none": 1.0}), *NO_TESTS)
    rows = {
        row.metric: row
        for row in measure_outcome(benchmark_named("own"), outcome, Resampling(), is_subsampled=False)
    }  # fmt: skip
    assert {row.value for row in rows.values()} == {12.5, 1.0}
    assert next(row for row in rows.values() if row.value == 12.5).low is None


def test_programs_are_run_only_by_the_sandbox() -> None:
    sample = answered(0, " return 1", "", 0.0) | {
        "filter": "create_test", "metrics": ["bypass"], "bypass": None,
        "filtered_resps": [["def f():\n return 1"]],
        "doc": {"test": "check", "entry_point": "f", "prompt": "def f():\n"},
    }  # fmt: skip
    found = results("humaneval", [sample], {"bypass,create_test": 999})
    row = headline("humaneval", outcome_of(found, *NO_TESTS))
    assert (row.status, row.value, row.note) == ("not_measured", None, "no sandbox")
    asked = []

    def passes(*arguments: str) -> bool:
        asked.append(arguments)
        return True

    row = headline("humaneval", outcome_of(found, passes, ""))
    assert (row.status, row.value) == ("measured", 1.0)
    assert asked == [("def f():\n return 1", "check", "f", "def f():\n")]


def test_gate_rules_may_name_any_benchmark() -> None:
    from halo_forge.config.schema import GateRule

    assert check_rules([GateRule(metric="bench.gsm8k", min_delta=-0.02)]) == []
    assert is_known("bench.any_task", ())
    assert not is_known("benchmark", ())


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_sentences_are_counted_without_nltks_model() -> None:
    from halo_forge.evaluate.bench.engine import _sentence_counter

    assert _sentence_counter(lambda text: text.split("."))("one.two") == 2


def test_a_program_passes_only_the_tests_that_it_passes() -> None:
    passes, why = sandbox_tests()
    if passes is None:
        pytest.skip(why)
    setup = "from typing import List\n"
    tests = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
    right = setup + "def add_up(numbers: List[int]) -> int:\n    return sum(numbers)\n"
    assert passes(right, tests, "add_up", setup)
    assert not passes(right.replace("sum(numbers)", "3"), tests, "add_up", setup)
    assert not passes("import os\nos._exit(0)\n", tests, "add_up", setup)
