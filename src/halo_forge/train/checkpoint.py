"""Checkpoints that survive a kill at any instant: staged, hashed, fsynced, renamed; verified before use.

    checkpoint-500/
    ├── MANIFEST.json          step, fingerprint, sha256 and size of every file: written last, so its presence and
    │                          agreement is what "complete" means
    ├── adapter_model.safetensors + adapter_config.json      (LoRA: loads with peft)
    │   or model.safetensors + config.json                   (full: loads with transformers, float32 masters)
    ├── optimizer.safetensors  first and second moments, step counts
    └── state.json             position, counters, bytes of metrics.jsonl that belong to it

safetensors and JSON only: nothing here can run code. A save replaces nothing before the new one is durable, and a
deletion is a rename first, so every crash point leaves the old state or the new one (OSDI'14 ALICE; notes in docs/).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from halo_forge.errors import CheckpointError
from halo_forge.models.weights import storage_errors
from halo_forge.runs import fsync_directory, sha256_file, write_json
from halo_forge.train.optimizer import moments
from halo_forge.train.sharding import like

MANIFEST = "MANIFEST.json"
OPTIMIZER_FILE = "optimizer.safetensors"
PREFIX = "checkpoint-"
POINTERS = ("best_val", "best_train", "latest")
LEFT_OVER = re.compile(rf"\.(staging|trash)-.+|\.({'|'.join(POINTERS)})-\d+|\..+\.\d+\.(tmp|old)")
"""Names under which files and directories are written and deleted: a process id is always in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Everything besides weights and optimizer that the next step depends on. `step` counts finished optimizer steps;
    random numbers are a function of (seed, step), so none are stored."""

    step: int = 0
    best_validation_loss: float | None = None
    best_val_step: int | None = None
    best_train_loss: float | None = None
    best_train_step: int | None = None
    last_validation_loss: float | None = None
    last_validation_step: int | None = None
    validations_without_improvement: int = 0
    nonfinite_in_a_row: int = 0
    num_tokens: int = 0
    num_supervised_tokens: int = 0
    recent_loss_sum: float = 0.0  # since the last checkpoint, weighted by supervised tokens
    recent_loss_weight: float = 0.0
    train_time_s: float = 0.0
    samples_sha256: str = ""  # hash chain over the ids of every example trained on, in order
    metrics_bytes: int = 0

    def advanced(self, **changes: object) -> TrainState:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    path: Path
    state: TrainState


def checkpoint_path(run: Path, step: int) -> Path:
    return run / f"{PREFIX}{step}"


def save_checkpoint(
    run: Path,
    state: TrainState,
    write: Callable[[Path], object],
    fingerprint: str,
    once: Callable[[Callable[[], Path]], Path] = lambda act: act(),
) -> Path:
    """Write checkpoint-<state.step>; returns its path. An OSError leaves everything as it was.

    write        puts model and optimizer files into the directory it is given
    fingerprint  hash of data, template, tokenizer and training configuration; a resume under another is refused
    once         where several processes write one checkpoint: does the rest in one of them and tells the others
    """
    staging = once(lambda: _staging_for(run, state.step))
    try:
        with storage_errors(staging):
            write(staging)
        return once(lambda: _made_final(staging, run, state, fingerprint))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _staging_for(run: Path, step: int) -> Path:
    staging = run / f".staging-{PREFIX}{step}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def _made_final(staging: Path, run: Path, state: TrainState, fingerprint: str) -> Path:
    """Everything durable, then the manifest, then one rename."""
    final = checkpoint_path(run, state.step)
    (staging / "state.json").write_text(json.dumps(asdict(state), indent=2))
    names = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
    for name in names:
        _fsync(staging / name)
    write_json(
        staging / MANIFEST,
        {
            "schema_version": 1,
            "step": state.step,
            "fingerprint": fingerprint,
            "files": {
                name: {"sha256": sha256_file(staging / name), "bytes": (staging / name).stat().st_size}
                for name in names
            },
        },
    )
    for directory in {(staging / name).parent for name in names} - {staging}:
        fsync_directory(directory)
    discard(final)  # the same step saved before: identical, or from a run that was rewound
    os.rename(staging, final)
    fsync_directory(run)
    return final


def verify_checkpoint(path: Path) -> str | None:
    """None if the files of the manifest, and no others, are there with their sizes and hashes, else what is wrong, in
    words. Hidden files are not looked at: file managers and network file systems leave theirs anywhere."""
    try:
        if not is_plain_file(path / MANIFEST):
            return "it is not a directory" if path.exists() and not path.is_dir() else f"{MANIFEST} is missing"
        manifest = json.loads((path / MANIFEST).read_bytes())
        files, step = dict(manifest["files"]), manifest["step"]
        if not isinstance(manifest["fingerprint"], str) or "state.json" not in files:
            return f"{MANIFEST} is incomplete"
        there = {str(file.relative_to(path)) for file in path.rglob("[!.]*") if not file.is_dir()} - {MANIFEST}
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if path.name != f"{PREFIX}{step}":
        return f"its manifest is of step {step}"
    for name in sorted(there - files.keys()):
        return f"{name} is not in its manifest"
    for name, facts in files.items():
        try:
            if name not in there or not is_plain_file(path / name):
                return f"{name} is missing or not a file"
            if (path / name).stat().st_size != facts["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {facts['bytes']}"
            if sha256_file(path / name) != facts["sha256"]:
                return f"{name} does not match its hash"
        except (OSError, KeyError, TypeError):
            return f"{name} cannot be read"
    return None


def is_plain_file(path: Path) -> bool:
    """Not a link, which may lead anywhere tomorrow, nor a pipe, which would be waited for."""
    return path.is_file() and not path.is_symlink()


def list_checkpoints(run: Path) -> list[Path]:
    """What is named checkpoint-N, newest step first, verified or not."""
    found = [p for p in run.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix(PREFIX)))


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint:
    """A verified checkpoint of this very run. Raises CheckpointError."""
    problem = verify_checkpoint(path)
    if problem is not None:
        raise CheckpointError(
            f"this checkpoint is damaged: {problem}",
            where=str(path),
            fix=f"--resume {path.parent / PREFIX}N goes back to another one; --fresh starts over",
        )
    manifest = json.loads((path / MANIFEST).read_bytes())
    if manifest["fingerprint"] != fingerprint:
        raise CheckpointError(
            "this checkpoint was made with other data or another configuration",
            where=str(path),
            fix="give the configuration it was made with, or start over with --fresh",
        )
    return Checkpoint(path=path, state=TrainState(**json.loads((path / "state.json").read_bytes())))


def newest_checkpoint(run: Path, fingerprint: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and one line for each newer one that was passed over.

    Checkpoints exist but none verifies: CheckpointError. Training never starts from zero silently.
    """
    paths = list_checkpoints(run)
    last = run / "latest"
    lost = last.is_symlink() and not last.exists()
    passed_over = [f"{os.readlink(last)} passed over: it is gone, and was the latest"] if lost else []
    for path in paths:
        problem = verify_checkpoint(path)
        if problem is None:
            return read_checkpoint(path, fingerprint), passed_over
        passed_over.append(f"{path.name} passed over: {problem}")
    if passed_over:
        raise CheckpointError(
            "no checkpoint of this run can be used\n  " + "\n  ".join(passed_over),
            where=str(run),
            fix="--fresh starts over; what is damaged is kept until then",
        )
    return None, []


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, names: dict[torch.nn.Parameter, str]) -> None:
    """Put the moments of `path` into the optimizer, bit for bit. Raises CheckpointError on a mismatch."""
    tensors = load_file(path / OPTIMIZER_FILE)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, field = key.rpartition(":")
        states.setdefault(name, {})[field] = tensor
    different = sorted(set(states) ^ {names[parameter] for parameter in parameters})[:3]
    if tensors and different:
        raise CheckpointError(f"optimizer state does not fit this model: {different}", where=str(path))
    for parameter in parameters if tensors else ():
        # A fused step counter lives on its parameter's device; bitsandbytes counts in a plain number.
        optimizer.state[parameter] = {
            field: _placed(tensor, parameter) if tensor.ndim or tensor.is_floating_point() else int(tensor)
            for field, tensor in states[names[parameter]].items()
        }


