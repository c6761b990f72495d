"""A run's evaluation -> the gate's decision, with the released version as reference where a rule asks for it.

Composes evaluate, publish and gate as the pipeline does, for the pipeline itself and for `halo-forge gate`, which must
not load torch to read a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halo_forge.artifacts import Comparison, EvalReport, GateDecision, JudgeReport, Measurement, ReleasedComparison
from halo_forge.config.schema import Config
from halo_forge.errors import DataError
from halo_forge.gate import decide
from halo_forge.runs import RunDirectory, read_artifact, sha256_file

JUDGED = "eval/judge.json"
BOOTSTRAP_SAMPLES = 2000


def judge_evaluation(config: Config, run: RunDirectory, report: EvalReport) -> GateDecision:
    """The verdict on the report that lies in `run`. Nothing is written."""
    released = None
    if any(rule.against == "released" for rule in config.gate.rules):
        released = compare_with_released(config, run, report)
    report_sha256 = sha256_file(run.file("eval/report.json"))
    decision = decide(config, with_judge(run, report), report_sha256, released)
    if not run.file(JUDGED).is_file():
        return decision
    stamp = decision.provenance
    inputs = {**stamp.inputs, JUDGED: sha256_file(run.file(JUDGED))}
    return decision.model_copy(update={"provenance": stamp.model_copy(update={"inputs": inputs})})


def with_judge(run: RunDirectory, report: EvalReport) -> EvalReport:
    """The report with the judge's comparison, where there is one of the same weights."""
    if not run.file(JUDGED).is_file():
        return report
    judged = read_artifact(run.file(JUDGED), JudgeReport)
    comparison = judged.comparison
    if judged.provenance.inputs.get(report.answers) != sha256_file(run.file(report.answers)):
        empty = Measurement(
            metric=comparison.metric, value=None, n=0, status="failed", note="eval/judge.json judged other answers"
        )
        comparison = Comparison(metric=comparison.metric, base=empty, tuned=empty, delta=empty)
    return report.model_copy(update={"comparisons": (*report.comparisons, comparison)})


def compare_with_released(config: Config, run: RunDirectory, report: EvalReport) -> ReleasedComparison:
    """This run against the released version of its name, pairwise on the items that both were asked:
    the holdout, suites, benchmarks.

    What stands in the way (no release, another holdout, a damaged file) is told in the record; nothing is raised.
    """
    from halo_forge.publish.released import SCORES, released_scores

    found = released_scores(config, report.weights_sha256)
    record = ReleasedComparison(
        name=found.name, version=found.version, manifest_sha256=found.manifest_sha256, problem=found.problem
    )
    if not found.scores:
        return record
    from halo_forge.evaluate.released import compare_versions, read_scores, why_not_comparable
    from halo_forge.evaluate.statistics import Resampling

    resampling = Resampling(report.confidence, config.evaluation.bootstrap_samples, config.training.seed)
    try:
        own, other = read_scores(*map(run.file, SCORES)), read_scores(*found.scores)
        if own.header.get("weights_sha256") != report.weights_sha256:
            problem = f"{SCORES[0]} of this run is of other weights than its report: evaluate it again"
            return record.model_copy(update={"problem": problem})
        comparisons = compare_versions(own, other, report, resampling)
    except (DataError, ValueError) as error:
        told = f"{error.what} ({error.where})" if isinstance(error, DataError) else str(error)
        return record.model_copy(update={"problem": told})
    return record.model_copy(update={"problem": why_not_comparable(own, other), "comparisons": comparisons})


def pair_versions(before: Sequence[Path], after: Sequence[Path], report: EvalReport) -> dict[str, Comparison]:
    """metric -> two published versions over the items that both kept a score of, `base` the one before. Empty where
    their files cannot be read or hold other kinds of scores. before, after: `publish.released.kept_scores`."""
    from halo_forge.evaluate.released import compare_versions, read_scores
    from halo_forge.evaluate.statistics import Resampling

    resampling = Resampling(report.confidence, BOOTSTRAP_SAMPLES, 0)
    try:
        rows = compare_versions(read_scores(*after), read_scores(*before), report, resampling)
    except (DataError, ValueError):
        return {}
    return {row.metric: row for row in rows if row.tuned.slice == "all"}
