"""Rules and a report -> a decision. Nothing is read or written; the same report always gets the same verdict.

What was not measured, failed, broke, has too few items or is not a finite number is INCONCLUSIVE, never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from halo_forge.artifacts import (
    Cause,
    Comparison,
    EvalReport,
    GateDecision,
    Measurement,
    ReleasedComparison,
    RuleResult,
    Verdict,
)
from halo_forge.config.schema import Config, GateSection
from halo_forge.errors import ConfigError, ConfigProblem
from halo_forge.gate import words
from halo_forge.gate.actions import action_for
from halo_forge.gate.benchmarks import nothing_to_lose, why_broken
from halo_forge.gate.bounds import Bound, bounds_of, deciding_margin, judge_margin, margin_of
from halo_forge.gate.rules import KNOWN_METRICS, is_known, unknown_metric
from halo_forge.metrics import scorer_names
from halo_forge.runs import provenance, sha256_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What rules are held against. `run` is the run directory that next actions name."""

    section: GateSection
    comparisons: tuple[Comparison, ...]
    confidence: float = 0.95
    released: ReleasedComparison | None = None
    run: str = "RUN"

    def rows(self, bound: Bound) -> list[Comparison]:
        """The comparisons of a bound's metric and slice: one, unless something is wrong."""
        released = self.released.comparisons if self.released is not None else ()
        among = released if bound.against == "released" else self.comparisons
        return [row for row in among if (row.metric, row.tuned.slice) == (bound.metric, bound.slice)]

    def slices(self, metric: str | None = None) -> list[str]:
        """Slices of one metric, or of all: a slice that only one metric lacks was lost, not left out."""
        return sorted({row.tuned.slice for row in self.comparisons if metric in (None, row.metric)} - {"all"})


Undecided = tuple[Cause, str]
"""Why a measurement decides nothing: the cause and a sentence."""


def decide(
    config: Config, report: EvalReport, report_sha256: str, released: ReleasedComparison | None = None
) -> GateDecision:
    """The gate's verdict on an evaluation, with a reason for every bound of every rule.

    report_sha256  hash of the report's file: the decision is bound to it
    released       this run against the released version; needed where a rule has `against: released`
    Raises ConfigError when a rule names a metric that neither exists nor is in the report. Pure but for the time and
    code version in the stamp; `judge_rules` is pure.
    """
    also = scorer_names(config.evaluation.scorers)
    verdict, results = judge_rules(config.gate, report, released, config.output.dir, also)
    inputs = {"eval/report.json": report_sha256}
    if released is not None and released.manifest_sha256:
        inputs["released/manifest.json"] = released.manifest_sha256
    return GateDecision(
        provenance=provenance(sha256_json(config.to_dict()), inputs),
        verdict=verdict,
        rules=results,
        weights_sha256=report.weights_sha256,
        report_sha256=report_sha256,
    )


def judge_rules(
    section: GateSection,
    report: EvalReport,
    released: ReleasedComparison | None = None,
    run: str = "RUN",
    also: Collection[str] = (),
) -> tuple[Verdict, tuple[RuleResult, ...]]:
    """(verdict, a result per bound and required metric).

    Any FAIL is a FAIL; else a rule that holds back, or no rule that held, makes it INCONCLUSIVE; else it is a PASS.
    The order of the rules changes the order of the results and nothing else.
    also: metrics that a rule may read though the report lacks them, those of evaluation.scorers.
    """
    _require_known(section, report, also)
    evidence = Evidence(
        section=section, comparisons=report.comparisons, confidence=report.confidence, released=released, run=run
    )
    judged = [
        judge_bound(single, evidence)
        for rule in section.rules
        for bound in bounds_of(rule)
        for single in _over_slices(bound, evidence)
    ]
    if not judged:
        return "INCONCLUSIVE", (words.no_rules(),)
    results = (*judged, *(_required_metric(name, evidence) for name in section.required_metrics))
    if any(result.verdict == "FAIL" for result in results):
        return "FAIL", results
    if any(result.holds_back for result in results) or all(result.verdict != "PASS" for result in judged):
        return "INCONCLUSIVE", results
    return "PASS", results


