"""A run's evaluation -> the gate's decision, with the released version as reference where a rule asks for it.

Composes evaluate, publish and gate as the pipeline does, for the pipeline itself and for `halo-forge gate`, which must
not load torch to read a report.
"""

from __future__ import annotations

from halo_forge.artifacts import EvalReport, GateDecision, ReleasedComparison
from halo_forge.config.schema import Config
from halo_forge.errors import DataError
from halo_forge.gate import decide
from halo_forge.runs import RunDirectory, sha256_file


def judge_evaluation(config: Config, run: RunDirectory, report: EvalReport) -> GateDecision:
    """The verdict on the report that lies in `run`. Nothing is written."""
    released = None
    if any(rule.against == "released" for rule in config.gate.rules):
        released = compare_with_released(config, run, report)
    return decide(config, report, sha256_file(run.file("eval/report.json")), released)


def compare_with_released(config: Config, run: RunDirectory, report: EvalReport) -> ReleasedComparison:
    """This run against the released version of its name, pairwise on the holdout that both were evaluated on.

    What stands in the way (no release, another holdout, a damaged file) is told in the record; nothing is raised.
    """
    from halo_forge.publish.released import released_scores

    found = released_scores(config, report.weights_sha256)
    record = ReleasedComparison(
        name=found.name, version=found.version, manifest_sha256=found.manifest_sha256, problem=found.problem
    )
    if found.scores is None:
        return record
    from halo_forge.evaluate.item_scores import SCORES
    from halo_forge.evaluate.released import compare_versions, read_scores, why_not_comparable
    from halo_forge.evaluate.statistics import Resampling

    try:
        own, other = read_scores(run.file(SCORES)), read_scores(found.scores)
    except DataError as error:
        return record.model_copy(update={"problem": f"{error.what} ({error.where})"})
    problem = why_not_comparable(own, other, report)
    if problem is not None:
        return record.model_copy(update={"problem": problem})
    resampling = Resampling(report.confidence, config.evaluation.bootstrap_samples, config.training.seed)
    return record.model_copy(update={"comparisons": compare_versions(own, other, report, resampling)})
