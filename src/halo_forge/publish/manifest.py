"""The manifest of one released version: every file with its hash, and the run it came from.

Manifests form a chain: each holds the sha256 of the manifest before it, so a version that was changed after a later
one was published is found out even if its own manifest was rewritten to match.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from halo_forge.artifacts import Artifact, GateDecision, PreparedData, Record, Release, Verdict
from halo_forge.errors import DataError
from halo_forge.runs import read_artifact, sha256_file, sha256_json, sha256_tree

MANIFEST_NAME = "manifest.json"
CARD_NAME = "README.md"
# Written here beside the model's own files. They carry times and numbers of versions, so they do not take part in
# "is this the same model?".
RECORD_NAMES = frozenset(
    {
        CARD_NAME,
        MANIFEST_NAME,
        "config.resolved.yaml",
        "data/manifest.json",
        "environment.json",
        "eval/bench/scores.jsonl",
        "eval/report.json",
        "eval/scores.jsonl",
        "gate.json",
        "iteration.json",
        "proof.json",
        "reference.json",
        "trained.json",
    }
)


TOKENIZER_NAMES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    }
)


class FileEntry(Record):
    """`path` is relative to the version directory, with forward slashes."""

    path: str
    sha256: str
    size_bytes: int


class Manifest(Artifact):
    """What a version is and what it was made from. Hashes are sha256 in hex. Those that may be None were not recorded
    by the halo-forge that published the version, or not measured (`base_model_sha256` without a proof).

    template_sha256, base_tokenizer_sha256  what the rows were prepared with (chat.fingerprints)
    tokenizer_files_sha256                  over names and hashes of the tokenizer's files in this version
    base_model_sha256                       over the weights and config.json that the adapter was proven on
    """

    name: str
    version: int
    verdict: Verdict
    forced: bool
    base_model: str
    method: str
    weights_sha256: str  # runs.sha256_tree over the *.safetensors files of the version directory's root
    content_sha256: str
    config: dict[str, Any]
    config_sha256: str
    data_manifest_sha256: str
    split_sha256: dict[str, str]
    gate_sha256: str
    eval_report_sha256: str
    parent_version: int | None
    parent_manifest_sha256: str | None
    files: tuple[FileEntry, ...]
    template_sha256: str | None = None
    base_tokenizer_sha256: str | None = None
    tokenizer_files_sha256: str | None = None
    generation_config_sha256: str | None = None
    base_revision: str | None = None
    base_model_sha256: str | None = None
    environment_sha256: str | None = None
    proof_sha256: str | None = None

    def in_words(self) -> str:
        """What binds this version, in two lines."""
        forced = ", published by force" if self.forced else ""
        return f"Quality gate: {self.verdict}{forced}.\nweights sha256 {self.weights_sha256}, base {self.base_model}"


class VerifyResult(Record):
    """`missing`, `changed` and `extra` name files; `broken` says what contradicts itself in the manifest or breaks the
    chain of manifests. `ok` is true when all four are empty."""

    name: str
    version: int
    ok: bool
    num_files: int
    num_bytes: int
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong, one sentence each."""
        return (
            *(f"missing: {name}" for name in self.missing),
            *(f"changed: {name}" for name in self.changed),
            *(f"not in the manifest: {name}" for name in self.extra),
            *self.broken,
        )


def file_entries(directory: Path) -> tuple[FileEntry, ...]:
    """Every file below `directory` except the manifest itself, sorted by path."""
    entries = []
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory).as_posix()
        if path.is_file() and relative != MANIFEST_NAME:
            entries.append(FileEntry(path=relative, sha256=sha256_file(path), size_bytes=path.stat().st_size))
    return tuple(entries)


def content_sha256(entries: tuple[FileEntry, ...], splits: dict[str, str], decision: GateDecision) -> str:
    """Identity of what is released: the model's bytes, the data splits and what each gate rule said. Independent of
    when it was measured and of the version's number."""
    files = [[entry.path, entry.sha256] for entry in entries if entry.path not in RECORD_NAMES]
    rules = [[rule.rule, rule.verdict] for rule in decision.rules]
    return sha256_json({"files": files, "splits": splits, "verdict": decision.verdict, "rules": rules})


def tokenizer_files_sha256(entries: tuple[FileEntry, ...]) -> str:
    """Over every file that turns text into ids, in the version's root and in tokenizer/."""
    names = [[e.path, e.sha256] for e in entries if e.path.removeprefix("tokenizer/") in TOKENIZER_NAMES]
    return sha256_json(sorted(names))


def read_manifest(version_directory: Path) -> Manifest:
    path = version_directory / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read this version's manifest: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise DataError(
            "this is not the manifest of a released version",
            where=str(path),
            expected=str(error),
            fix="publish the run again; a version is never repaired in place",
        ) from None


