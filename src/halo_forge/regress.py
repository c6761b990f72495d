"""A released model measured on its holdout once more, in this environment, and held against its released numbers."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from halo_forge.artifacts import EvalReport, PreparedData, TrainedModel
from halo_forge.config import Config, load_config
from halo_forge.errors import DataError
from halo_forge.evaluate import evaluate
from halo_forge.models.compute import recall_compute
from halo_forge.models.new_tokens import tokenizer_of
from halo_forge.monitor.records import RegressionReport
from halo_forge.monitor.regression import Answers, compare_with_release, read_answers
from halo_forge.monitor.watch import find_reference
from halo_forge.pipeline import model_pair, record_look
from halo_forge.publish.weights import weights_sha256
from halo_forge.runs import Notify, RunDirectory, StopSignal, read_artifact, sha256_file, sha256_json, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedRun:
    """A version, the run directory that still has its holdout, and the records of both."""

    version: Path
    run: Path
    release: str | None
    config: Config
    trained: TrainedModel
    prepared: PreparedData
    report: EvalReport

    def facts(self) -> dict[str, object]:
        return {"release": self.release, "version": str(self.version), "run": str(self.run),
                "num_items": self.report.num_items, "weights_sha256": self.report.weights_sha256}  # fmt: skip

    def words(self) -> str:
        return (
            f"{self.release or self.version}: weights and holdout are as released; "
            f"{self.report.num_items} items of {self.run} would be measured again. Nothing was measured."
        )


def find_release(
    release_or_run: Path, run: Path | None = None, overrides: list[str] | tuple[str, ...] = ()
) -> ReleasedRun:
    """The version and its run, checked: the weights are the released ones and the holdout is the one of the release.

    run  where the run directory is now; default: itself, or the directory that the version's configuration names
    Raises DataError where something is missing or was changed.
    """
    reference_path, release = find_reference(release_or_run)
    version = reference_path.parent
    resolved = load_config(version / "config.resolved.yaml", overrides=list(overrides)).config
    if run is None:
        is_run = (release_or_run / "release.json").is_file()
        run = release_or_run if is_run else Path(resolved.output.dir)
    found = ReleasedRun(
        version=version,
        run=run,
        release=release,
        config=resolved,
        trained=read_artifact(version / "trained.json", TrainedModel),
        prepared=read_artifact(version / "data/manifest.json", PreparedData),
        report=read_artifact(version / "eval/report.json", EvalReport),
    )
    if weights_sha256(version) != found.report.weights_sha256:
        raise DataError(
            "the weights of this version are not those that were released",
            where=str(version),
            expected=f"sha256 {found.report.weights_sha256[:12]}",
            fix="halo-forge models verify NAME@VERSION",
        )
    holdout = _holdout(found)
    if not holdout.is_file() or sha256_file(holdout) != found.prepared.splits["holdout"].sha256:
        raise DataError(
            "the holdout of this release is not here as it was",
            where=str(holdout),
            expected="the run directory that the version was published from",
            fix="name it with --run RUN",
        )
    return found


def _holdout(found: ReleasedRun) -> Path:
    return found.run / found.prepared.splits["holdout"].conversations


def regress(found: ReleasedRun, notify: Notify = silent) -> RegressionReport:
    """Evaluate base and released model again, in a directory of their own: no record of the run or the version is
    touched, and no answer kept from before is used. Counted as a look at the holdout."""
    with StopSignal() as stop, tempfile.TemporaryDirectory() as scratch, RunDirectory.open(Path(scratch)) as directory:
        holdout = found.prepared.splits["holdout"].conversations
        directory.file(holdout).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_holdout(found), directory.file(holdout))
        compute = recall_compute(RunDirectory(found.run), found.config.training.bf16, notify)
        trained = found.trained.model_copy(update={"final_model": str(found.version.absolute())})
        tokenizer = tokenizer_of(found.config.model, notify)
        pair = model_pair(found.config, directory, trained, compute, notify)
        now = evaluate(found.config, directory, found.prepared, trained, pair, tokenizer, notify, stop.check)
        pair.close()
        record_look(found.prepared, RunDirectory(found.run), notify)
        answers = _both_answers(found, directory)
        return compare_with_release(
            found.report, now, answers, found.config.monitor.max_regression, found.release,
            sha256_json(found.config.to_dict()),
        )  # fmt: skip


def _measured(report: EvalReport) -> tuple[object, ...]:
    return report.weights_sha256, report.holdout_sha256, report.decoding, report.comparisons


def _both_answers(found: ReleasedRun, directory: RunDirectory) -> tuple[Answers, Answers] | None:
    """Answers of the release and of now; None where the run was evaluated anew since and has other ones."""
    path = found.run / "eval/report.json"
    if not path.is_file() or _measured(read_artifact(path, EvalReport)) != _measured(found.report):
        return None
    before, after = read_answers(found.run / found.report.answers), read_answers(directory.file(found.report.answers))
    return (before, after) if before is not None and after is not None else None