def _require_known(section: GateSection, report: EvalReport, also: Collection[str]) -> None:
    reported = {row.metric for row in report.comparisons}.union(also)
    problems = [
        ConfigProblem(message=unknown_metric(name, KNOWN_METRICS | reported), where=where)
        for where, names in (
            ("gate.rules", [rule.metric for rule in section.rules]),
            ("gate.required_metrics", section.required_metrics),
        )
        for name in names
        if name not in reported and not is_known(name)
    ]
    if problems:
        raise ConfigError(problems)


def _over_slices(bound: Bound, evidence: Evidence) -> Iterator[Bound]:
    """`each KIND` once for every slice of that kind that the report has of any metric; itself where it has none."""
    kind = bound.slice.removeprefix("each ")
    found = [name for name in evidence.slices() if name.startswith(f"{kind}=")]
    if kind == bound.slice or not found:
        yield bound
    for name in found if kind != bound.slice else ():
        yield replace(bound, slice=name)


def judge_bound(bound: Bound, evidence: Evidence) -> RuleResult:
    """One bound against the comparison of its metric and slice."""
    rows = evidence.rows(bound)
    if len(rows) != 1:
        cause, reason = _why_no_row(bound, evidence, rows)
        return _undecided(bound, evidence, cause, reason, words.evidence_missing(cause))
    row, section = rows[0], evidence.section
    measured = row.delta if bound.is_change else row.tuned
    told = words.evidence(row, bound, evidence.confidence)
    problem = _why_undecided(bound, row, measured, section)
    if problem is not None:
        return _undecided(bound, evidence, *problem, told)
    margin, is_budget = margin_of(bound, measured), bound.kind == "max_regression"
    verdict = judge_margin(margin, section.evidence, is_budget=is_budget)
    if verdict == "PASS" and bound.is_change and nothing_to_lose(row.base, row.tuned):
        return _undecided(bound, evidence, "broken", words.nothing_to_lose(bound), told)
    cause = _cause(bound, verdict)
    action = action_for(bound.metric, cause, evidence.run, bound.against)
    return RuleResult(
        rule=words.rule_in_words(bound),
        metric=bound.metric,
        slice=bound.slice,
        verdict=verdict,
        cause=cause,
        reason=words.reason(bound, row, verdict, section.evidence, evidence.confidence),
        evidence=told,
        margin=deciding_margin(margin, verdict, section.evidence, is_budget=is_budget),
        next_action=words.next_words(action, margin, measured.n, cause),
        command=action.command if action else None,
        blocking=bound.required,
    )


def _cause(bound: Bound, verdict: Verdict) -> Cause:
    if verdict == "PASS":
        return "held"
    if verdict == "INCONCLUSIVE":
        return "across"
    if bound.is_change:
        return "no_gain" if bound.least_gain > 0 else "regressed"
    return "above" if bound.kind == "max" else "below"


def _undecided(bound: Bound, evidence: Evidence, cause: Cause, reason: str, told: str) -> RuleResult:
    action = action_for(bound.metric, cause, evidence.run)
    return RuleResult(
        rule=words.rule_in_words(bound),
        metric=bound.metric,
        slice=bound.slice,
        verdict="INCONCLUSIVE",
        cause=cause,
        reason=reason,
        evidence=told,
        next_action=words.next_measurement(bound.metric, cause, action, evidence.section),
        command=action.command if action else None,
        blocking=bound.required and cause != "no_release",
    )


