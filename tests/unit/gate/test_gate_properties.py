"""What holds for every report and every set of rules: worse is never better, missing never passes, order is nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from halo_forge.artifacts import Comparison, Direction, EvalReport, Measurement, Provenance, Verdict
from halo_forge.config.schema import GateRule, GateSection
from halo_forge.gate import judge_rules
from halo_forge.gate.benchmarks import nothing_to_lose, why_broken

STAMP = Provenance(created_at="2026-01-01", code_version="0", config_sha256="c")
RANK: dict[Verdict, int] = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
METRICS: dict[str, Direction] = {
    "exact_match": "higher",
    "perplexity": "lower",
    "bench.gsm8k": "higher",
    "bench.mmlu": "higher",
}
KINDS = ("min", "max", "min_delta", "max_regression")
steps = st.integers(0, 12).map(lambda step: step / 10)  # a coarse grid, so that limits are hit exactly


@dataclass(frozen=True)
class Case:
    section: GateSection
    rows: tuple[Comparison, ...]

    def verdict(self) -> Verdict:
        return judge_rules(self.section, report_of(self.rows))[0]


def report_of(rows: tuple[Comparison, ...]) -> EvalReport:
    return EvalReport(
        provenance=STAMP, num_items=60, num_scored=60, confidence=0.95, decoding={}, comparisons=rows,
        answers="eval/answers.jsonl", weights_sha256="w", holdout_sha256="h", time_s=1.0,
    )  # fmt: skip


@st.composite
def measurements(draw: st.DrawFn, metric: str, value: float, **fields: Any) -> Measurement:
    low, high = value - draw(steps) / 2, value + draw(steps) / 2
    return Measurement(metric=metric, value=value, low=low, high=high, direction=METRICS[metric], **fields)


@st.composite
def comparisons(draw: st.DrawFn, metric: str, slice_name: str = "all") -> Comparison:
    fields = {
        "n": draw(st.sampled_from([10, 20, 60])),
        "slice": slice_name,
        "status": draw(st.sampled_from(["measured"] * 8 + ["failed", "not_measured"])),
        "subsampled": draw(st.integers(0, 9)) == 0,
    }
    base, tuned = draw(steps), draw(steps)
    sides = [draw(measurements(metric, value, **fields)) for value in (base, tuned, tuned - base)]
    return Comparison(metric=metric, base=sides[0], tuned=sides[1], delta=sides[2])


@st.composite
def rules(draw: st.DrawFn) -> GateRule:
    limits = draw(st.dictionaries(st.sampled_from(KINDS), steps, min_size=1, max_size=3))
    return GateRule(
        metric=draw(st.sampled_from(sorted(METRICS))),
        slice=draw(st.sampled_from(["all", "all", "source=a", "each source"])),
        required=draw(st.booleans()),
        **limits,
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows = [draw(comparisons(metric)) for metric in METRICS if draw(st.integers(0, 9))]
    rows += [draw(comparisons("exact_match", f"source={name}")) for name in ("a", "b") if draw(st.booleans())]
    section = GateSection(
        rules=draw(st.lists(rules(), max_size=4)),
        required_metrics=draw(st.lists(st.sampled_from(sorted(METRICS)), unique=True, max_size=2)),
        evidence=draw(st.sampled_from(["interval", "point"])),
    )
    return Case(section, tuple(rows))


def shifted(measured: Measurement, by: float) -> Measurement:
    ends = {name: getattr(measured, name) for name in ("value", "low", "high")}
    return measured.model_copy(update={name: None if end is None else end + by for name, end in ends.items()})


def worse_row(row: Comparison, by: float) -> Comparison:
    """The same measurement of a model that is worse by so much: its value, its change, and both intervals."""
    signed = by if METRICS[row.metric] == "lower" else -by
    return row.model_copy(update={"tuned": shifted(row.tuned, signed), "delta": shifted(row.delta, signed)})


@settings(max_examples=400, deadline=None)
@given(case=cases(), which=st.integers(0, 5), by=steps)
def test_a_worse_measurement_never_gets_a_better_verdict(case: Case, which: int, by: float) -> None:
    assume(case.rows)
    index = which % len(case.rows)
    worse = worse_row(case.rows[index], by)
    # `max` on more-is-better (and `min` on less) asks for the opposite; a score of 0 by accident is not worse, it is
    # a benchmark that broke. Neither is what this is about.
    wrong_way = {"higher": "max", "lower": "min"}[METRICS[worse.metric]]
    assume(all(rule.metric != worse.metric or getattr(rule, wrong_way) is None for rule in case.section.rules))
    assume(why_broken(worse.tuned) is None)
    after = Case(case.section, (*case.rows[:index], worse, *case.rows[index + 1 :]))
    assert RANK[after.verdict()] <= RANK[case.verdict()]


@settings(max_examples=500, deadline=None)
@given(
    row=comparisons("bench.gsm8k"), kind=st.sampled_from(["min", "min_delta", "max_regression"]), limit=steps, by=steps,
    evidence=st.sampled_from(["interval", "point"]),
)  # fmt: skip
def test_one_rule_on_one_number_is_monotone(row: Comparison, kind: str, limit: float, by: float, evidence: Any) -> None:
    assume(row.tuned.status == "measured" and row.tuned.n >= 20 and not row.tuned.subsampled)
    assume(not nothing_to_lose(row.base, row.tuned))  # two zeros are no evidence, and a lower score than 0 is none
    section = GateSection(rules=[GateRule(metric="bench.gsm8k", **{kind: limit})], evidence=evidence)
    before, after = (Case(section, (found,)).verdict() for found in (row, worse_row(row, by)))
    assert RANK[after] <= RANK[before]


@settings(max_examples=300, deadline=None)
@given(case=cases(), which=st.integers(0, 5), how=st.sampled_from(["gone", "failed", "few", "subsampled", "no value"]))
def test_missing_evidence_never_passes(case: Case, which: int, how: str) -> None:
    """Evidence that goes never turns into a PASS, and a PASS that needs it is lost."""
    assume(case.rows)
    index = which % len(case.rows)
    row = case.rows[index]
    changes = {"failed": {"status": "failed"}, "few": {"n": 3}, "subsampled": {"subsampled": True}}
    sides = {
        side: getattr(row, side).model_copy(update=changes.get(how, {"value": None}))
        for side in ("base", "tuned", "delta")
    }
    left = (*case.rows[:index], *(() if how == "gone" else (row.model_copy(update=sides),)), *case.rows[index + 1 :])
    after = Case(case.section, left).verdict()
    asked = [
        rule
        for rule in case.section.rules
        if rule.required and (rule.metric, rule.slice) == (row.metric, row.tuned.slice)
    ]  # fmt: skip
    if asked or (row.tuned.slice == "all" and row.metric in case.section.required_metrics):
        assert after != "PASS"
    if row.tuned.slice == "all" or how != "gone":  # no report can tell a slice that never was from one that is gone
        assert not (after == "PASS" and case.verdict() == "INCONCLUSIVE")


@settings(max_examples=200, deadline=None)
@given(case=cases(), data=st.data())
def test_order_of_rules_and_rows_does_not_matter(case: Case, data: st.DataObject) -> None:
    section = case.section
    mixed = section.model_copy(
        update={
            "rules": data.draw(st.permutations(section.rules)),
            "required_metrics": data.draw(st.permutations(section.required_metrics)),
        }
    )
    rows = tuple(data.draw(st.permutations(case.rows)))
    first, second = judge_rules(section, report_of(case.rows)), judge_rules(mixed, report_of(rows))
    assert first[0] == second[0]

    def by_content(results: tuple[Any, ...]) -> list[str]:
        return sorted(result.model_dump_json() for result in results)

    assert by_content(first[1]) == by_content(second[1])


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_the_verdict_is_what_its_rules_say(case: Case) -> None:
    verdict, results = judge_rules(case.section, report_of(case.rows))
    assert (verdict == "FAIL") == any(result.verdict == "FAIL" for result in results)
    if verdict == "PASS":
        assert not any(result.holds_back for result in results)
        assert any(result.verdict == "PASS" and result.margin is not None for result in results)
    for result in results:
        if result.margin is not None:
            assert (result.margin >= 0) == (result.verdict == "PASS"), result
        assert (result.next_action is None) == (result.verdict == "PASS")
