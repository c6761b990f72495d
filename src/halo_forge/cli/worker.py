"""One worker of a training in several processes: `python -m halo_forge.cli.worker RUN`, started by torchrun's agent."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from halo_forge.cli.running import importing
from halo_forge.errors import HaloForgeError
from halo_forge.launch import die_with_parent, keep_error
from halo_forge.runs import Notify, StopSignal, silent

COLLECTIVE_TIMEOUT_S = 1800.0
"""A worker that waits longer for another one gives up, and all start again; HALO_FORGE_COLLECTIVE_TIMEOUT_S sets it."""


def main() -> None:
    """Trains and exits 0 also where it was refused or stopped: the reason lies in the run, and starting again would
    change nothing about it. Anything else ends by its exception, and the agent starts all workers again."""
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--sharded-checkpoints", action="store_true")
    parser.add_argument("--shard-size", type=int)
    parser.add_argument("--resume", type=Path)
    chosen = parser.parse_args()
    rank = int(os.environ["RANK"])
    # Started again, workers go on from the newest checkpoint, not from where the user went back to.
    is_first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    with StopSignal() as stop, display(rank) as notify:
        with importing():
            from halo_forge.pipeline import train_as_worker

        try:
            with process_group():
                train_as_worker(
                    chosen.run,
                    {name: getattr(chosen, name) for name in ("shard", "shard_size", "sharded_checkpoints")},
                    resume_from=chosen.resume if is_first_start else None, notify=notify, check=stop.check,
                )  # fmt: skip
        except HaloForgeError as error:
            keep_error(chosen.run, rank, error)
        except Exception as error:
            if os.environ.get("HALO_FORGE_DEBUG"):
                raise
            print(f"worker {rank}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            sys.exit(1)


@contextmanager
def display(rank: int) -> Iterator[Notify]:
    """The first worker shows what all of them do."""
    if rank != 0:
        yield silent
        return
    from rich.console import Console

    from halo_forge.cli.console import Reporter

    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    try:
        yield reporter
    finally:
        reporter.close()


@contextmanager
def process_group() -> Iterator[None]:
    """nccl between GPUs and gloo for the rest, or gloo alone."""
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    seconds = float(os.environ.get("HALO_FORGE_COLLECTIVE_TIMEOUT_S", COLLECTIVE_TIMEOUT_S))
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
