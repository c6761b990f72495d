"""`plan`: what a run would need, before it starts, and what to change where it does not fit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halo_forge.cli.running import JsonOption, SetOption, given, importing, print_json, told_in_words
from halo_forge.cli.train_commands import DataFlag, DatasetFlag, ModelFlag, OutputFlag
from halo_forge.config import load_config
from halo_forge.errors import ExitCode

if TYPE_CHECKING:
    from halo_forge.train.planning.forecast import Forecast


@told_in_words
def plan_command(
    config: Annotated[Path | None, typer.Argument(help="YAML configuration.", metavar="[CONFIG]")] = None,
    dataset: DatasetFlag = None,
    data: DataFlag = None,
    model: ModelFlag = None,
    output: OutputFlag = None,
    overrides: SetOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read no rows: each is taken to be max_seq_length tokens long.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict memory, time and disk of a run; say what to change where it does not fit.

    Loads no weights. Exit code 0 = it fits, 6 = it does not.
    """
    flags = given(
        {
            "--dataset": ("data.dataset", dataset),
            "--data": ("data.train_file", data),
            "--model": ("model.name", model),
            "--output": ("output.dir", output),
        }
    )
    resolved = load_config(config, overrides=overrides or (), flags=flags)
    from rich.console import Console

    from halo_forge.cli.console import Reporter

    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    for notice in resolved.notices:
        reporter("note", {"text": notice})
    with importing():
        from halo_forge import pipeline

    try:
        foreseen = pipeline.foresee(resolved, read_rows=not quick, notify=reporter)
    finally:
        reporter.close()
    print_json(plan_as_json(foreseen)) if as_json else print(plan_as_text(foreseen, resolved.config.model.name))
    if not foreseen.plan.fits:
        raise typer.Exit(int(ExitCode.OUT_OF_MEMORY))


def plan_as_json(foreseen: Forecast) -> dict[str, Any]:
    plan = foreseen.plan
    record = asdict(plan)
    del record["workload"]["largest_rows"]
    return record | {
        "peak_bytes": plan.peak_bytes,
        "peak_phase": plan.largest_phase.name,
        "memory": plan.memory_fit,
        "disk_bytes": plan.disk.num_bytes,
        "disk_fits": plan.disk_fits,
        "fits": plan.fits,
        "recompute_reason": foreseen.recompute_reason,
        "changes": [asdict(change) | {"arguments": change.arguments} for change in foreseen.changes],
    }


def plan_as_text(foreseen: Forecast, model_name: str) -> str:
    """For people: a line for each question, a table of phases, the changes with what they save and cost."""
    plan, model = foreseen.plan, foreseen.plan.model
    parts = ", ".join(f"{count / 1e6:.1f} {part}" for part, count in model.parameters.items() if count)
    share = plan.num_trainable / (
        model.num_parameters + (plan.num_trainable if plan.num_trainable < model.num_parameters else 0)
    )
    lines = [
        f"model     {model_name}: {model.num_parameters / 1e6:.1f} million weights ({parts})",
        f"trained   {plan.num_trainable / 1e6:.2f} million ({share:.1%}), {plan.precision} on {plan.device}, "
        f"activations {'recomputed' if plan.recompute else 'kept'} ({foreseen.recompute_reason})",
        f"rows      {_rows(foreseen)}",
        f"steps     {_steps(foreseen)}",
        f"disk      {_disk(foreseen)}",
        "memory    " + _memory(foreseen),
        "",
    ]
    for phase in plan.phases:
        mark = "  <- largest" if phase is plan.largest_phase and len(plan.phases) > 1 else ""
        lines.append(f"  {phase.name:<14} {_gb(phase.num_bytes):>9}{mark}")
        lines += [f"    {part:<18} {_gb(num_bytes):>9}" for part, num_bytes in phase.parts.items()]
    if foreseen.changes:
        lines += ["", "what would help, cheapest first:"]
        width = max(len(change.arguments) for change in foreseen.changes)
        for change in foreseen.changes:
            enough = "fits" if change.fits else "not enough"
            saves = f"saves {_gb(change.saves_bytes)}, {enough}"
            lines.append(f"  {change.arguments:<{width}}  {saves}; {change.words}")
    elif not plan.fits:
        lines += ["", "no change of the configuration makes it fit: take a smaller model, or a larger machine"]
    return "\n".join(lines)


def _rows(foreseen: Forecast) -> str:
    work = foreseen.plan.workload
    largest = f"largest micro-batch {work.largest.num_tokens:,} tokens"
    if not work.is_measured:
        return f"not read; each is taken to be {work.longest_tokens:,} tokens long and trained throughout, {largest}"
    return (
        f"{work.num_examples:,} with {work.num_tokens:,} tokens, {work.supervised_share:.0%} trained, "
        f"the longest {work.longest_tokens:,}; {largest}"
    )


def _steps(foreseen: Forecast) -> str:
    from halo_forge.report.wording import duration

    plan = foreseen.plan
    if plan.num_steps is None:
        return "not known without rows"
    tokens = "" if plan.num_tokens is None else f" over {plan.num_tokens:,} tokens"
    time = "" if plan.time_s is None else f", about {duration(plan.time_s)}"
    speed = "" if plan.tokens_per_s is None else f" at {plan.tokens_per_s:,.0f} tokens/s ({plan.speed_source})"
    return f"{plan.num_steps:,}{tokens}{time}{speed}"


def _disk(foreseen: Forecast) -> str:
    plan, disk = foreseen.plan, foreseen.plan.disk
    free = "" if plan.free_disk_bytes is None else f" of {_gb(plan.free_disk_bytes)} free"
    data = "" if disk.data is None else f", prepared rows {_gb(disk.data)}"
    verdict = "" if plan.disk_fits else ": does not fit"
    return (
        f"{_gb(disk.num_bytes)}{free}{verdict} ({disk.num_checkpoints} x checkpoint of {_gb(disk.checkpoint)}, "
        f"final_model {_gb(disk.final_model)}{data})"
    )


def _memory(foreseen: Forecast) -> str:
    plan = foreseen.plan
    if plan.usable_bytes is None:
        return f"about {_gb(plan.peak_bytes)}; how much is free could not be read"
    words = {"tight": "it fits, tightly: predictions are within 25%"}.get(plan.memory_fit, f"it {plan.memory_fit}")
    words = words.replace("it does not fit", "it does NOT fit")
    return f"about {_gb(plan.peak_bytes)} ({plan.largest_phase.name}) of {_gb(plan.usable_bytes)} free: {words}"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 5e6 else f"{num_bytes / 1e6:.2f} MB"
