"""The version that a new one is held against: where it is, and the scores that it kept of each item."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from halo_forge.config.schema import Config
from halo_forge.errors import HaloForgeError
from halo_forge.publish.history import complete_versions, read_alias
from halo_forge.publish.manifest import MANIFEST_NAME, Manifest, read_manifest
from halo_forge.publish.registry import RELEASED, release_name
from halo_forge.runs import sha256_file

SCORES = ("eval/scores.jsonl", "eval/bench/scores.jsonl")
"""Of the holdout and the suites, and of benchmarks; a version has those that its run had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedScores:
    """`version` None: no other version is there. `scores` empty: the version keeps none that can be used; `problem`
    says why."""

    name: str
    version: int | None
    manifest_sha256: str = ""
    scores: tuple[Path, ...] = ()
    problem: str | None = None


def released_scores(config: Config, weights_sha256: str) -> ReleasedScores:
    """The scores of the released version: the one that the alias `released` names, else the newest.

    A version with these very weights is passed over for the one before it: a run is judged as it was before it was
    published. The files are held against the hashes in the version's manifest before anyone reads them.
    """
    name = release_name(config)
    home = Path(config.publish.registry) / name
    known = complete_versions(home)
    named = read_alias(home, RELEASED)
    start = named if named in known else max(known, default=None)
    version = start
    while version is not None:
        directory = home / f"v{version}"
        try:
            manifest = read_manifest(directory)
        except HaloForgeError as error:
            return ReleasedScores(name=name, version=version, problem=error.what)
        if manifest.weights_sha256 != weights_sha256:
            return _scores_of(name, version, directory, manifest)
        earlier = [number for number in known if number < version]
        version = max(earlier, default=None)
    return ReleasedScores(name=name, version=None)


def _scores_of(name: str, version: int, directory: Path, manifest: Manifest) -> ReleasedScores:
    sha256 = sha256_file(directory / MANIFEST_NAME)
    scores, problem = kept_scores(directory, manifest)
    return ReleasedScores(name=name, version=version, manifest_sha256=sha256, scores=scores, problem=problem)


def kept_scores(directory: Path, manifest: Manifest) -> tuple[tuple[Path, ...], str | None]:
    """The files of item scores of a version, held against its manifest; none, and why, where they cannot be used."""
    published = {entry.path: entry.sha256 for entry in manifest.files if entry.path in SCORES}
    if not published:
        return (), "it was published without the scores of its items; publish it again from its run, evaluated again"
    for file, expected in published.items():
        path = directory / file
        if path.is_symlink() or not path.is_file() or sha256_file(path) != expected:
            named = f"{directory.parent.name}@{manifest.version}"
            return (), f"its {file} is not the file that was published (`halo-forge models verify {named}`)"
    return tuple(directory / file for file in SCORES if file in published), None
