"""The local registry: `<registry>/<name>/v1, v2, ...`, each a directory that appears whole and never changes.

A version is staged beside its final place and renamed into it (store.py). The rename is also what allocates the number:
onto a version that exists it fails, so two publishers can never both own one, no number is skipped by a publisher that
dies, and the version before is complete when its successor binds its hash. Aliases and the log are in history.py.

A version is named `NAME`, `NAME@3`, `NAME@v3`, `NAME@released`; a colon may stand for the @.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from halo_forge.artifacts import Release
from halo_forge.config.schema import Config
from halo_forge.errors import DataError, HaloForgeError, ModelNotFound, UsageError
from halo_forge.publish.history import (
    LATEST,
    LogLine,
    complete_versions,
    history_problems,
    read_alias,
    read_aliases,
    read_log,
    require_alias,
    writing,
)
from halo_forge.publish.manifest import MANIFEST_NAME, Manifest, VerifyResult, read_manifest, release_of, verify_files
from halo_forge.publish.store import storage_errors
from halo_forge.runs import Notify, sha256_file, silent

CANDIDATE, RELEASED = "candidate", "released"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NUMBER = re.compile(r"v?([1-9][0-9]{0,8})")


# ---------------------------------------------------------------------------------------------- names


def release_name(config: Config) -> str:
    """publish.name, or the name of output.dir made to fit. A UsageError for a name that does not fit."""
    if config.publish.name is not None:
        return require_name(config.publish.name, where="publish.name")
    return slugify(Path(config.output.dir).resolve().name)


def slugify(text: str) -> str:
    slug = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:64]
    return slug or "model"


def require_name(name: str, where: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot be a model name",
            where=where,
            expected="1 to 64 of a-z 0-9 . _ -, the first a letter or a digit",
            fix=f"use {slugify(name)!r}",
        )
    return name


# ---------------------------------------------------------------------------------------------- reading


def list_releases(registry: Path, notify: Notify = silent) -> list[Release]:
    """Every version of every model, by name and number. A version whose manifest cannot be read is left out and
    told as a note: it must not hide the others."""
    releases = []
    for home in sorted(registry.iterdir()) if registry.is_dir() else []:
        if not home.is_dir() or _NAME.fullmatch(home.name) is None:
            continue
        for version in complete_versions(home):
            directory = home / f"v{version}"
            try:
                releases.append(release_of(directory, read_manifest(directory)))
            except HaloForgeError as error:
                notify("note", {"text": f"{home.name} v{version} is left out: {error.what}"})
    return releases


def name_and_version(text: str) -> tuple[str, int | str | None]:
    """`NAME`, `NAME@3`, `NAME:v3`, `NAME@released` -> (name, version number, alias or None)."""
    name, _, version = re.sub("[@:]", "@", text, count=1).partition("@")
    if not version:
        return name, None
    number = _NUMBER.fullmatch(version)
    if number is None and version != LATEST:
        try:
            require_alias(version)
        except UsageError:
            raise UsageError(
                f"{version!r} is not a version", where=text, expected="NAME, NAME@3, NAME@v3 or NAME@ALIAS"
            ) from None
    return name, version if number is None else int(number[1])


def show_release(registry: Path, name: str, version: int | str | None = None) -> Release:
    """One version; without a number the released one, or the newest where none is. Raises ModelNotFound."""
    directory = version_directory(registry, name, version)
    return release_of(directory, read_manifest(directory))


def verify_release(registry: Path, name: str, version: int | str | None = None) -> VerifyResult:
    """Hash every file of a version again; walk the chain of manifests through it, both ways, and the model's log."""
    directory = version_directory(registry, name, version)
    number = int(directory.name[1:])
    try:
        manifest = read_manifest(directory)
    except HaloForgeError as error:
        return VerifyResult(name=name, version=number, ok=False, num_files=0, num_bytes=0, broken=(error.what,))
    result = verify_files(directory, manifest)
    broken = list(result.broken)
    if (manifest.name, manifest.version) != (name, number):
        broken.append(f"the manifest belongs to {manifest.name} v{manifest.version}")
    broken.extend(_broken_links(directory.parent))
    broken.extend(history_problems(directory.parent))
    return result.model_copy(update={"broken": tuple(broken), "ok": result.ok and not broken})


