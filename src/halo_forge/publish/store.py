"""Files on their way into the registry, and out of it: staged, shared by content, claimed as a version, collected.

    <registry>/.blobs/sha256/ab/abcd...   one copy of equal bytes, mode 0444
    <registry>/<name>/vN/...              plain files, each a hard link to its blob
    <registry>/<name>/.staging-*          a publisher at work, locked by it

A blob is needed exactly while something is linked to it, and the file system counts that. So collecting needs no list
that could be wrong: what a version or a running publisher uses has a second link, and would keep its bytes even if its
blob went. Where a file system has no hard links, a version simply keeps its own copy.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from halo_forge.artifacts import Record
from halo_forge.errors import HaloForgeError
from halo_forge.publish.history import LOCK, writing
from halo_forge.publish.manifest import FileEntry
from halo_forge.runs import fsync_directory, sha256_file

BLOBS = ".blobs/sha256"
STAGING_PREFIX = ".staging-"
ABANDONED_AFTER_S = 3600.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)


@contextmanager
def storage_errors(where: Path, what: str = "nothing was published") -> Iterator[None]:
    """Turn what the disk says (full, read-only, not a directory) into one clear error."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise HaloForgeError(
            f"{what}: {error.strerror or error}",
            where=str(error.filename or where),
            expected="a directory that can be written, with room for the model",
            fix="free some space and publish again" if full else "choose another directory with publish.registry",
        ) from None


# ---------------------------------------------------------------------------------------------- staging


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


def abandoned(home: Path, after_s: float = ABANDONED_AFTER_S) -> list[Path]:
    """What publishers that were killed left behind: old, and locked by nobody."""
    found = []
    for staging in sorted(home.glob(f"{STAGING_PREFIX}*")):
        with suppress(OSError):
            if time.time() - staging.stat().st_mtime < after_s:
                continue  # its publisher may not have taken the lock yet
            descriptor = os.open(staging, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(staging)
            finally:
                os.close(descriptor)
    return found


def remove_abandoned(home: Path, after_s: float = ABANDONED_AFTER_S) -> None:
    for staging in abandoned(home, after_s):
        shutil.rmtree(staging, ignore_errors=True)


# ---------------------------------------------------------------------------------------------- sharing and claiming


def seal(path: Path) -> None:
    """Nobody writes this file again, and it outlives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share_files(registry: Path, staging: Path, entries: tuple[FileEntry, ...]) -> None:
    """Make every staged file and its blob one: the blob that is there, or the staged file as the new blob."""
    for entry in entries:
        seal(staging / entry.path)
        _share(staging / entry.path, entry.sha256, registry / BLOBS / entry.sha256[:2])


def _share(path: Path, sha256: str, shelf: Path) -> None:
    blob = shelf / sha256
    shelf.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.link")
    while True:
        try:
            os.link(path, blob)
            fsync_directory(shelf)
            return
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno in _NO_LINKS:
                return
            raise
        try:
            os.link(blob, beside)
        except FileNotFoundError:
            continue  # collected since
        except OSError as error:
            if error.errno in _NO_LINKS:  # this blob has as many links as the file system allows
                return
            raise
        if beside.stat().st_size == path.stat().st_size and sha256_file(beside) == sha256:
            os.replace(beside, path)
            return
        beside.unlink()  # a damaged blob: ours takes its name, and `models verify` finds the versions that hold it
        fresh = shelf / f".{sha256}.{os.getpid()}"
        os.link(path, fresh)
        os.replace(fresh, blob)
        return


def claim(staging: Path, home: Path, version: int) -> bool:
    """Make `staging` durable and rename it to v<version>; False when another publisher took that number first."""
    for parent, _, files in os.walk(staging, topdown=False):
        for name in files:
            seal(Path(parent) / name)
        fsync_directory(Path(parent))
    try:
        os.rename(staging, home / f"v{version}")
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    fsync_directory(home)
    return True


# ---------------------------------------------------------------------------------------------- collecting


class Collected(Record):
    """What nothing needs any more. `removed` is False after a dry run."""

    blobs: tuple[str, ...]
    stagings: tuple[str, ...]
    num_bytes: int
    removed: bool


def collect(registry: Path, *, remove: bool, grace_s: float = ABANDONED_AFTER_S) -> Collected:
    """Find, and with `remove` delete, blobs that no file is linked to and what killed publishers left behind.

    grace_s  whatever changed more recently stays. One collector at a time: a second is told so (HaloForgeError).
    Raises HaloForgeError where the registry cannot be written.
    """
    if not registry.is_dir():
        return Collected(blobs=(), stagings=(), num_bytes=0, removed=remove)
    if not remove:
        return _unneeded(registry, grace_s)
    with storage_errors(registry, "nothing was collected"), _only_collector(registry):
        found = _unneeded(registry, grace_s)
        for name in found.stagings:
            shutil.rmtree(registry / name, ignore_errors=True)
        for name in found.blobs:
            path = registry / name
            if path.stat().st_nlink == 1:  # a publisher may have linked to it since it was found
                path.unlink()
        found = found.model_copy(update={"removed": True})
        if found.blobs or found.stagings:
            with writing(registry) as writer:
                counts = f"{len(found.blobs)} blobs, {len(found.stagings)} stagings, {found.num_bytes} bytes"
                writer.append("gc", note=counts)
    return found


def _unneeded(registry: Path, grace_s: float) -> Collected:
    stagings = [path for home in sorted(registry.iterdir()) if home.is_dir() for path in abandoned(home, grace_s)]
    leaving = {_inode(path) for staging in stagings for path in staging.rglob("*") if path.is_file()}
    blobs, num_bytes = [], 0
    for blob in sorted((registry / BLOBS).glob("*/*")):
        with suppress(FileNotFoundError):
            state = blob.stat()
            is_alone = state.st_nlink == 1 or (state.st_nlink == 2 and _inode(blob) in leaving)
            # The time of the inode, not of the content: a link that was just taken away is recent too.
            if is_alone and time.time() - state.st_ctime >= grace_s:
                blobs.append(str(blob.relative_to(registry)))
                num_bytes += state.st_size
    return Collected(
        blobs=tuple(blobs),
        stagings=tuple(str(path.relative_to(registry)) for path in stagings),
        num_bytes=num_bytes,
        removed=False,
    )


def _inode(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


@contextmanager
def _only_collector(registry: Path) -> Iterator[None]:
    descriptor = os.open(registry / f"{LOCK}-gc", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HaloForgeError(
                "another process is collecting this registry", where=str(registry), fix="wait for it"
            ) from None
        yield
    finally:
        os.close(descriptor)