def release_of(version_directory: Path, manifest: Manifest) -> Release:
    return Release(
        provenance=manifest.provenance,
        name=manifest.name,
        version=manifest.version,
        path=str(version_directory),
        manifest_sha256=sha256_file(version_directory / MANIFEST_NAME),
        verdict=manifest.verdict,
        forced=manifest.forced,
    )


def verify_files(directory: Path, manifest: Manifest) -> VerifyResult:
    """Hash every file again and hold it against the manifest."""
    missing, changed, broken = [], [], []
    num_bytes = 0
    for entry in manifest.files:
        if not _stays_inside(entry.path):
            broken.append(f"the manifest names a path outside the version: {entry.path!r}")
            continue
        path = directory / entry.path
        # A link could point anywhere and change without touching this directory, so it never counts as the file.
        if _has_link(directory, entry.path):
            changed.append(entry.path)
        elif not path.is_file():
            missing.append(entry.path)
        elif path.stat().st_size != entry.size_bytes or sha256_file(path) != entry.sha256:
            changed.append(entry.path)
        else:
            num_bytes += entry.size_bytes
    listed = {entry.path for entry in manifest.files} | {MANIFEST_NAME}
    extra = [name for name in _names_below(directory) if name not in listed]
    if not missing and not changed:
        broken.extend(_broken_bindings(directory, manifest))
    return VerifyResult(
        name=manifest.name,
        version=manifest.version,
        ok=not (missing or changed or extra or broken),
        num_files=len(manifest.files),
        num_bytes=num_bytes,
        missing=tuple(missing),
        changed=tuple(changed),
        extra=tuple(extra),
        broken=tuple(broken),
    )


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _has_link(directory: Path, name: str) -> bool:
    current = directory
    for part in PurePosixPath(name).parts:
        current = current / part
        if current.is_symlink():
            return True
    return False


def _names_below(directory: Path) -> list[str]:
    names: list[str] = []
    for parent, folders, files in os.walk(directory, followlinks=False):
        links = [folder for folder in folders if (Path(parent) / folder).is_symlink()]
        names.extend((Path(parent) / name).relative_to(directory).as_posix() for name in [*files, *links])
    return sorted(names)


def _broken_bindings(directory: Path, manifest: Manifest) -> list[str]:
    hash_of = {entry.path: entry.sha256 for entry in manifest.files}
    weights = [path for path in hash_of if "/" not in path and path.endswith(".safetensors")]
    checks: dict[str, tuple[object, object]] = {
        "weights_sha256": (manifest.weights_sha256, sha256_tree(directory, names=weights)),
        "gate_sha256": (manifest.gate_sha256, hash_of.get("gate.json")),
        "eval_report_sha256": (manifest.eval_report_sha256, hash_of.get("eval/report.json")),
        "data_manifest_sha256": (manifest.data_manifest_sha256, hash_of.get("data/manifest.json")),
        "config_sha256": (manifest.config_sha256, sha256_json(manifest.config)),
    }
    recorded_since = {
        "tokenizer_files_sha256": (manifest.tokenizer_files_sha256, tokenizer_files_sha256(manifest.files)),
        "generation_config_sha256": (manifest.generation_config_sha256, hash_of.get("generation_config.json")),
        "environment_sha256": (manifest.environment_sha256, hash_of.get("environment.json")),
        "proof_sha256": (manifest.proof_sha256, hash_of.get("proof.json")),
    }
    if manifest.environment_sha256 is not None:  # older versions hold none of these
        checks |= recorded_since
    checks |= _data_bindings(directory, manifest) if "data/manifest.json" in hash_of else {}
    if "gate.json" in hash_of:
        decision = read_artifact(directory / "gate.json", GateDecision)
        content = content_sha256(manifest.files, manifest.split_sha256, decision)
        checks["content_sha256"] = (manifest.content_sha256, content)
        checks["verdict"] = (manifest.verdict, decision.verdict)
    return [
        f"{field} does not match the files of this version"
        for field, (stated, found) in checks.items()
        if stated != found
    ]


def _data_bindings(directory: Path, manifest: Manifest) -> dict[str, tuple[object, object]]:
    prepared = read_artifact(directory / "data" / "manifest.json", PreparedData)
    splits = {name: split.sha256 for name, split in prepared.splits.items()}
    pairs: dict[str, tuple[object, object]] = {"split_sha256": (manifest.split_sha256, splits)}
    if manifest.template_sha256 is not None:
        pairs["template_sha256"] = (manifest.template_sha256, prepared.template_sha256)
        pairs["base_tokenizer_sha256"] = (manifest.base_tokenizer_sha256, prepared.tokenizer_sha256)
    return pairs