def verified_version(registry: Path, name: str, version: int | str | None = None) -> tuple[Path, Manifest]:
    """A version whose every byte was just found to be what its manifest says; for whoever loads or exports it.
    Raises ModelNotFound, or DataError naming what is wrong."""
    directory = version_directory(registry, name, version)
    manifest = read_manifest(directory)
    result = verify_files(directory, manifest)
    if not result.ok:
        raise DataError(
            f"{name} {directory.name} is not what was published: {result.problems[0]}",
            where=str(directory),
            expected="every file as its manifest says",
            fix=f"use another version (`halo-forge models rollback {name}`), or publish the run again",
        )
    return directory, manifest


def version_directory(registry: Path, name: str, version: int | str | None) -> Path:
    home = registry / require_name(name, where="model name")
    known = complete_versions(home)
    if not known:
        names = sorted({release.name for release in list_releases(registry)})
        near = get_close_matches(name, names, n=1)
        raise ModelNotFound(
            f"no model {name!r} in this registry",
            where=str(registry),
            expected=f"one of: {', '.join(names)}" if names else "a published model; the registry is empty",
            fix=f"halo-forge models show {near[0]}" if near else "halo-forge models list",
        )
    if isinstance(version, str):
        version = _aliased(home, version)
    if version is None:
        version = read_alias(home, RELEASED) or read_alias(home, LATEST)
        if version not in known:
            version = known[-1]
    if version not in known:
        raise ModelNotFound(
            f"{name} has no version {version}",
            where=str(home),
            expected=f"one of: {', '.join(f'v{number}' for number in known)}",
            fix="halo-forge models list",
        )
    return home / f"v{version}"


def _aliased(home: Path, alias: str) -> int:
    version = read_alias(home, alias)
    if version is None:
        names = sorted(read_aliases(home))
        raise ModelNotFound(
            f"{home.name} has no alias {alias!r}",
            where=str(home),
            expected=f"one of: {', '.join(names)}" if names else "a version: no alias was set",
            fix=f"halo-forge models alias {home.name}@VERSION {alias}",
        )
    return version


def _broken_links(home: Path) -> list[str]:
    problems = []
    manifests: dict[int, Manifest] = {}
    for number in complete_versions(home):
        try:
            manifests[number] = read_manifest(home / f"v{number}")
        except HaloForgeError:
            problems.append(f"chain: the manifest of v{number} cannot be read")
    for number, manifest in manifests.items():
        parent = manifest.parent_version
        if parent is None:
            continue
        parent_manifest = home / f"v{parent}" / MANIFEST_NAME
        if not parent_manifest.is_file():
            problems.append(f"chain: v{number} names v{parent} as its parent, which is not here")
        elif sha256_file(parent_manifest) != manifest.parent_manifest_sha256:
            problems.append(f"chain: the manifest of v{parent} is not the one that v{number} was published after")
    return problems


# ---------------------------------------------------------------------------------------------- aliases


def set_alias(registry: Path, name: str, version: int | str | None, alias: str) -> LogLine:
    """Let an alias name a version. Raises UsageError, ModelNotFound, HaloForgeError (registry not writable)."""
    require_alias(alias)
    return _move(version_directory(registry, name, version), "alias", alias)


def roll_back(registry: Path, name: str, to: int | str | None = None, alias: str = RELEASED) -> LogLine:
    """Let an alias name the version that it named before, or `to`. Nothing is copied and the version that is left
    stays for an inquiry. Calling it again goes one further back. The manifest and the size of every file are checked,
    not their hashes, so that the size of the model does not decide how long it takes.

    Raises UsageError where there is nothing to go back to, DataError for a version that is not whole.
    """
    current = version_directory(registry, name, require_alias(alias))
    home = current.parent
    if to is None:
        before = read_log(home).stack(alias)[:-1]
        if not before:
            raise UsageError(
                f"{alias} named no version before {current.name}",
                where=str(home),
                expected="a version to go back to",
                fix=f"halo-forge models rollback {name} --to vN; halo-forge models list shows the versions",
            )
        to = before[-1]
    directory = version_directory(registry, name, to)
    for entry in read_manifest(directory).files:
        path = directory / entry.path
        if not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise DataError(
                f"{directory.name} is not whole: {entry.path} is missing or has another size",
                where=str(path),
                fix=f"halo-forge models rollback {name} --to another version",
            )
    return _move(directory, "rollback", alias)


def _move(directory: Path, action: Literal["alias", "rollback"], alias: str) -> LogLine:
    home, version = directory.parent, int(directory.name[1:])
    with storage_errors(home, "nothing was changed"), writing(home) as writer:
        return writer.append(
            action,
            version=version,
            manifest_sha256=sha256_file(directory / MANIFEST_NAME),
            moves={alias: version},
        )
