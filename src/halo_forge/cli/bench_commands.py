"""`bench run`, `bench list`, `bench mirror`: published benchmarks of a model or of a run's base and tuned one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from halo_forge.artifacts import Comparison, Measurement
from halo_forge.cli.running import JsonOption, importing, print_json, told_in_words
from halo_forge.errors import ExitCode, UsageError
from halo_forge.metrics import TREE_VARIABLE

TasksOption = Annotated[
    str,
    typer.Option("--tasks", help="Comma-separated benchmarks, or tasks of lm-eval by name.", metavar="NAMES"),
]
TreeOption = Annotated[
    Path | None,
    typer.Option(
        "--tree", envvar=TREE_VARIABLE, help="Local rows (`bench mirror`), read before the Hub is.", metavar="DIRECTORY"
    ),
]
DEFAULT_TASKS = "mmlu,humaneval,gsm8k,truthfulqa,hellaswag,ifeval"


@told_in_words
def run_command(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model name or directory.")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run directory: base and tuned are compared.")] = None,
    tasks: TasksOption = DEFAULT_TASKS,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task (of each subject of MMLU); marked as subsampled.")
    ] = None,
    tree: TreeOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where --model's results go. Default: bench/NAME.", metavar="DIRECTORY")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers that are generated together.")] = 16,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask as the model's template writes a user's turn.")
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="--model in bfloat16; a run keeps its own precision.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run benchmarks. Killed and started again, it goes on. Exit code 5 if a benchmark has no number."""
    if (model is None) == (run is None):
        raise UsageError("give --model NAME or --run DIRECTORY", fix="halo-forge bench run --model NAME --tasks gsm8k")
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise UsageError("--tasks names no benchmark", fix="halo-forge bench list")
    if tree is not None and not tree.is_dir():
        raise UsageError(
            "there is no such tree of benchmarks", where=str(tree), fix="halo-forge bench mirror DIRECTORY"
        )
    from rich.console import Console

    from halo_forge.cli.console import Reporter
    from halo_forge.evaluate.bench.engine import require_lm_eval

    require_lm_eval()
    with importing():
        from halo_forge.benchmarking import benchmark_model, benchmark_run
        from halo_forge.evaluate.bench.run import BenchSettings

    settings = BenchSettings(names=names, limit=limit, tree=tree, batch_size=batch_size, chat_template=chat_template)
    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    try:
        if run is not None:
            report = benchmark_run(run, settings, reporter)
        else:
            assert model is not None
            place = out or Path("bench") / re.sub(r"[^\w.-]+", "__", model).strip("_.")
            report = benchmark_model(model, place, settings, bf16=bf16, notify=reporter)
    finally:
        reporter.close()
    if as_json:
        print_json(report)
    else:
        rows = report.comparisons or report.measurements
        print("\n".join(_line(row) for row in rows))
    if any(row.status != "measured" for row in report.measurements):
        raise typer.Exit(int(ExitCode.EVIDENCE_INSUFFICIENT))


def _line(row: Comparison | Measurement) -> str:
    if isinstance(row, Measurement):
        return f"{row.metric:<44} {_value(row)}"
    change = "" if row.delta.value is None else f"  {row.delta.value:+.4f}{_interval(row.delta)}"
    return f"{row.metric:<44} {_value(row.base)}  ->  {_value(row.tuned)}{change}"


def _value(row: Measurement) -> str:
    if row.value is None:
        return f"{row.status.replace('_', ' ')}: {row.note}"
    marked = ", subsampled" if row.subsampled else ""
    return f"{row.value:.4f}{_interval(row)} (n {row.n}{marked})"


def _interval(row: Measurement) -> str:
    return "" if row.low is None or row.high is None else f" [{row.low:.4f}, {row.high:.4f}]"


@told_in_words
def list_command(
    every: Annotated[bool, typer.Option("--all", help="Every task, group and tag that lm-eval has.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the benchmarks that have a name here."""
    from halo_forge.evaluate.bench.tasks import BENCHMARKS

    if every:
        from halo_forge.evaluate.bench.engine import known_tasks, quiet, require_lm_eval

        require_lm_eval()
        with quiet():
            names = known_tasks()
        print_json(names) if as_json else print("\n".join(names))
        return
    if as_json:
        print_json(list(BENCHMARKS.values()))
        return
    for benchmark in BENCHMARKS.values():
        print(f"{benchmark.name:<12} {benchmark.num_items:>6} items  {benchmark.kind}")


@told_in_words
def mirror_command(
    tree: Annotated[Path, typer.Argument(help="The tree to build or to complete.", metavar="DIRECTORY")],
    tasks: TasksOption = DEFAULT_TASKS,
    source: Annotated[
        Path | None, typer.Option("--from", help="Another tree to copy from instead of the Hub.", metavar="DIRECTORY")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build a local tree of benchmark rows, for machines without a network."""
    from rich.console import Console

    from halo_forge.cli.console import Reporter
    from halo_forge.evaluate.bench.mirror import build_mirror

    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    manifest = build_mirror(names, tree, source=source, notify=reporter)
    print_json({"manifest": str(manifest)}) if as_json else print(manifest)
