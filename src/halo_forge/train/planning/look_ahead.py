"""The start of every training: the plan in one line, and whether activations are recomputed, decided once."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from halo_forge.artifacts import PreparedData
from halo_forge.config.schema import Config
from halo_forge.models.compute import Compute, record_recompute
from halo_forge.runs import Notify, RunDirectory
from halo_forge.train.planning.forecast import Forecast, forecast
from halo_forge.train.planning.workload import row_sizes
from halo_forge.train.session import current_processes


def look_ahead(
    config: Config, run: RunDirectory, prepared: PreparedData, compute: Compute, notify: Notify
) -> tuple[Compute, Forecast]:
    """The compute settings with the decision about activations, and the plan that it was taken from.

    What compute.json holds is kept: a resumed run computes as it began, whatever memory is free now.
    """
    foreseen = forecast(config, row_sizes(run.path, prepared), compute, directory=run.path, in_this_process=True)
    if current_processes().is_main:
        notify("note", {"text": foreseen.words()})
    if compute.recompute is not None:
        return compute, foreseen
    compute = replace(compute, recompute=_any_process(foreseen.plan.recompute, compute.device))
    if current_processes().is_main:
        record_recompute(run, compute, foreseen.recompute_reason)
        if config.training.gradient_checkpointing == "auto" and compute.recompute:
            notify("note", {"text": f"activations are recomputed: {foreseen.recompute_reason}"})
    return compute, foreseen


def _any_process(value: bool, device: torch.device) -> bool:
    """True if it is on one of the processes: they must agree, and memory need not be free alike for all."""
    if not dist.is_initialized():
        return value
    flag = torch.tensor([int(value)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
