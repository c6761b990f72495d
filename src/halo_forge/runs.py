"""The run directory: one writer, atomic files, fingerprints, provenance. No torch.

<output.dir>/
├── config.resolved.yaml   run.json            what was asked for, by which code
├── data/                  manifest.json ledger.jsonl *.conversations.jsonl *.examples.arrow
├── checkpoint-N/  best_val -> ...  best_train -> ...  latest -> ...
├── final_model/           loads with plain AutoModel / AutoTokenizer / peft
├── metrics.jsonl  training_log.json  trained.json  first_batch.txt  samples.jsonl  trackers.json  trackers/
├── eval/                  report.json answers.jsonl        baseline_metrics.json
├── gate.json  release.json  iteration.json                inspect/
└── report.html
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from halo_forge.artifacts import Artifact, Provenance
from halo_forge.config import ResolvedConfig, config_to_yaml, diff_configs
from halo_forge.errors import DataError, Interrupted, RunConflict

Notify = Callable[[str, Mapping[str, Any]], None]
"""How a stage tells what it does: notify(event, fields). The command line renders it; silence is the default."""

ArtifactType = TypeVar("ArtifactType", bound=Artifact)
RECORDED_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")


def silent(event: str, fields: Mapping[str, Any]) -> None:
    """The default `notify`."""


def cache_directory() -> Path:
    """$HALO_FORGE_CACHE, or halo-forge/ in $XDG_CACHE_HOME, or ~/.cache/halo-forge."""
    own = os.environ.get("HALO_FORGE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "halo-forge"


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a JSON value, independent of key order."""
    return sha256_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(directory: Path, names: Iterable[str] | None = None) -> str:
    """Hash over (relative name, content hash) of the files of a directory, sorted by name."""
    files = (
        sorted(names)
        if names is not None
        else sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    )
    return sha256_json([[name, sha256_file(directory / name)] for name in files])


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write so that a reader, or a machine that loses power, sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(staging, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_artifact(path: Path, artifact: Artifact) -> None:
    write_atomic(path, artifact.model_dump_json(indent=2) + "\n")


def read_artifact(path: Path, kind: type[ArtifactType]) -> ArtifactType:
    """Read a stage's record; a missing or foreign file is a DataError that names it."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"no {kind.__name__} here", where=str(path), fix="run the stage that writes it, or `halo-forge run CONFIG`"
        ) from None
    except ValueError as error:
        raise DataError(f"this is not a {kind.__name__} record", where=str(path), expected=str(error)) from None


def provenance(config_sha256: str, inputs: Mapping[str, str]) -> Provenance:
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=code_version(),
        config_sha256=config_sha256,
        libraries=library_versions(),
        inputs=dict(inputs),
    )


def code_version() -> str:
    """Package version, with the commit where the package runs from a git checkout of its own."""
    version = metadata.version("halo-forge")
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version
    answer = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return f"{version}+{answer.stdout.strip()}" if answer.returncode == 0 else version


def library_versions() -> dict[str, str]:
    versions = {}
    for name in RECORDED_LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


class RunDirectory:
    """One run's directory, held by one process at a time.

    `open` takes the lock; a second process gets a RunConflict that names the holder. Reading needs no lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None  # a descriptor: the kernel lets go of it however the process ends

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        run = cls(path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(run.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunConflict(
                f"this directory cannot be written: {error.strerror}", where=str(path), fix="give another with --output"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise RunConflict(
                f"{holder} is writing to this run directory",
                where=str(path),
                fix="wait for it, or give another directory with --output",
            ) from None
        run._lock = lock
        with suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()}\n".encode())
        return run

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def file(self, name: str) -> Path:
        return self.path / name


GOES_ON = "the same command goes on where this one stopped"


class StopSignal:
    """SIGINT and SIGTERM as a flag that every stage polls; a second signal ends the process at once.

    Installed before anything slow is loaded. Outside the main thread it installs nothing and is never requested.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.requested is not None:
            os._exit(128 + number)
        self.requested = signal.Signals(number).name

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(f"stopped by {self.requested}", fix=GOES_ON)


IDENTITY_SECTIONS = ("model", "data", "training", "lora", "adapter", "audio")
"""What a run is made of. Another evaluation, gate or release of the same training is still the same run."""


def claim(run: RunDirectory, resolved: ResolvedConfig, *, fresh: bool = False) -> None:
    """Make the directory this configuration's, or refuse: a run is never continued with other settings.

    fresh  forget what an earlier run left here; files that are not a run's are never touched
    Raises RunConflict with the difference.
    """
    record = run.file("run.json")
    if fresh and record.exists():
        forget(run)
    elif not record.exists():
        foreign = sorted(path.name for path in run.path.iterdir() if path.name != ".lock")
        if foreign:
            raise RunConflict(
                f"this directory is not empty and holds no run: {', '.join(foreign[:4])}",
                where=str(run.path),
                fix="give another directory with --output",
            )
    elif run.file("data/manifest.json").exists():  # before that there is nothing that other settings could spoil
        earlier = json.loads(record.read_bytes())["config"]
        changed = diff_configs(
            {name: earlier[name] for name in IDENTITY_SECTIONS if name in earlier},
            {name: resolved.config.to_dict()[name] for name in IDENTITY_SECTIONS if name in earlier},
        )
        if changed:
            raise RunConflict(
                "this directory holds a run with another configuration\n  " + "\n  ".join(changed),
                where=str(run.path),
                fix="give another directory with --output, or start over with --fresh",
            )
    write_json(
        record,
        {
            "schema_version": 1,
            "config": resolved.config.to_dict(),
            "origins": resolved.origins,
            "notices": list(resolved.notices),
            "command": ["halo-forge", *sys.argv[1:]],
            "code_version": code_version(),
            "libraries": library_versions(),
            "python": sys.version.split()[0],
        },
    )
    write_atomic(run.file("config.resolved.yaml"), config_to_yaml(resolved.config, resolved.origins))


def forget(run: RunDirectory) -> None:
    """Remove everything a run writes, and nothing else. The record goes last: a crash in between leaves a run."""
    for path in sorted(run.path.iterdir()):
        if path.name in RUN_FILES or path.name.startswith(("checkpoint-", ".staging-", ".trash-")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    run.file("run.json").unlink(missing_ok=True)


RUN_FILES = frozenset(
    (
        *("config.resolved.yaml", "compute.json", "data", "first_batch.txt", "metrics.jsonl", "training_log.json"),
        *("preflight.json", "samples.jsonl", "trackers.json", "trackers", "wandb"),
        *("best_val", "best_train", "latest", "trained.json", "final_model"),
        *("eval", "baseline_metrics.json", "gate.json", "release.json", "report.html"),
        *("inspect", "iteration.json"),
    )
)
