"""Real training processes that die, and what has to be equal afterwards.

A process starts from a server that has imported everything, in 10 ms instead of 5 s, and runs the whole training stage:
prepared rows, model, restore, steps, saves, final model. Where it is, it writes into one byte of a file, so that the
byte of a killed process says where it died.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from halo_forge.config import load_config
from halo_forge.data import load_prepared
from halo_forge.errors import HaloForgeError, storage_error
from halo_forge.models.quiet import quiet_transformers
from halo_forge.runs import RunDirectory
from halo_forge.train import loop
from halo_forge.train.checkpoint import MANIFEST, POINTERS
from training_runs import Prepared, final_weights, losses, prepared_run, settings, train_now

PHASES = ("starting", "restoring", "training", "saving", "finishing")
CADENCE: dict[str, Any] = {"output.save_steps": 1, "eval_steps": 4, "output.save_total_limit": 2}
"""A save after every step: kills land in one far more often than in a real run."""
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "full": {"method": "full"},
    "adafactor": {"method": "full", "trainable": ["layers.last_1"], "optimizer": "adafactor", "learning_rate": 1e-2},
}
FILE_EVENTS = frozenset(
    ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.truncate", "os.chmod")
)
"""What Python tells of its own file operations; os.fsync tells nothing and is wrapped instead."""
WARM = "HALO_FORGE_TEST_WARM"
"""Names the model that the server trains before it serves."""
FAILED = 3
TIME_LIMIT_S = 120


@dataclass(frozen=True)
class Job:
    model: Path
    output: Path
    training: dict[str, Any]

    @property
    def phase_file(self) -> Path:
        return self.output.parent / f"{self.output.name}.phase"

    def phase(self) -> str:
        return PHASES[self.phase_file.read_bytes()[0]]

    def prepared(self) -> Prepared:
        """The run, its rows read at the first call and taken as they are afterwards."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        if not (self.output / "data" / "manifest.json").exists():
            return prepared_run(tokenizer, self.model, self.output, **self.training)
        rows = self.output.parent / "rows-60.jsonl"
        config = load_config(flags=settings(self.model, rows, self.output, **self.training)).config
        run = RunDirectory.open(self.output)
        return Prepared(config, run, load_prepared(run), tokenizer)


def train_marked(job: Job) -> None:
    """For a child process: train, and write down each phase."""
    torch.set_num_threads(1)
    silence()
    stage = importlib.import_module("halo_forge.train.train")
    with open(job.phase_file, "r+b") as file, mmap.mmap(file.fileno(), 1) as phase, quiet_transformers():

        def mark(name: str) -> None:
            phase[0] = PHASES.index(name)

        stage.restore = marked(stage.restore, mark, "restoring", "training")  # type: ignore[attr-defined]
        stage.finish = marked(stage.finish, mark, "finishing", "finishing")  # type: ignore[attr-defined]
        loop.save = marked(loop.save, mark, "saving", "training")  # type: ignore[assignment]
        train_now(job.prepared())


def silence() -> None:
    """Nobody reads what a process says that is about to be killed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def marked(function: Callable[..., Any], mark: Callable[[str], None], inside: str, after: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        mark(inside)
        result = function(*args, **kwargs)
        mark(after)
        return result

    return call


def crash_everywhere(job: Job, place: str, skip: int, errors: Sequence[int] = ()) -> None:
    """For a child process: at call number `skip` of `place`, die at every one of its file operations in turn.

    A fork does the work and is killed before its n-th operation; what it leaves is kept in `crashes/n`, the directory
    is put back, and the next fork gets one further. The last one is let through. With `errors`, the operation fails
    with them in turn instead, and what is said of it is kept in `crashes/n/said.txt`.
    """
    torch.set_num_threads(1)
    silence()
    stage = importlib.import_module("halo_forge.train.train")
    owner = loop if place == "save" else stage
    real, crashes, calls = getattr(owner, place), job.output.parent / "crashes", itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) < skip:
            return real(*args, **kwargs)
        before = shutil.copytree(job.output, job.output.parent / "before", symlinks=True)
        for number in itertools.count(1):
            child = os.fork()
            if child == 0:
                act = fail_with(errors[number % len(errors)]) if errors else die
                has_acted = at_operation(number, act)
                said = told_by(lambda: real(*args, **kwargs))
                failed = has_acted()
                (job.output / "said.txt").write_text(said)
                os._exit(FAILED if failed else 0)
            _, status = os.waitpid(child, 0)
            shutil.move(job.output, crashes / str(number))
            shutil.copytree(before, job.output, symlinks=True)
            if status == 0:
                os._exit(0)
            assert os.WTERMSIG(status) == signal.SIGKILL or os.WEXITSTATUS(status) == FAILED, status

    setattr(owner, place, call)
    crashes.mkdir()
    with quiet_transformers():
        train_now(job.prepared())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_with(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def told_by(work: Callable[[], object]) -> str:
    """What a user would read: empty, or the message of the error."""
    try:
        work()
    except HaloForgeError as error:
        return str(error)
    except OSError as error:
        return str(storage_error(error) or f"Traceback: {error!r}")
    return ""


def at_operation(number: int, act: Callable[[], None]) -> Callable[[], bool]:
    """Count this process's file operations from here on, and act before the n-th. Returns a question that ends
    the counting: has it come to that?"""
    count, real_fsync, left = itertools.count(1), os.fsync, [number]

    def operation() -> None:
        if left and next(count) == number:
            left.clear()
            act()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and (event != "open" or opens_for_writing(arguments)):
            operation()

    def fsync(descriptor: int) -> None:
        operation()
        real_fsync(descriptor)

    sys.addaudithook(audit)
    os.fsync = fsync

    def has_acted() -> bool:
        is_over = not left
        left.clear()
        return is_over

    return has_acted


def opens_for_writing(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def start(job: Job) -> BaseProcess:
    return start_process(train_marked, job)


def start_process(target: Callable[..., None], job: Job, *arguments: Any) -> BaseProcess:
    """A process from the server, which is started at the first call and trains once itself: imports, caches and
    templates are then there for all of them."""
    if not job.output.exists():
        job.prepared().run.close()
    job.phase_file.write_bytes(b"\0")
    ours = {"PYTHONPATH": os.pathsep.join(sys.path), WARM: str(job.model), "CUDA_VISIBLE_DEVICES": ""}
    before = {name: os.environ.get(name) for name in ours}
    os.environ |= ours
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["faults.fault_runs"])
        process = context.Process(target=target, args=(job, *arguments))
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    return process


def warm_up(model: Path) -> None:
    """For the server: everything that a process would do for the first time."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        for name, training in METHODS.items():
            run = Path(scratch) / name / "run"
            job = Job(model, run, training | {"max_steps": 1})
            train_now(job.prepared())
    gc.freeze()


