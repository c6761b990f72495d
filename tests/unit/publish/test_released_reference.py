"""The released version as reference: the same items in pairs, on the same holdout, from the file that was published."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from halo_forge.artifacts import Comparison, GateDecision, Measurement, ReleasedComparison
from halo_forge.errors import DataError
from halo_forge.evaluate.compare import compare_items, marked
from halo_forge.evaluate.released import ItemScores, compare_versions, read_scores
from halo_forge.evaluate.statistics import Resampling, compare_rates
from halo_forge.publish import publish, verify_release
from halo_forge.publish.changelog import changelog
from halo_forge.publish.lineage import diff_versions
from halo_forge.publish.registry import set_alias
from halo_forge.publish.released import SCORES, released_scores
from halo_forge.runs import write_artifact
from halo_forge.verdict import compare_with_released, judge_evaluation, pair_versions

NUM_ITEMS = 120
RULE = {"metric": "exact_match", "max_regression": 0.05, "against": "released"}


def write_scores(built: Any, right: Any, *, holdout: str = "", max_new_tokens: int = 256, schema: str = "") -> None:
    """eval/scores.jsonl of NUM_ITEMS items: `right` [N] bool, sources in turn, a likelihood for each."""
    header = {
        "schema_version": 1,
        "weights_sha256": built.report.weights_sha256,
        "sets": {"holdout": holdout or built.report.holdout_sha256, "general_texts": "g"},
        "decoding": {"strategy": "greedy", "max_new_tokens": max_new_tokens},
        "json_schema": schema,
    }
    lines = [
        {"set": "holdout", "id": f"item-{index:03}", "slices": {"source": "ab"[index % 2]}, "num_tokens": 10,
         "nll": 5.0 if right[index] else 9.0,
         "scores": {"exact_match": float(right[index]), "schema_valid": 1.0}}
        for index in range(NUM_ITEMS)
    ]  # fmt: skip
    path = built.run.file(SCORES[0])
    lines = lines[::-1] if built.run.path.name.endswith("1") else lines  # pairs are by id, not by place
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]))


def build(builder: ModuleType, directory: Path, seed: int, right: Any, **scores: Any) -> Any:
    built = builder.build_run(directory / f"run-{seed}", registry=directory / "registry", seed=seed)
    write_scores(built, right, **scores)
    named = built.config.publish.model_copy(update={"name": "stub-writer"})
    config = built.config.model_copy(update={"publish": named})
    object.__setattr__(built, "config", config)
    return built


def judged(built: Any, **rule: Any) -> GateDecision:
    rules = [*built.config.gate.rules, type(built.config.gate.rules[0])(**{**RULE, **rule})]
    config = built.config.model_copy(update={"gate": built.config.gate.model_copy(update={"rules": rules})})
    return judge_evaluation(config, built.run, built.report)


def compared(built: Any) -> ReleasedComparison:
    return compare_with_released(built.config, built.run, built.report)


@pytest.fixture
def right() -> Any:
    return np.random.default_rng(5).random(NUM_ITEMS) < 0.7


def test_the_first_release_is_told_and_not_held_back(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    decision = judged(build(builder, tmp_path, 1, right))
    last = decision.rules[-1]
    assert (decision.verdict, last.verdict, last.cause, last.blocking) == ("PASS", "INCONCLUSIVE", "no_release", False)
    assert "no version of stub-writer is released yet" in last.reason


def test_a_worse_second_version_is_refused_in_pairs(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    publish(*build(builder, tmp_path, 1, right).records)
    worse = right.copy()
    worse[np.flatnonzero(right)[:18]] = False
    second = build(builder, tmp_path, 2, worse)
    decision = judged(second)
    last = decision.rules[-1]
    assert (decision.verdict, last.verdict, last.cause) == ("FAIL", "FAIL", "regressed")
    assert "since the released version, a loss of 0.15" in last.reason
    assert (last.command or "").startswith("halo-forge data diff RELEASED_RUN ")
    (row,) = (
        row for row in compared(second).comparisons if (row.metric, row.tuned.slice) == ("exact_match", "all")
    )  # fmt: skip
    expected = compare_rates(right.astype(float), worse.astype(float), 0.95)
    assert (row.base.value, row.tuned.value, row.wins, row.losses) == (expected.base, expected.tuned, 0, 18)
    assert expected.delta_interval is not None
    assert (row.delta.low, row.delta.high) == (expected.delta_interval.low, expected.delta_interval.high)
    assert decision.provenance.inputs["released/manifest.json"] == compared(second).manifest_sha256 != ""


def test_as_good_a_version_passes_only_because_items_are_paired(
    builder: ModuleType, tmp_path: Path, right: Any
) -> None:
    """One item of 120 changes: in pairs that is clear, as two samples the interval would be 0.23 wide."""
    publish(*build(builder, tmp_path, 1, right).records)
    nearly = right.copy()
    nearly[np.flatnonzero(right)[0]] = False
    decision = judged(build(builder, tmp_path, 2, nearly))
    assert decision.rules[-1].verdict == "PASS", decision.rules[-1].reason


def test_each_source_against_the_released_version(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    publish(*build(builder, tmp_path, 1, right).records)
    worse = right.copy()
    worse[np.flatnonzero(right & (np.arange(NUM_ITEMS) % 2 == 1))[:18]] = False
    rows = {row.tuned.slice: row for row in compared(build(builder, tmp_path, 2, worse)).comparisons
            if row.metric == "exact_match"}  # fmt: skip
    assert rows["source=a"].delta.value == 0
    assert rows["source=b"].delta.value == pytest.approx(-18 / 60)
    assert rows["source=b"].delta.n == 60


def test_perplexity_is_compared_over_all_tokens(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    publish(*build(builder, tmp_path, 1, right).records)
    (row,) = (
        row for row in compared(build(builder, tmp_path, 2, ~right)).comparisons
        if (row.metric, row.tuned.slice) == ("perplexity", "all")
    )  # fmt: skip
    assert row.base.value == pytest.approx(np.exp(np.where(right, 5.0, 9.0).mean() / 10))
    assert row.tuned.direction == "lower"


def test_two_versions_are_told_apart_in_pairs(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    """Eight of 120 answers lost and none won is a loss; two intervals of 0.16 cannot see it. Without scores that can be
    read the intervals decide."""
    publish(*build(builder, tmp_path, 1, right).records)
    worse = right.copy()
    worse[np.flatnonzero(right)[:8]] = False
    publish(*build(builder, tmp_path, 2, worse).records)
    registry = tmp_path / "registry"

    def changed(pair: Any) -> Any:
        rows = {row.metric: row for row in diff_versions(registry, "stub-writer", 1, 2, pair).metrics}
        return rows["exact_match"]

    found = changed(pair_versions)
    assert (found.outcome, found.num_pairs) == ("worse", NUM_ITEMS)
    assert found.change == pytest.approx(-8 / NUM_ITEMS)
    assert found.high is not None
    assert found.high < 0
    assert changed(None).num_pairs == 0
    (notes, _) = changelog(registry, "stub-writer", pair_versions).versions
    assert notes.diff == diff_versions(registry, "stub-writer", 1, 2, pair_versions)
    scores = registry / "stub-writer" / "v1" / SCORES[0]
    scores.unlink()
    scores.write_text("{}")
    assert changed(pair_versions) == changed(None)


def test_word_errors_are_compared_over_all_words(tmp_path: Path, builder: ModuleType, right: Any) -> None:
    """Two sentences of 2 and 8 words: the rate of all ten, not the mean of two rates. What one version did not count
    alike is left out, and a version of before words were counted is not compared."""
    resampling = Resampling(0.95, 200, 0)
    header = {"sets": {"holdout": "h"}, "decoding": {}, "weights_sha256": ""}

    def version(*items: dict[str, Any]) -> ItemScores:
        return ItemScores(
            header, {("holdout", str(number), 0): {"slices": {}, **item} for number, item in enumerate(items)}
        )

    def spoken(rate: float, words: int) -> dict[str, Any]:
        return {"scores": {"wer": rate}, "units": {"wer": words}}

    report = build(builder, tmp_path, 1, right).report
    measured = Measurement(metric="wer", value=0.1, n=3, status="measured", direction="lower")
    row = Comparison(metric="wer", base=measured, tuned=measured, delta=measured)
    report = report.model_copy(update={"comparisons": (row,)})
    before = version(spoken(0.5, 2), spoken(0.25, 8), spoken(0.0, 5))
    now = version(spoken(0.0, 2), spoken(0.125, 8), spoken(1.0, 6))
    (found,) = compare_versions(now, before, report, resampling)
    assert (found.base.value, found.tuned.value, found.tuned.n) == (pytest.approx(0.3), pytest.approx(0.1), 2)
    assert found.delta.value == pytest.approx(-0.2)
    assert found.tuned.direction == "lower"
    older = version({"scores": {"wer": 0.5}}, {"scores": {"wer": 0.25}})
    assert compare_versions(now, older, report, resampling) == ()


@pytest.mark.parametrize(
    ("scores", "why"),
    [({"holdout": "another"}, "another holdout"), ({"max_new_tokens": 99}, "decoded otherwise")],
)
def test_what_was_not_measured_alike_is_inconclusive(
    builder: ModuleType, tmp_path: Path, right: Any, scores: dict[str, Any], why: str
) -> None:
    publish(*build(builder, tmp_path, 1, right, **scores).records)
    decision = judged(build(builder, tmp_path, 2, right))
    last = decision.rules[-1]
    assert (decision.verdict, last.cause, last.blocking) == ("INCONCLUSIVE", "not_comparable", True)
    assert why in last.reason
    assert "data.holdout_file" in (last.command or "")


def test_another_schema_is_another_metric(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    publish(*build(builder, tmp_path, 1, right, schema="old").records)
    decision = judged(build(builder, tmp_path, 2, right, schema="new"), metric="schema_valid")
    assert decision.rules[-1].cause == "not_comparable"


def test_a_version_without_scores_and_a_changed_file_are_inconclusive(
    builder: ModuleType, tmp_path: Path, right: Any
) -> None:
    first = build(builder, tmp_path, 1, right)
    first.run.file(SCORES[0]).unlink()
    release = publish(*first.records)
    second = build(builder, tmp_path, 2, right)
    assert "without the scores" in judged(second).rules[-1].reason
    third = publish(*second.records)
    path = Path(third.path) / SCORES[0]
    os.chmod(path, 0o644)
    path.write_text(path.read_text().replace("1.0", "0.0"))
    decision = judged(build(builder, tmp_path, 3, right))
    assert (decision.verdict, decision.rules[-1].cause) == ("INCONCLUSIVE", "not_comparable")
    assert "not the file that was published" in decision.rules[-1].reason
    assert not verify_release(tmp_path / "registry", release.name, third.version).ok


def test_a_run_is_judged_after_publishing_as_it_was_before(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    publish(*build(builder, tmp_path, 1, right).records)
    better = right.copy()
    better[np.flatnonzero(~right)[:6]] = True
    second = build(builder, tmp_path, 2, better)
    before = judged(second)
    write_artifact(second.run.file("gate.json"), before)
    publish(*second.records)
    assert [rule.model_dump() for rule in judged(second).rules] == [rule.model_dump() for rule in before.rules]


def test_the_alias_released_goes_before_the_newest(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    for seed in (1, 2):
        publish(*build(builder, tmp_path, seed, right).records)
    third = build(builder, tmp_path, 3, right)
    assert released_scores(third.config, third.report.weights_sha256).version == 2
    set_alias(tmp_path / "registry", "stub-writer", 1, "released")
    assert released_scores(third.config, third.report.weights_sha256).version == 1


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]\n", '{"schema_version": 2, "sets": {}}\n', '{"schema_version": 1, "sets": []}\n', "\xff\n",
     '{"schema_version": 1, "sets": {}}\n{"set": "holdout"}\n', '{"schema_version": 1, "sets": {}}\n[1]\n',
     '{"schema_version": 1, "sets": {}}\n{"set": "s", "id": "1", "scores": {"m": "x"}}\n',
     '{"schema_version": 1, "sets": {}}\n{"set": "s", "id": "1", "scores": {"m": NaN}}\n'],
)  # fmt: skip
def test_a_damaged_scores_file_is_an_error_in_words(tmp_path: Path, content: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="scores of single items"):
        read_scores(path)


def test_no_text_of_an_item_is_published(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    release = publish(*build(builder, tmp_path, 1, right).records)
    kept = (Path(release.path) / SCORES[0]).read_text()
    assert "def " not in kept
    assert len(kept.splitlines()) == NUM_ITEMS + 1


def with_suite_and_benchmark(built: Any, suite_right: Any, bench_right: Any, *, limit: bool = False) -> Any:
    """The run as if it had also been asked a suite of NUM_ITEMS harmful prompts and as many items of GSM8K."""
    path = built.run.file(SCORES[0])
    header, *lines = path.read_text().splitlines()
    known = json.loads(header)
    known["sets"]["suite.mine"] = "m"
    refused = [{"set": "suite.mine", "id": str(n), "slices": {}, "scores": {"harmful_refusal_rate": float(right)}}
               for n, right in enumerate(suite_right)]  # fmt: skip
    path.write_text("\n".join([json.dumps(known), *lines, *map(json.dumps, refused)]) + "\n")
    solved = [{"set": "bench.gsm8k", "id": f"gsm8k:{n}", "slices": {}, "scores": {"bench.gsm8k": float(right)}}
              for n, right in enumerate(bench_right)]  # fmt: skip
    of_bench = {"schema_version": 1, "weights_sha256": built.report.weights_sha256, "sets": {"bench.gsm8k": "g"}}
    bench_path = built.run.file(SCORES[1])
    bench_path.parent.mkdir(parents=True)
    bench_path.write_text("".join(json.dumps(line) + "\n" for line in (of_bench, *solved)))
    rows = [
        marked(compare_items(metric, "higher", "rate", right, right, {}, Resampling())[0], "all", subsampled)
        for metric, right, subsampled in (
            ("harmful_refusal_rate", suite_right.astype(float), False),
            ("bench.gsm8k", bench_right.astype(float), limit),
        )
    ]
    report = built.report.model_copy(update={"comparisons": (*built.report.comparisons, *rows)})
    write_artifact(built.run.file("eval/report.json"), report)
    decision = judge_evaluation(built.config, built.run, report)
    write_artifact(built.run.file("gate.json"), decision)
    return replace(built, report=report, decision=decision)


@pytest.mark.parametrize("metric", ["harmful_refusal_rate", "bench.gsm8k"])
def test_suites_and_benchmarks_are_held_against_the_released_version_in_pairs(
    builder: ModuleType, tmp_path: Path, right: Any, metric: str
) -> None:
    first = with_suite_and_benchmark(build(builder, tmp_path, 1, right), right, ~right)
    release = publish(*first.records)
    assert verify_release(tmp_path / "registry", release.name, release.version).ok
    for seed, num_lost, verdict, cause in ((2, 0, "PASS", "held"), (3, 18, "FAIL", "regressed")):
        before = {"harmful_refusal_rate": right, "bench.gsm8k": ~right}
        now = {name: side.copy() for name, side in before.items()}
        now[metric][np.flatnonzero(before[metric])[:num_lost]] = False
        # The holdout is another one: suites and benchmarks do not ask for its rows.
        built = build(builder, tmp_path, seed, right, holdout="another")
        decision = judged(with_suite_and_benchmark(built, *now.values()), metric=metric)
        assert (decision.verdict, decision.rules[-1].cause) == (verdict, cause), decision.rules[-1].reason
    assert "since the released version, a loss of 0.15" in decision.rules[-1].reason
    of_holdout = judged(with_suite_and_benchmark(build(builder, tmp_path, 4, right, holdout="b"), right, right))
    assert "another holdout" in of_holdout.rules[-1].reason


def test_a_subsample_of_a_benchmark_decides_nothing_against_the_released_version(
    builder: ModuleType, tmp_path: Path, right: Any
) -> None:
    publish(*with_suite_and_benchmark(build(builder, tmp_path, 1, right), right, right, limit=True).records)
    second = with_suite_and_benchmark(build(builder, tmp_path, 2, right), right, ~right, limit=True)
    last = judged(second, metric="bench.gsm8k").rules[-1]
    assert (last.verdict, last.cause) == ("INCONCLUSIVE", "subsampled")


def test_benchmarks_of_earlier_weights_are_not_taken_for_these(builder: ModuleType, tmp_path: Path, right: Any) -> None:
    publish(*with_suite_and_benchmark(build(builder, tmp_path, 1, right), right, right).records)
    second = with_suite_and_benchmark(build(builder, tmp_path, 2, right), right, right)
    path = second.run.file(SCORES[1])
    path.write_text(path.read_text().replace(second.report.weights_sha256, "another model's"))
    assert judged(second, metric="bench.gsm8k").rules[-1].cause == "not_comparable"
