"""Publish: the one entry of this room. Check that everything belongs together, stage, hash, claim a version.

What is hashed is the staged copy, never the original: whatever changes in the run while it is published, the bytes
in the registry are the bytes that the gate judged, or there is no version.
"""

from __future__ import annotations

import functools
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from halo_forge.artifacts import EvalReport, GateDecision, PreparedData, Release, TrainedModel
from halo_forge.config.schema import Config
from halo_forge.errors import DataError, ExitCode, HaloForgeError
from halo_forge.publish.card import CardFacts, render_card
from halo_forge.publish.history import LATEST, complete_versions, read_alias, record_publication, taken_versions
from halo_forge.publish.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    content_sha256,
    file_entries,
    read_manifest,
    release_of,
    tokenizer_files_sha256,
)
from halo_forge.publish.proof import NOT_PROVEN, PROOF_NAME, Proof, Prove
from halo_forge.publish.reference import build_reference
from halo_forge.publish.registry import CANDIDATE, RELEASED, release_name
from halo_forge.publish.released import SCORES
from halo_forge.publish.store import claim, share_files, staging_directory, storage_errors
from halo_forge.publish.weights import WeightFacts, check_weights, require_no_pickle, weights_sha256
from halo_forge.runs import (
    Notify,
    RunDirectory,
    provenance,
    sha256_bytes,
    sha256_file,
    sha256_json,
    silent,
    write_artifact,
    write_atomic,
    write_json,
)


class PublishRefused(HaloForgeError):
    """The run may not become a version. exit_code is 4 after FAIL, 5 after INCONCLUSIVE, 1 where records or bytes
    do not belong together."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
        exit_code: ExitCode = ExitCode.RUN_FAILED,
    ) -> None:
        super().__init__(what, where=where, expected=expected, fix=fix)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecords:
    """The records of one run, already checked against each other."""

    config: Config
    trained: TrainedModel
    report: EvalReport
    decision: GateDecision
    prepared: PreparedData


def publish(
    config: Config,
    run: RunDirectory,
    trained: TrainedModel,
    report: EvalReport,
    decision: GateDecision,
    prepared: PreparedData,
    notify: Notify = silent,
    prove: Prove | None = None,
) -> Release:
    """Make the run's final model a version of `<publish.registry>/<name>/` and write release.json into the run.

    prove  how the staged bytes are held against the trained model (`proof.prove_reload`); None publishes unproven, and
           the version's proof.json says so
    Publishing the same content again returns the version that holds it. Raises PublishRefused (no PASS and not
    forced; hashes that do not agree; bytes that answer otherwise than the trained model, also when forced), DataError
    (weights that do not load, are not finite, or a pickle) and HaloForgeError (disk full, registry not writable); none
    of them leaves a part of a version behind.
    """
    name = release_name(config)
    records = RunRecords(config=config, trained=trained, report=report, decision=decision, prepared=prepared)
    require_publishable(decision, force=config.publish.force)
    require_one_story(records)
    home = Path(config.publish.registry) / name
    with storage_errors(home):
        release, is_new = _stage_and_claim(records, run, home, notify, prove)
        # A version that did not pass is a candidate, and is never called released.
        aliases = [CANDIDATE] if release.forced else [CANDIDATE, RELEASED]
        record_publication(home, release.version, aliases, note="forced" if release.forced else "")
    with storage_errors(run.path):
        write_artifact(run.file("release.json"), release)
    forced = ", forced: the gate did not pass" if release.forced else ""
    verb = "published" if is_new else "already published, nothing new to release:"
    notify("note", {"text": f"{verb} {release.name} v{release.version}{forced}"})
    return release


# ---------------------------------------------------------------------------------------------- checks


def require_publishable(decision: GateDecision, *, force: bool) -> None:
    """Only a PASS is published, unless forced. A PASS over a rule that did not pass is no PASS."""
    worst = [rule for rule in decision.rules if rule.holds_back]
    if decision.verdict == "PASS" and worst:
        raise PublishRefused(
            f"the gate says PASS, but its rule {worst[0].rule!r} says {worst[0].verdict}",
            where="gate.json",
            fix="run the gate again: `halo-forge gate`",
        )
    if decision.verdict == "PASS" or force:
        return
    failed = decision.verdict == "FAIL"
    raise PublishRefused(
        f"the gate's verdict is {decision.verdict}: {worst[0].reason if worst else 'no rule passed'}",
        where="gate.json",
        expected="PASS",
        fix=(worst[0].next_action if worst else None)
        or "train again, or publish with publish.force: true, which marks the version as forced",
        exit_code=ExitCode.GATE_FAILED if failed else ExitCode.EVIDENCE_INSUFFICIENT,
    )


def record_sha256(record: EvalReport | GateDecision | PreparedData | TrainedModel) -> str:
    """Hash of a record as runs.write_artifact puts it on disk."""
    return sha256_bytes((record.model_dump_json(indent=2) + "\n").encode())


def require_one_story(records: RunRecords) -> None:
    """The gate judged this report, the report measured these weights, and on this run's holdout."""
    trained, report, decision = records.trained, records.report, records.decision
    holdout = records.prepared.splits.get("holdout")
    pairs = [
        ("the gate judged other weights than were trained", decision.weights_sha256, trained.weights_sha256),
        ("the evaluation measured other weights than the gate judged", report.weights_sha256, decision.weights_sha256),
        ("the gate judged another evaluation report", decision.report_sha256, record_sha256(report)),
        (
            "the evaluation used another holdout than this run's",
            report.holdout_sha256,
            holdout.sha256 if holdout else report.holdout_sha256,
        ),
    ]
    for what, found, expected in pairs:
        if found != expected:
            raise PublishRefused(
                what,
                where="gate.json" if "gate judged" in what else "eval/report.json",
                expected=f"sha256 {expected[:12]}, found {found[:12]}",
                fix="evaluate and judge this run again: `halo-forge run CONFIG`",
            )


