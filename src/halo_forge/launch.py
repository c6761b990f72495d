"""A training in several processes: torchrun's agent on each node, a worker for each device, their errors brought home.

The process that the user starts keeps the run directory, prepares rows before and evaluates after; workers train. A
worker that dies takes the others with it, and all of them start again at the newest checkpoint.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from halo_forge import errors
from halo_forge.errors import HaloForgeError, Interrupted, TrainingError, UsageError
from halo_forge.runs import GOES_ON, sha256_bytes, write_json

WORKER = "halo_forge.cli.worker"
ERRORS = ".workers"
"""Directory in a run: what stopped each worker, rank-N.json, and one line for each start."""
JOIN_TIMEOUT_S = 24 * 3600
"""The other nodes wait so long for the first one to prepare the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """nproc_per_node      workers on each node: one for each GPU, or one on a CPU machine
    nnodes, node_rank   how many nodes take part and which one this is; node 0 prepares, evaluates and writes the report
    rdzv_endpoint       HOST:PORT on node 0, reachable from every node
    max_restarts        how often all workers start again after one died
    shard               FSDP2: weights, gradients and optimizer cut over the workers instead of copied to each
    shard_size          how many workers share one copy; None = all. As many as a node has keeps the gathering
                        of weights inside it (docs/cluster.md has the figures)
    sharded_checkpoints each worker writes its own part
    """

    nproc_per_node: int = 1
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str | None = None
    max_restarts: int = 3
    shard: bool = False
    shard_size: int | None = None
    sharded_checkpoints: bool = False

    def __post_init__(self) -> None:
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            raise UsageError(
                "several nodes need a place to meet",
                where="--nnodes",
                expected="--rdzv-endpoint HOST:PORT, a port on the node of rank 0 that all others reach",
            )
        if not 0 <= self.node_rank < self.nnodes:
            raise UsageError(
                f"--node-rank {self.node_rank} is not one of {self.nnodes} nodes",
                where="--node-rank",
                expected=f"0 to {self.nnodes - 1}, another one on each node",
            )
        if (self.sharded_checkpoints or self.shard_size) and not self.shard:
            name = "--sharded-checkpoints" if self.sharded_checkpoints else "--shard-size"
            raise UsageError(f"{name} needs --shard: only then has each worker a part of its own")
        if self.shard_size and self.num_processes % self.shard_size:
            raise UsageError(
                f"{self.num_processes} workers cannot be cut into groups of {self.shard_size}",
                where="--shard-size",
                expected=f"a divisor of {self.num_processes}",
            )

    @property
    def num_processes(self) -> int:
        return self.nproc_per_node * self.nnodes

    @property
    def worker_flags(self) -> list[str]:
        chosen = {"--shard": self.shard, "--sharded-checkpoints": self.sharded_checkpoints}
        size = [f"--shard-size={self.shard_size}"] if self.shard_size else []
        return [flag for flag, is_set in chosen.items() if is_set] + size


def run_workers(launch: Launch, run: Path, resume_from: Path | None = None) -> None:
    """Train the run in `run` in worker processes; returns when they have finished. Raises what stopped them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    directory = run / ERRORS
    if launch.node_rank == 0:
        directory.mkdir(exist_ok=True)
        for path in directory.glob("rank-*.json"):
            path.unlink()
    config = LaunchConfig(
        min_nodes=launch.nnodes,
        max_nodes=launch.nnodes,
        nproc_per_node=launch.nproc_per_node,
        run_id=sha256_bytes(str(run.resolve()).encode())[:16],
        rdzv_backend="c10d",
        rdzv_endpoint=launch.rdzv_endpoint or "localhost:0",
        rdzv_configs={"is_host": launch.node_rank == 0, "join_timeout": JOIN_TIMEOUT_S, "read_timeout": JOIN_TIMEOUT_S},
        max_restarts=launch.max_restarts,
        monitor_interval=0.1,
    )
    flags = [*launch.worker_flags, *(["--resume", str(resume_from)] if resume_from is not None else [])]
    # Without it, workers that start again find the addresses of those before them in the agent's store (torch 2.13).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        with _handlers_put_back(), _quiet_agent():
            elastic_launch(config, sys.executable)("-m", WORKER, str(run), *flags)
    except SignalException as told:
        raise Interrupted(f"stopped by {signal.Signals(told.sigval).name}", fix=GOES_ON) from None
    except ChildFailedError as failed:
        raise first_error(run) or TrainingError(
            f"a worker died {launch.max_restarts + 1} times: {_how_it_ended(failed)}",
            where=str(run),
            fix=f"what it said last is above; {GOES_ON}",
        ) from None
    problem = first_error(run)
    if problem is not None:
        raise problem


def keep_error(run: Path, rank: int, error: HaloForgeError) -> None:
    """For a worker: leave behind what stopped it."""
    told = {"kind": type(error).__name__, "what": error.what, "where": error.where}
    write_json(run / ERRORS / f"rank-{rank}.json", told | {"expected": error.expected, "fix": error.fix})


def first_error(run: Path) -> HaloForgeError | None:
    """What stopped the worker of the lowest rank that said why."""
    for path in sorted((run / ERRORS).glob("rank-*.json"), key=lambda path: int(path.stem.removeprefix("rank-"))):
        told = json.loads(path.read_bytes())
        kind = getattr(errors, told.pop("kind"), HaloForgeError)
        error: HaloForgeError = kind.__new__(kind)
        HaloForgeError.__init__(error, told.pop("what"), **told)
        return error
    return None


def die_with_parent() -> None:
    """For a worker, on Linux: end when the agent does, however that ended; a checkpoint survives it at any instant."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _how_it_ended(failed: Exception) -> str:
    failures = getattr(failed, "failures", {})
    told = [
        f"rank {rank} by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else
        f"rank {rank} with exit code {failure.exitcode}"
        for rank, failure in failures.items()
    ]  # fmt: skip
    return ", ".join(told) or str(failed)


@contextmanager
def _handlers_put_back() -> Iterator[None]:
    """The agent takes the signals and keeps them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """It prints tables and stack traces of what is told in one sentence here; its own words with HALO_FORGE_DEBUG=1."""
    logger = logging.getLogger("torch.distributed.elastic")
    level = logger.level
    if not os.environ.get("HALO_FORGE_DEBUG"):
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
