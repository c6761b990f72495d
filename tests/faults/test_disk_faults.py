"""A disk that is full, read-only or broken, and open files that run out: the checkpoint before is intact, one message
says where and what to do, and the same command finishes the run bit for bit when the disk is well again."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from faults.fault_runs import (
    CADENCE,
    METHODS,
    Job,
    crash_everywhere,
    every_time_or_soak,
    finish,
    start_process,
    tensors_of,
)
from halo_forge.cli.main import main
from halo_forge.models.weights import storage_errors
from halo_forge.train.checkpoint import POINTERS, list_checkpoints, verify_checkpoint
from training_runs import final_weights, write_rows

ERRORS = (errno.EIO, errno.EDQUOT, errno.ENOSPC, errno.EROFS, errno.EMFILE)
ROOMS_KIB = [0, 8, 64, 600, 2_000, 5_000, *range(16, 600, 32)]
Limits = dict[str, int]
"""Names of resource.RLIMIT_*; "spare_files" counts from what is open."""


@pytest.mark.parametrize("method", every_time_or_soak(METHODS, ("lora",)))
def test_every_operation_of_a_save_fails(method: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Each file operation in turn, with EIO, EDQUOT, ENOSPC, EROFS and EMFILE turn about."""
    job = Job(tiny_model_dir, tmp_path / "run", METHODS[method] | CADENCE)
    assert finish(start_process(crash_everywhere, job, "save", 7, ERRORS)) == 0
    runs = sorted((tmp_path / "crashes").iterdir(), key=lambda path: int(path.name))
    assert len(runs) > 40
    said = [(run / "said.txt").read_text() for run in runs]
    assert said[-1] == ""
    for run, words in zip(runs, said, strict=True):
        newest = list_checkpoints(run)[0]
        assert verify_checkpoint(newest) is None, run.name
        assert tensors_of(run / "checkpoint-7") == tensors_of(tmp_path / "before" / "checkpoint-7")
        assert not [path.name for path in run.iterdir() if path.name.startswith(".staging")]
        for pointer in POINTERS:
            assert verify_checkpoint((run / pointer).resolve()) is None, f"{pointer} after operation {run.name}"
        assert "Traceback" not in words
        assert not words or "  try: " in words, words


def run_command(job: Job, arguments: list[str], said: Path, limits: Limits) -> None:
    """For a child process: the command line itself under limits; what it says on stderr goes to a file."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    os.environ |= {"NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name, value in limits.items():
        if name == "spare_files":
            name, value = "RLIMIT_NOFILE", len(os.listdir("/proc/self/fd")) + value
        kind = getattr(resource, name)
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
    sys.argv = ["halo-forge", *arguments]
    main()


def command(job: Job, config: Path, limits: Limits | None = None) -> tuple[int, str]:
    """(exit code, stderr) of `halo-forge run` in a process of its own."""
    said = config.parent / "said.txt"
    code = finish(start_process(run_command, job, ["run", str(config), "--until", "train"], said, limits or {}))
    return code, said.read_text()


def configured(root: Path, model: Path, output: Path) -> Path:
    """Full training, so that a checkpoint is three files of 0.4 MB and more; the data lies beside, on a sound disk."""
    values = {
        "model": {"name": str(model)},
        "data": {"train_file": str(write_rows(root / "rows.jsonl", 60)), "validation_split": 0.1,
                 "holdout_split": 0.1, "max_seq_length": 256},
        "training": {"method": "full", "per_device_train_batch_size": 8, "num_train_epochs": 1,
                     "learning_rate": 1e-3, "bf16": False, "eval_steps": 4},
        "output": {"dir": str(output), "save_steps": 1},
        "evaluation": {"sample_prompts": 0},
    }  # fmt: skip
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


@pytest.fixture(scope="module")
def sound(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of the run that nothing happened to."""
    root = tmp_path_factory.mktemp("sound")
    job = Job(tiny_model_dir, root / "run", {})
    config = configured(root, tiny_model_dir, root / "out")
    code, said = command(job, config)
    assert code == 0, said
    return final_weights(root / "out")


def assert_told_in_words(said: str) -> None:
    assert said.count("error: ") == 1, said
    assert "Traceback" not in said
    assert "fault of halo-forge" not in said
    assert "  --> " in said
    assert "  try: " in said


def assert_checkpoints_sound(run: Path) -> None:
    for path in list_checkpoints(run):
        assert verify_checkpoint(path) is None, path


LIMITS: list[Limits] = [
    *({"RLIMIT_FSIZE": size} for size in (20_000, 2_000, 300_000)),
    *({"spare_files": count} for count in (4, 0)),
]


@pytest.mark.parametrize("limits", every_time_or_soak(LIMITS, [LIMITS[0], LIMITS[3]]), ids=str)
def test_limits_of_the_process(limits: Limits, sound: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Files that may not grow, and no further open files: from the first file of a run to the weights of a save."""
    job = Job(tiny_model_dir, tmp_path / "job" / "run", {})
    config = configured(tmp_path, tiny_model_dir, tmp_path / "out")
    code, said = command(job, config, limits)
    assert code != 0
    assert_told_in_words(said)
    assert_checkpoints_sound(tmp_path / "out")
    code, said = command(job, config)
    assert code == 0, said
    assert final_weights(tmp_path / "out") == sound


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, where the machine lets this process have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this process may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


@pytest.mark.parametrize("room_kib", every_time_or_soak(ROOMS_KIB, (0, 600)))
def test_a_full_disk(room_kib: int, sound: str, small_disk: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A file of somebody else's fills the disk to so many KiB; space comes back when it is gone."""
    job = Job(tiny_model_dir, tmp_path / "job" / "run", {})
    config = configured(tmp_path, tiny_model_dir, small_disk / "out")
    fill(small_disk, room_kib)
    code, said = command(job, config)
    assert code == 1, said
    assert_told_in_words(said)
    assert_checkpoints_sound(small_disk / "out")
    (small_disk / "filling").unlink()
    code, said = command(job, config)
    assert code == 0, said
    assert final_weights(small_disk / "out") == sound


def test_a_full_disk_that_safetensors_tells_of_is_an_error_of_the_disk(small_disk: Path) -> None:
    fill(small_disk, 600)
    with pytest.raises(OSError, match="No space left") as caught, storage_errors(small_disk):
        save_file({"weight": torch.zeros(1_000_000)}, small_disk / "model.safetensors")
    assert caught.value.errno == errno.ENOSPC


def fill(disk: Path, room_kib: int) -> None:
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    with open(disk / "filling", "wb") as file:
        for _ in itertools.repeat(None, (free - room_kib * 1024) // 4096):
            file.write(bytes(4096))


def test_a_disk_that_turns_read_only(sound: str, small_disk: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    job = Job(tiny_model_dir, tmp_path / "job" / "run", {})
    config = configured(tmp_path, tiny_model_dir, small_disk / "out")
    code, said = command(job, config)
    assert code == 0, said
    (small_disk / "out" / "trained.json").unlink()
    resize(small_disk, "ro")
    code, said = command(job, config)
    assert code != 0
    assert_told_in_words(said)
    resize(small_disk, "rw")
    code, said = command(job, config)
    assert code == 0, said
    assert final_weights(small_disk / "out") == sound