# ---------------------------------------------------------------------------------------------- staging


def _stage_and_claim(
    records: RunRecords, run: RunDirectory, home: Path, notify: Notify, prove: Prove | None
) -> tuple[Release, bool]:
    with staging_directory(home) as staging:
        _copy_model(final_model_directory(run, records.trained), staging)
        require_no_pickle(staging)
        facts = check_weights(staging)
        found = weights_sha256(staging)
        if found != records.decision.weights_sha256:
            raise PublishRefused(
                "the weights on disk are not the ones the gate judged",
                where=str(run.file(records.trained.final_model)),
                expected=f"sha256 {records.decision.weights_sha256[:12]}, found {found[:12]}",
                fix="evaluate and judge these weights, or train the run again",
            )
        _write_records(records, run, staging)
        entries = file_entries(staging)
        content = content_sha256(entries, split_hashes(records.prepared), records.decision)
        existing = _version_with(home, content, notify)
        if existing is not None:
            return existing, False
        proof = _proven(records, run, staging, notify, prove)
        write_json(staging / PROOF_NAME, proof.model_dump(mode="json"))
        share_files(home.parent, staging, entries)
        while True:
            version = _next_version(home)  # before the look: whoever takes a number after it makes the claim fail
            existing = _version_with(home, content, notify)
            if existing is not None:
                return existing, False
            _write_card_and_manifest(records, facts, staging, home, version, proof)
            if claim(staging, home, version):
                directory = home / f"v{version}"
                return release_of(directory, read_manifest(directory)), True


def _proven(records: RunRecords, run: RunDirectory, staging: Path, notify: Notify, prove: Prove | None) -> Proof:
    """The proof of the staged bytes; the evidence of a refusal is kept in the run."""
    if prove is None:
        return NOT_PROVEN
    proof = prove(staging, records.config, run, records.trained, records.prepared)
    write_json(run.file("publish_proof.json"), proof.model_dump(mode="json"))
    if not proof.ok:
        wrong = proof.mismatches[0]
        raise PublishRefused(
            f"what would be published is not the model that was trained: {wrong.what}",
            where=str(run.file("publish_proof.json")),
            expected=f"{wrong.expected}, found {wrong.found}",
            fix="leave final_model/ as training wrote it: train the run again, or restore the file that was changed",
        )
    words = f"{proof.num_identical} of {proof.num_prompts} golden prompts answered token for token the same"
    notify("note", {"text": f"the staged version was loaded in a fresh process: {words}"})
    return proof


def _next_version(home: Path) -> int:
    """One more than any number seen; the pointer counts too, so that a deleted newest version is not reissued."""
    return max([0, read_alias(home, LATEST) or 0, *taken_versions(home)]) + 1


def final_model_directory(run: RunDirectory, trained: TrainedModel) -> Path:
    relative = PurePosixPath(trained.final_model)
    directory = run.file(trained.final_model)
    if relative.is_absolute() or ".." in relative.parts or not directory.is_dir():
        raise DataError(
            "the run has no final model",
            where=str(directory),
            expected="a directory inside the run",
            fix="train the run to its end: `halo-forge run CONFIG`",
        )
    return directory


