"""Where and in which precision a run computes: decided once, recorded in its directory, and kept on resume."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from halo_forge.models.precision import choose_device, choose_precision
from halo_forge.runs import Notify, RunDirectory, silent, write_json

RECORD = "compute.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """recompute: activations are computed again in the backward pass. examples_per_step: of all processes together; a
    run that goes on with fewer or more of them keeps it. None = not decided yet. shard: weights and optimizer are cut
    over shard_size processes (FSDP2; None = all), with sharded_checkpoints in their files too; that may change from
    start to start."""

    device: torch.device
    precision: Literal["float32", "bfloat16"]
    recompute: bool | None = None
    examples_per_step: int | None = None
    shard: bool = False
    shard_size: int | None = None
    sharded_checkpoints: bool = False


def recall_compute(run: RunDirectory, bf16: bool | Literal["auto"], notify: Notify = silent) -> Compute:
    """The run's compute type: read from compute.json if it was decided before, else measured and recorded.

    A second measurement on a busy machine could decide differently, and another number of threads sums in another
    order: a resumed run would no longer be the same run.
    """
    known = known_compute(run.path)
    if known is not None:
        torch.set_num_threads(json.loads(run.file(RECORD).read_bytes())["num_threads"])
        return known
    device = choose_device()
    chosen = choose_precision(bf16, device)
    write_json(
        run.file(RECORD),
        {
            "precision": chosen.name,
            "reason": chosen.reason,
            "device": str(device),
            "num_threads": torch.get_num_threads(),
            "float32_gflops": chosen.float32_gflops,
            "bfloat16_gflops": chosen.bfloat16_gflops,
        },
    )
    notify("note", {"text": f"computing in {chosen.name} on {device}: {chosen.reason}"})
    return Compute(device=device, precision=chosen.name)


def known_compute(run: Path | None) -> Compute | None:
    """What a run directory has recorded; None where nothing was decided yet."""
    if run is None or not (run / RECORD).exists():
        return None
    decided = json.loads((run / RECORD).read_bytes())
    return Compute(
        device=choose_device(),
        precision=decided["precision"],
        recompute=decided.get("recompute"),
        examples_per_step=decided.get("examples_per_step"),
    )


def record_decisions(run: RunDirectory, compute: Compute, reason: str) -> None:
    """Keep what was decided about activations and steps beside the precision: a resumed run computes as it began."""
    record = run.file(RECORD)
    decided = {"precision": compute.precision, "device": str(compute.device), "num_threads": torch.get_num_threads()}
    if record.exists():
        decided = json.loads(record.read_bytes())
    taken = {"recompute": compute.recompute, "examples_per_step": compute.examples_per_step}
    write_json(record, decided | taken | {"recompute_reason": reason})


def release_memory(device: torch.device) -> None:
    """Give freed memory back to the system. glibc keeps the pieces of differently sized steps: a training that needs
    2 GB had grown to 3.7 GB after 60 steps (measured), and what comes next pays on top."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in other C libraries
        if trim is not None:
            trim(0)
