"""Where and in which precision a run computes: decided once, recorded in its directory, and kept on resume."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from halo_forge.models.precision import choose_device, choose_precision
from halo_forge.runs import Notify, RunDirectory, silent, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    device: torch.device
    precision: Literal["float32", "bfloat16"]


def recall_compute(run: RunDirectory, bf16: bool | Literal["auto"], notify: Notify = silent) -> Compute:
    """The run's compute type: read from compute.json if it was decided before, else measured and recorded.

    A second measurement on a busy machine could decide differently, and another number of threads sums in another
    order: a resumed run would no longer be the same run.
    """
    record = run.file("compute.json")
    device = choose_device()
    if record.exists():
        decided = json.loads(record.read_bytes())
        torch.set_num_threads(decided["num_threads"])
        return Compute(device=device, precision=decided["precision"])
    chosen = choose_precision(bf16, device)
    write_json(
        record,
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
