"""The start of every training: the plan in one line; whether activations are recomputed and how many examples a step
takes, decided once."""

from __future__ import annotations

from dataclasses import replace

from halo_forge.artifacts import PreparedData
from halo_forge.config.schema import Config
from halo_forge.models.compute import Compute, record_decisions
from halo_forge.runs import Notify, RunDirectory
from halo_forge.train.planning.forecast import Forecast, forecast
from halo_forge.train.planning.workload import row_sizes
from halo_forge.train.processes import any_process, current_processes
from halo_forge.train.session import examples_per_step


def look_ahead(
    config: Config, run: RunDirectory, prepared: PreparedData, compute: Compute, notify: Notify
) -> tuple[Compute, Forecast]:
    """The compute settings with the decision about activations, and the plan that it was taken from.

    What compute.json holds is kept: a resumed run computes as it began, whatever memory is free now.
    """
    foreseen = forecast(config, row_sizes(run.path, prepared), compute, directory=run.path, in_this_process=True)
    processes, asked = current_processes(), examples_per_step(config, current_processes().count)
    if processes.is_main:
        notify("note", {"text": foreseen.words()})
        if compute.examples_per_step not in (None, asked):
            began = f"this run takes {compute.examples_per_step} examples a step, as it began"
            notify("note", {"text": f"{began}; with {processes.count} processes the configuration would say {asked}"})
    if compute.recompute is not None:
        return compute, foreseen
    recompute = any_process(foreseen.plan.recompute, compute.device)
    compute = replace(compute, recompute=recompute, examples_per_step=compute.examples_per_step or asked)
    if processes.is_main:
        record_decisions(run, compute, foreseen.recompute_reason)
        if config.training.gradient_checkpointing == "auto" and compute.recompute:
            notify("note", {"text": f"activations are recomputed: {foreseen.recompute_reason}"})
    return compute, foreseen
