"""Rules and a report -> a decision. Nothing is read or written; the same report always gets the same verdict.

What was not measured, failed, has too few items or is not a finite number is INCONCLUSIVE, never a pass.
"""

from __future__ import annotations

import math

from halo_forge.artifacts import Comparison, EvalReport, GateDecision, Measurement, RuleResult, Verdict
from halo_forge.config.schema import Config, GateSection
from halo_forge.errors import ConfigError, ConfigProblem
from halo_forge.gate import words
from halo_forge.gate.bounds import Bound, bounds_of, judge_margin, margin_of
from halo_forge.gate.rules import KNOWN_METRICS, is_known, unknown_metric
from halo_forge.runs import provenance, sha256_json


def decide(config: Config, report: EvalReport, report_sha256: str) -> GateDecision:
    """The gate's verdict on an evaluation, with a reason for every bound of every rule.

    report_sha256  hash of the report's file: the decision is bound to it
    Raises ConfigError when a rule names a metric that neither exists nor is in the report. Pure but for the time and
    code version in the stamp; `judge_rules` is pure.
    """
    verdict, results = judge_rules(config.gate, report)
    return GateDecision(
        provenance=provenance(sha256_json(config.to_dict()), {"eval/report.json": report_sha256}),
        verdict=verdict,
        rules=results,
        weights_sha256=report.weights_sha256,
        report_sha256=report_sha256,
    )


def judge_rules(section: GateSection, report: EvalReport) -> tuple[Verdict, tuple[RuleResult, ...]]:
    """(verdict, a result per bound): any FAIL is a FAIL, else any INCONCLUSIVE is INCONCLUSIVE, else PASS."""
    comparisons = {row.metric: row for row in report.comparisons if row.tuned.slice == "all"}
    known = KNOWN_METRICS | comparisons.keys()
    unknown = [rule.metric for rule in section.rules if not is_known(rule.metric, known)]
    if unknown:
        raise ConfigError(
            [ConfigProblem(message=unknown_metric(name, known), where="gate.rules") for name in unknown]
        )  # fmt: skip
    results = tuple(
        judge_bound(bound, comparisons.get(bound.metric), section, report.confidence)
        for rule in section.rules
        for bound in bounds_of(rule)
    )
    if not results:
        return "INCONCLUSIVE", (words.no_rules(),)
    verdicts = {result.verdict for result in results}
    verdict: Verdict = "FAIL" if "FAIL" in verdicts else "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"
    return verdict, results


def judge_bound(bound: Bound, row: Comparison | None, section: GateSection, confidence: float) -> RuleResult:
    """One bound against the comparison of its metric (None: the report does not have it)."""
    rule = words.rule_in_words(bound.metric, bound.kind, bound.limit)
    if row is None:
        return _undecided(bound, rule, words.missing(bound.metric, None), "not in the report", None)
    measured = row.delta if bound.kind == "min_delta" else row.tuned
    sides = (row.base, row.tuned, row.delta) if bound.kind == "min_delta" else (row.tuned,)
    problems = [_why_no_number(side) for side in sides] + [_why_not_enough(bound, measured, section)]
    problem = next((problem for problem in problems if problem is not None), None)
    evidence = words.evidence(row, bound.kind, confidence)
    if problem is not None:
        return _undecided(bound, rule, problem, evidence, words.next_measurement(bound.metric, measured, section))
    margin = margin_of(bound, measured)
    verdict = judge_margin(margin, section.evidence)
    return RuleResult(
        rule=rule,
        metric=bound.metric,
        verdict=verdict,
        reason=words.reason(bound, row, verdict, section.evidence, confidence),
        evidence=evidence,
        next_action=words.next_action(bound, measured, margin, verdict),
    )


def _undecided(bound: Bound, rule: str, reason: str, evidence: str, action: str | None) -> RuleResult:
    return RuleResult(
        rule=rule,
        metric=bound.metric,
        verdict="INCONCLUSIVE",
        reason=reason,
        evidence=evidence,
        next_action=action or words.next_measurement(bound.metric, None, None),
    )


def _why_no_number(measured: Measurement) -> str | None:
    if measured.status != "measured" or measured.value is None:
        return words.missing(measured.metric, measured)
    if not math.isfinite(measured.value):
        return f"{measured.metric} is {measured.value}, which is no number to judge by"
    return None


def _why_not_enough(bound: Bound, measured: Measurement, section: GateSection) -> str | None:
    """Why this number decides nothing, or None."""
    name = bound.metric
    if bound.kind == "min_delta" and measured.direction == "none":
        return f"{name} has no better direction, so a change of it is neither good nor bad"
    if measured.n < section.min_items:
        return f"{name} was measured on {measured.n} items; gate.min_items asks for {section.min_items}"
    if section.evidence == "point":
        return None
    if measured.low is None or measured.high is None:
        return f"{name} has no confidence interval: {measured.n} items give none"
    if not (math.isfinite(measured.low) and math.isfinite(measured.high) and measured.low <= measured.high):
        return f"the confidence interval of {name} is {measured.low} to {measured.high}, which is no interval"
    return None