def _required_metric(name: str, evidence: Evidence) -> RuleResult:
    """A metric that must be there: judged as a bound that every number keeps."""
    bound = Bound(name, "min", -math.inf)
    rows = evidence.rows(bound)
    problem = _why_no_row(bound, evidence, rows) if len(rows) != 1 else None
    problem = problem or _why_no_number(rows[0].tuned) or _why_not_enough(name, rows[0].tuned, evidence.section)
    rule = words.is_measured(name, evidence.section.min_items)
    if problem is not None:
        return _undecided(bound, evidence, *problem, words.evidence_missing(problem[0])).model_copy(
            update={"rule": rule}
        )
    told = words.evidence(rows[0], bound, evidence.confidence)
    return RuleResult(
        rule=rule, metric=name, verdict="PASS", cause="held", reason=f"{name} was measured", evidence=told
    )


# ------------------------------------------------------------------------------------------------ no decision


def _why_no_row(bound: Bound, evidence: Evidence, rows: Sequence[Comparison]) -> Undecided:
    name = bound.metric
    if rows:
        return "failed", f"the report has {name} {len(rows)} times, and nothing says which is meant"
    if bound.against == "released":
        released = evidence.released
        if released is None:
            return "not_comparable", "this run was not compared with the released version"
        if released.version is None:
            return "no_release", f"no version of {released.name} is released yet, so there is none to compare with"
        if released.problem is not None:
            return "not_comparable", f"{released.name} v{released.version} cannot be compared with: {released.problem}"
        both = f"this run and {released.name} v{released.version} have no scores of the same items"
        return "not_comparable", f"{both} for {words.subject(bound)}, so they cannot be compared in pairs"
    if bound.slice == "all":
        return "not_measured", words.missing(name, None)
    there = evidence.slices(name)
    if bound.slice.startswith("each "):
        return "no_slice", f"the report has no slice by {bound.slice.removeprefix('each ')} of {name}"
    near = get_close_matches(bound.slice, there, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(there[:8])}" if there else ""
    return "no_slice", f"the report has no slice {bound.slice!r} of {name}{hint}"


def _why_undecided(bound: Bound, row: Comparison, measured: Measurement, section: GateSection) -> Undecided | None:
    sides = (row.base, row.tuned, row.delta) if bound.is_change else (row.tuned,)
    problems = [_why_no_number(side, is_score=side is not row.delta) for side in sides]
    if bound.is_change and measured.direction == "none":
        message = f"{bound.metric} has no better direction, so a change of it is neither good nor bad"
        problems.append(("no_direction", message))
    problems += [_why_not_enough(words.subject(bound), side, section) for side in sides]
    if section.evidence == "interval" or bound.kind == "max_regression":
        problems.append(_why_no_interval(words.subject(bound), measured))
    return next((problem for problem in problems if problem is not None), None)


def _why_no_number(measured: Measurement, *, is_score: bool = True) -> Undecided | None:
    if measured.status != "measured" or measured.value is None:
        cause: Cause = "failed" if measured.status == "failed" else "not_measured"
        return cause, words.missing(measured.metric, measured)
    if not math.isfinite(measured.value):
        return "not_finite", f"{measured.metric} is {measured.value}, which is no number to judge by"
    broken = why_broken(measured) if is_score else None
    return ("broken", broken) if broken is not None else None


def _why_not_enough(name: str, measured: Measurement, section: GateSection) -> Undecided | None:
    if measured.n < section.min_items:
        return "too_few", f"{name} was measured on {measured.n} items; gate.min_items asks for {section.min_items}"
    if measured.subsampled:
        return "subsampled", f"{name} was measured on {measured.n} of its items only, which decides nothing by itself"
    return None


def _why_no_interval(name: str, measured: Measurement) -> Undecided | None:
    if measured.low is None or measured.high is None:
        return "too_few", f"{name} has no confidence interval: {measured.n} items give none"
    if not (math.isfinite(measured.low) and math.isfinite(measured.high) and measured.low <= measured.high):
        return (
            "not_finite",
            f"the confidence interval of {name} is {measured.low} to {measured.high}, which is no interval",
        )
    return None
