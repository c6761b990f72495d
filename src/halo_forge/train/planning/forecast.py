"""The plan of a run on this machine: model shape, prepared rows, free memory and measured speed brought together."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from halo_forge.config.schema import Config
from halo_forge.domains import domain_that_reads
from halo_forge.domains.media import open_media
from halo_forge.models.compute import Compute
from halo_forge.models.load import load_tokenizer
from halo_forge.models.machine import resident_bytes, usable_bytes
from halo_forge.models.partial import train_only
from halo_forge.models.shape import ModelShape, read_shape
from halo_forge.runs import IDENTITY_SECTIONS
from halo_forge.train.planning.planner import TIGHT_SHARE, Machine, RunPlan, plan_run
from halo_forge.train.planning.remedies import Change, changes_that_help
from halo_forge.train.planning.workload import Packing, RowSizes, workload_of
from halo_forge.train.processes import current_processes
from halo_forge.train.watching.metrics import read_metrics

SPEED_STEPS = 20
"""The last steps of a run that its speed is taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The plan, what would help where it does not fit, and what gradient_checkpointing means here and why."""

    plan: RunPlan
    changes: tuple[Change, ...]
    recompute_reason: str

    def words(self) -> str:
        """One line for the start of a run."""
        plan = self.plan
        size = f"needs about {plan.peak_bytes / 1e9:.1f} GB ({plan.largest_phase.name})"
        if plan.usable_bytes is not None:
            size += f" of {plan.usable_bytes / 1e9:.1f} GB: {plan.memory_fit}"
        parts = [size]
        if plan.num_steps is not None:
            parts.append(f"{plan.num_steps} steps")
        if plan.time_s is not None:
            parts.append(f"about {_rounded_time(plan.time_s)}")
        parts.append(f"up to {plan.disk.num_bytes / 1e9:.2f} GB on disk" + ("" if plan.disk_fits else ": does not fit"))
        return "plan: " + ", ".join(parts)


def forecast(
    config: Config,
    rows: RowSizes | None,
    compute: Compute,
    *,
    directory: Path | None = None,
    in_this_process: bool = False,
) -> Forecast:
    """Plan the run of `config`; loads no weights.

    rows             the prepared rows, or None: then each is taken to be max_seq_length long
    directory        the run's, if there is one: its measured rates and the disk that it is on
    in_this_process  the run will go on in this process, whose memory now is the plan's starting point
    Raises ModelNotFound, and UsageError for lora.target_modules that the model has not.
    """
    num_processes = current_processes().count
    shapes = {config.training.method: shape_to_train(config)}
    machine = this_machine(config, compute, directory, num_processes, in_this_process=in_this_process)

    def planned(changed: Config, recompute: bool | None = None) -> RunPlan:
        method = changed.training.method
        if method not in shapes:
            shapes[method] = shape_to_train(changed)
        packing = Packing.of(changed, compute, num_processes)
        precision = "bfloat16" if changed.training.bf16 is True else compute.precision
        used = _with_precision(machine, precision)
        workload = workload_of(rows, changed, packing)
        choice = changed.training.gradient_checkpointing is True if recompute is None else recompute
        return plan_run(changed, shapes[method], workload, packing, used, recompute=choice)

    recompute, reason = choose_recompute(config, planned(config, False), planned(config, True))
    plan = planned(config, recompute)
    changes = changes_that_help(config, plan, lambda changed: planned(changed, recompute or None))
    return Forecast(plan=plan, changes=tuple(changes), recompute_reason=reason)


def shape_to_train(config: Config) -> ModelShape:
    """The shape of the configured model, with what the configuration freezes; no weights are read."""
    method, name, revision = config.training.method, config.model.name, config.model.revision
    if method != "full":
        targets = config.lora.target_modules if method == "lora" else None
        return read_shape(name, revision, target_modules=targets)

    def freeze(model: PreTrainedModel) -> None:
        media = None
        if domain_that_reads(model.config.model_type) is not None:
            media = open_media(config, load_tokenizer(name, revision=revision))
        if media is not None:
            media.configure(model)
        if config.training.trainable is not None:
            train_only(model, config.training.trainable)

    return read_shape(name, revision, freeze=freeze)


def choose_recompute(config: Config, kept: RunPlan, recomputed: RunPlan) -> tuple[bool, str]:
    """(whether activations are recomputed, why). `auto` recomputes only where keeping them would not fit.

    kept, recomputed  the plans with and without all activations in memory
    """
    configured = config.training.gradient_checkpointing
    if configured != "auto":
        return configured, "as configured"
    needs, needs_less = kept.phases[0].num_bytes, recomputed.phases[0].num_bytes
    words = f"keeping activations needs about {needs / 1e9:.1f} GB"
    if kept.usable_bytes is None:
        return False, f"{words}; how much is free could not be read"
    words += f" of {kept.usable_bytes / 1e9:.1f} GB"
    if needs <= TIGHT_SHARE * kept.usable_bytes:
        return False, words
    if needs_less >= needs:
        return False, f"{words}, and recomputing would save nothing"
    return True, f"{words}; recomputing them, about {needs_less / 1e9:.1f} GB"


def this_machine(
    config: Config, compute: Compute, directory: Path | None, num_processes: int, *, in_this_process: bool
) -> Machine:
    record = _read(directory, "compute.json")
    place = directory if directory is not None else Path(config.output.dir)
    while not place.exists():
        place = place.parent
    device = compute.device.type
    process = None
    if in_this_process:
        process = resident_bytes() if device == "cpu" else 0
    return Machine(
        device=device,
        precision=compute.precision,
        usable_bytes=device_bytes(compute.device),
        gflops=record.get(f"{compute.precision}_gflops"),
        tokens_per_s=earlier_speed(config, directory),
        process_bytes=process,
        num_processes=num_processes,
        free_disk_bytes=shutil.disk_usage(place).free,
    )


def device_bytes(device: torch.device) -> int | None:
    """What this process may hold in all on the device; None where it cannot be known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return usable_bytes()


def earlier_speed(config: Config, directory: Path | None) -> float | None:
    """Tokens a second of the last steps in this run directory, if it holds this very training; else None."""
    if directory is None:
        return None
    earlier = _read(directory, "run.json").get("config", {})
    now = config.to_dict()
    if any(earlier.get(name) != now[name] for name in IDENTITY_SECTIONS):
        return None
    steps = [line for line in read_metrics(directory / "metrics.jsonl") if line["kind"] == "train"][-SPEED_STEPS:]
    seconds = sum(line["time_s"] for line in steps)
    return sum(line["num_tokens"] for line in steps) / seconds if seconds else None


def _with_precision(machine: Machine, precision: Any) -> Machine:
    return machine if precision == machine.precision else replace(machine, precision=precision)


def _read(directory: Path | None, name: str) -> dict[str, Any]:
    if directory is None or not (directory / name).is_file():
        return {}
    found = json.loads((directory / name).read_bytes())
    return found if isinstance(found, dict) else {}


def _rounded_time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