def finish(process: BaseProcess) -> int:
    process.join(TIME_LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"no end after {TIME_LIMIT_S} s")
    assert process.exitcode is not None
    return process.exitcode


def train_to_the_end(job: Job) -> None:
    assert finish(start(job)) == 0


@dataclass
class Tally:
    """What was done to how many processes."""

    kills: int = 0
    double_kills: int = 0
    chains: int = 0
    died_in: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kills": self.kills, "double_kills": self.double_kills, "chains": self.chains,
            "died_in": dict(self.died_in),
        }  # fmt: skip


def kill_somewhere(job: Job, rng: random.Random, tally: Tally, *, in_recovery: bool) -> bool:
    """Start the run and SIGKILL it at a random moment; False if it came to its end before.

    Two of three kills wait for a save (the next, or up to three later) and strike within the time that one takes;
    the others strike at any time. A kill in the recovery waits for the restore.
    """
    process = start(job)
    if in_recovery:
        wait_for(process, job, "restoring", 1)
        time.sleep(rng.uniform(0, 0.01))
    elif rng.random() < 0.67:
        wait_for(process, job, "saving", rng.choice((1, 2, 3)))
        time.sleep(rng.uniform(0, 0.015))
    else:
        process.join(rng.uniform(0, 0.5))
    process.kill()
    code = finish(process)
    assert code in (0, -signal.SIGKILL), code
    if code == 0:
        return False
    tally.kills += 1
    tally.double_kills += in_recovery
    tally.died_in[job.phase()] += 1
    return True


def wait_for(process: BaseProcess, job: Job, phase: str, times: int) -> None:
    """Until the process enters `phase` for the n-th time, or ends."""
    before = ""
    with open(job.phase_file, "r+b") as file, mmap.mmap(file.fileno(), 1) as byte:
        while process.is_alive():
            now = PHASES[byte[0]]
            times -= now == phase and before != phase
            if times == 0:
                return
            before = now
            time.sleep(0.0005)


def chains_of_kills(
    jobs: Iterator[Job], whole: dict[str, Path], num_kills: int, rng: random.Random, share_of_double_kills: float
) -> Tally:
    """Kill runs until they end in spite of it, one after another; each end has to be that of the run nobody killed."""
    tally = Tally()
    while tally.kills < num_kills:
        job, is_running, in_recovery = next(jobs), True, False
        while is_running and tally.kills < num_kills:
            is_running = kill_somewhere(job, rng, tally, in_recovery=in_recovery)
            in_recovery = is_running and rng.random() < share_of_double_kills
        train_to_the_end(job)
        assert_same_end(job.output, whole[job.output.parent.name])
        tally.chains += 1
    return tally


def assert_same_end(run: Path, whole: Path) -> None:
    """Losses, sample order, weights, optimizer state, pointers: equal to the last bit."""
    assert losses(run) == losses(whole)
    assert final_weights(run) == final_weights(whole)
    for pointer in POINTERS:
        one, two = (run / pointer).resolve(), (whole / pointer).resolve()
        assert one.name == two.name, pointer
        assert tensors_of(one) == tensors_of(two), pointer
        assert place_of(one) == place_of(two), pointer
    assert [path.name for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"] == []


def tensors_of(checkpoint: Path) -> dict[str, str]:
    """Hashes of weights and optimizer state."""
    files = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
    return {name: facts["sha256"] for name, facts in files.items() if name.endswith(".safetensors")}


def place_of(checkpoint: Path) -> dict[str, Any]:
    """state.json without what a clock wrote."""
    state = json.loads((checkpoint / "state.json").read_bytes())
    return {name: value for name, value in state.items() if name not in ("train_time_s", "metrics_bytes")}


def every_time_or_soak(cases: Iterable[Any], every_time: Container[Any]) -> list[Any]:
    """Some cases in every run of the suite, the others in the soak."""
    return [case if case in every_time else pytest.param(case, marks=pytest.mark.soak) for case in cases]


if WARM in os.environ and multiprocessing.current_process().name == "MainProcess":
    warm_up(Path(os.environ[WARM]))