def _placed(tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Cut as the parameter is, where it is: a moment has its shape, a step counter none."""
    return like(parameter, tensor) if tensor.ndim else tensor.to(parameter.device)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[torch.nn.Parameter, str]
) -> dict[str, torch.Tensor]:
    """Each with memory of its own: bitsandbytes' 8-bit weights share one table of levels, and a file cannot."""
    tensors: dict[str, torch.Tensor] = {}
    written: set[int] = set()
    for parameter, name in names.items():
        for field, tensor in moments(optimizer, parameter).items():
            tensor = tensor.cpu().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            tensors[f"{name}:{field}"] = tensor.clone() if storage in written else tensor
            written.add(storage)
    return tensors


def point(run: Path, name: str, step: int) -> None:
    """Make run/<name> a link to checkpoint-<step>, replaced in one rename so that it always resolves."""
    staging = run / f".{name}-{os.getpid()}"
    staging.unlink(missing_ok=True)
    staging.symlink_to(f"{PREFIX}{step}", target_is_directory=True)
    os.replace(staging, run / name)
    fsync_directory(run)


def rotate(run: Path, keep_steps: Iterable[int], limit: int) -> list[Path]:
    """Delete the oldest checkpoints until `limit` are left; `keep_steps` always stay. Returns what was deleted.

    Called only after the newest one is durable, so a crash in here can lose nothing that is still needed.
    """
    protected = set(keep_steps)
    paths = list_checkpoints(run)
    deletable = [p for p in reversed(paths) if int(p.name.removeprefix(PREFIX)) not in protected]
    surplus = deletable[: max(0, len(paths) - limit)]
    for path in surplus:
        discard(path)
    return surplus


def discard(path: Path) -> None:
    """Remove a directory so that a crash leaves it whole or gone: rename first, then delete."""
    if not os.path.lexists(path):
        return
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    fsync_directory(path.parent)
    if trash.is_dir() and not trash.is_symlink():
        shutil.rmtree(trash, ignore_errors=True)
    else:  # a file with a checkpoint's name, which nobody can have meant to keep
        trash.unlink()


def clean_leftovers(run: Path) -> None:
    """Remove what earlier, killed processes had begun to write or to delete. Only under the run's lock."""
    for path in run.iterdir():
        if not LEFT_OVER.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