def _copy_model(source: Path, staging: Path) -> None:
    for path in sorted(source.rglob("*")):
        target = staging / path.relative_to(source)
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise DataError("only plain files are published", where=str(path), fix="replace the link by the file")
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif target not in (staging / CARD_NAME, staging / MANIFEST_NAME):  # both are written here, for this version
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _write_records(records: RunRecords, run: RunDirectory, staging: Path) -> None:
    """The run's records under the names that they have in the run, so that whoever reads one can read the other."""
    write_artifact(staging / "gate.json", records.decision)
    write_artifact(staging / "trained.json", records.trained)
    write_artifact(staging / "eval" / "report.json", records.report)
    write_artifact(staging / "data" / "manifest.json", records.prepared)
    for name in (*SCORES, "iteration.json"):  # what a run has of these
        if run.file(name).is_file():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.file(name), staging / name)
    write_json(staging / "environment.json", environment())
    reference = build_reference(run.path, records.report, records.prepared, records.config.monitor)
    write_json(staging / "reference.json", reference)
    resolved = run.file("config.resolved.yaml")
    if resolved.is_file():
        shutil.copyfile(resolved, staging / resolved.name)
    else:
        write_atomic(staging / resolved.name, yaml.safe_dump(records.config.to_dict(), sort_keys=False))


@functools.cache
def environment() -> dict[str, Any]:
    """The software that published: every installed package with its version, the interpreter and the platform."""
    # The names of the directories say it; importlib.metadata would parse every package's description for it.
    installed = [path.name for entry in sys.path for path in Path(entry).glob("*.dist-info")]
    parts = (name.removesuffix(".dist-info").rpartition("-") for name in installed)
    packages = {name.lower(): version for name, _, version in parts}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items())),
    }


def _version_with(home: Path, content: str, notify: Notify) -> Release | None:
    for version in complete_versions(home):
        directory = home / f"v{version}"
        try:
            manifest = read_manifest(directory)
        except HaloForgeError as error:
            notify("note", {"text": f"v{version} of this model cannot be read: {error.what}"})
            continue
        if manifest.content_sha256 == content:
            return release_of(directory, manifest)
    return None


def _write_card_and_manifest(
    records: RunRecords, facts: WeightFacts, staging: Path, home: Path, version: int, proof: Proof
) -> None:
    card = CardFacts(
        name=home.name,
        version=version,
        forced=_is_forced(records),
        config=records.config,
        trained=records.trained,
        report=records.report,
        decision=records.decision,
        prepared=records.prepared,
        weights=facts,
    )
    write_atomic(staging / CARD_NAME, render_card(card))
    manifest = _manifest(records, file_entries(staging), home, version)
    manifest = manifest.model_copy(update={"base_model_sha256": proof.base_model_sha256})
    write_artifact(staging / MANIFEST_NAME, manifest)


def split_hashes(prepared: PreparedData) -> dict[str, str]:
    return {name: split.sha256 for name, split in prepared.splits.items()}


def _is_forced(records: RunRecords) -> bool:
    return records.decision.verdict != "PASS"


def _manifest(records: RunRecords, entries: tuple[FileEntry, ...], home: Path, version: int) -> Manifest:
    hash_of = {entry.path: entry.sha256 for entry in entries}
    config = records.config.to_dict()
    parent = max(complete_versions(home), default=None)
    config_sha256 = sha256_json(config)
    inputs = {
        "weights": records.decision.weights_sha256,
        "data/manifest.json": hash_of["data/manifest.json"],
        "eval/report.json": hash_of["eval/report.json"],
        "gate.json": hash_of["gate.json"],
        "trained.json": hash_of["trained.json"],
    }
    return Manifest(
        provenance=provenance(config_sha256, inputs),
        name=home.name,
        version=version,
        verdict=records.decision.verdict,
        forced=_is_forced(records),
        base_model=records.trained.model_name,
        method=records.trained.method,
        weights_sha256=records.decision.weights_sha256,
        content_sha256=content_sha256(entries, split_hashes(records.prepared), records.decision),
        config=config,
        config_sha256=config_sha256,
        data_manifest_sha256=hash_of["data/manifest.json"],
        split_sha256=split_hashes(records.prepared),
        gate_sha256=hash_of["gate.json"],
        eval_report_sha256=hash_of["eval/report.json"],
        parent_version=parent,
        parent_manifest_sha256=sha256_file(home / f"v{parent}" / MANIFEST_NAME) if parent else None,
        files=entries,
        template_sha256=records.prepared.template_sha256,
        base_tokenizer_sha256=records.prepared.tokenizer_sha256,
        tokenizer_files_sha256=tokenizer_files_sha256(entries),
        generation_config_sha256=hash_of.get("generation_config.json"),
        base_revision=records.config.model.revision,
        environment_sha256=hash_of["environment.json"],
        proof_sha256=hash_of[PROOF_NAME],
    )
