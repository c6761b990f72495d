"""The changelog of a model: its versions, newest first, each with what changed against the one before and what that
did, and when users got it. Read from the registry; nothing is computed anew."""

from __future__ import annotations

from pathlib import Path

from halo_forge.artifacts import Record, Verdict
from halo_forge.errors import HaloForgeError
from halo_forge.publish.history import complete_versions, read_aliases, read_log
from halo_forge.publish.lineage import Pair, VersionDiff, diff_versions
from halo_forge.publish.manifest import read_manifest
from halo_forge.publish.registry import RELEASED, version_directory


class Move(Record):
    """`released` came to name another version. `before` None: it named none."""

    at: str
    action: str
    before: int | None
    after: int | None


class VersionNotes(Record):
    """`diff` None: this is the first version that is still here, or `problem` says why nothing can be compared."""

    version: int
    created_at: str
    verdict: Verdict
    forced: bool
    aliases: tuple[str, ...]
    diff: VersionDiff | None = None
    problem: str | None = None


class Changelog(Record):
    """Versions newest first; moves oldest first."""

    name: str
    versions: tuple[VersionNotes, ...]
    moves: tuple[Move, ...]


def changelog(registry: Path, name: str, pair: Pair | None = None) -> Changelog:
    """Raises ModelNotFound where there is no such model, DataError for a manifest that cannot be read. A version whose
    other records cannot be read is listed with the reason."""
    home = version_directory(registry, name, None).parent
    numbers = complete_versions(home)
    earlier = [None, *numbers[:-1]]
    notes = [_notes(registry, home, number, before, pair) for number, before in zip(numbers, earlier, strict=True)]
    moves = [
        Move(at=line.at, action=line.action, before=line.aliases[RELEASED][0], after=line.aliases[RELEASED][1])
        for line in read_log(home).lines
        if RELEASED in line.aliases
    ]
    return Changelog(name=name, versions=tuple(reversed(notes)), moves=tuple(moves))


def _notes(registry: Path, home: Path, number: int, before: int | None, pair: Pair | None) -> VersionNotes:
    manifest = read_manifest(home / f"v{number}")
    diff, problem = None, None
    try:
        diff = None if before is None else diff_versions(registry, home.name, before, number, pair)
    except HaloForgeError as error:
        problem = error.what
    return VersionNotes(
        version=number,
        created_at=manifest.provenance.created_at,
        verdict=manifest.verdict,
        forced=manifest.forced,
        aliases=tuple(sorted(alias for alias, version in read_aliases(home).items() if version == number)),
        diff=diff,
        problem=problem,
    )
