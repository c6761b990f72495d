"""The local registry: `<registry>/<name>/v1, v2, ...`, each a directory that appears whole and never changes.

A version is staged beside its final place and renamed into it. The rename is also what allocates the number: onto a
version that exists it fails, so two publishers can never both own one, no number is skipped by a publisher that dies,
and the version before is complete when its successor binds its hash. `latest` is a one-line file, replaced atomically.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

from halo_forge.artifacts import Release
from halo_forge.config.schema import Config
from halo_forge.errors import HaloForgeError, ModelNotFound, UsageError
from halo_forge.publish.manifest import MANIFEST_NAME, Manifest, VerifyResult, read_manifest, release_of, verify_files
from halo_forge.runs import Notify, fsync_directory, sha256_file, silent, write_atomic

LATEST = "latest"
STAGING_PREFIX = ".staging-"
ABANDONED_AFTER_S = 3600.0
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


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


def show_release(registry: Path, name: str, version: int | None = None) -> Release:
    """One version; without a number the one that `latest` names. Raises ModelNotFound."""
    directory = version_directory(registry, name, version)
    return release_of(directory, read_manifest(directory))


def verify_release(registry: Path, name: str, version: int | None = None) -> VerifyResult:
    """Hash every file of a version again and walk the chain of manifests through it, both ways."""
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
    return result.model_copy(update={"broken": tuple(broken), "ok": result.ok and not broken})


def version_directory(registry: Path, name: str, version: int | None) -> Path:
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
    if version is None:
        version = pointed_version(home)
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


def complete_versions(home: Path) -> list[int]:
    """Numbers of the versions that a reader may use, ascending."""
    return [number for number in _taken_versions(home) if (home / f"v{number}" / MANIFEST_NAME).is_file()]


def pointed_version(home: Path) -> int | None:
    with suppress(OSError, UnicodeDecodeError):
        match = _VERSION.fullmatch((home / LATEST).read_text(encoding="ascii").strip())
        return int(match[1]) if match else None
    return None


def _taken_versions(home: Path) -> list[int]:
    if not home.is_dir():
        return []
    matches = (_VERSION.fullmatch(entry.name) for entry in home.iterdir())
    return sorted(int(match[1]) for match in matches if match)


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


# ---------------------------------------------------------------------------------------------- writing


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn what the disk says (full, read-only, not a directory) into one clear error."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise HaloForgeError(
            f"nothing was published: {error.strerror or error}",
            where=str(error.filename or where),
            expected="a directory that can be written, with room for the model",
            fix="free some space and publish again" if full else "choose another directory with publish.registry",
        ) from None


@contextmanager
def staging_directory(home: Path) -> Iterator[Path]:
    """A directory beside the versions, locked while its publisher lives and removed unless it was renamed away."""
    home.mkdir(parents=True, exist_ok=True)
    remove_abandoned(home)
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=home))
    os.chmod(staging, 0o755)  # mkdtemp makes it private; a version is for everyone who may read the registry
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield staging
    finally:
        os.close(descriptor)
        shutil.rmtree(staging, ignore_errors=True)


def remove_abandoned(home: Path) -> None:
    """Remove what publishers that were killed left behind: old, and locked by nobody."""
    for staging in home.glob(f"{STAGING_PREFIX}*"):
        with suppress(OSError):
            if time.time() - staging.stat().st_mtime < ABANDONED_AFTER_S:
                continue  # its publisher may not have taken the lock yet
            descriptor = os.open(staging, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(staging)
            finally:
                os.close(descriptor)


def next_version(home: Path) -> int:
    """One more than any number seen; the pointer counts too, so that a deleted newest version is not reissued."""
    return max([0, pointed_version(home) or 0, *_taken_versions(home)]) + 1


def seal_and_claim(staging: Path, home: Path, version: int) -> bool:
    """Make `staging` durable and rename it to v<version>; False when another publisher took that number first."""
    for parent, _, files in os.walk(staging, topdown=False):
        for name in files:
            path = Path(parent) / name
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fchmod(descriptor, 0o444)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(Path(parent))
    try:
        os.rename(staging, home / f"v{version}")
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    fsync_directory(home)
    return True


def point_latest(home: Path) -> None:
    """Let `latest` name the newest version. Locked, so that it never goes back when publishers overtake each other."""
    with open(home / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = complete_versions(home)[-1]
        if pointed_version(home) != newest:
            write_atomic(home / LATEST, f"v{newest}\n")
