"""`inspect` and `iterate`: what a run still gets wrong, and what rows written against it did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halo_forge.cli.release_commands import RunArgument
from halo_forge.cli.running import JsonOption, importing, print_json, printable, told_in_words
from halo_forge.cli.sampling_commands import watched


@told_in_words
def inspect_command(
    run: RunArgument,
    clusters: Annotated[int, typer.Option("--clusters", help="Gather failures into at most so many.", min=1)] = 8,
    metric: Annotated[
        str | None, typer.Option("--metric", help="What makes an answer right. Default: the strictest that applies.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write. Default: RUN/inspect.", metavar="DIRECTORY")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked and written, do neither.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Gather and name what a run gets wrong on its validation rows, and write a template of rows to mend it with.

    The holdout is never looked at. The same command goes on where a stopped one left off.
    """

    def work(notify: Any, check: Any) -> Any:
        with importing():
            from halo_forge.failures.inspection import inspect_run, plan_inspection

        if dry_run:
            return plan_inspection(run, output)
        return inspect_run(run, output, max_clusters=clusters, metric=metric, notify=notify, check=check).record

    found = watched(work)
    if as_json:
        print_json(found)
    elif isinstance(found, dict):
        print(printable(inspection_plan_words(found)))
    else:
        print(printable(found.words()))


def inspection_plan_words(plan: dict[str, Any]) -> str:
    return (
        f"{plan['model']} would answer {plan['num_prompts']} of {plan['num_rows']} validation prompts with at most "
        f"{plan['max_new_tokens']} tokens each; answers in {plan['cache']} are not asked again.\n"
        f"Written would be {', '.join(plan['writes'])}. Nothing was asked or written."
    )


@told_in_words
def iterate_command(
    run: RunArgument,
    rows: Annotated[Path, typer.Option("--rows", help="The rows to add, in any row format.", metavar="FILE")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New run directory. Default: RUN-iter2.", metavar="DIRECTORY")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the rows and count the steps, train nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a run again with more rows, on the same validation rows and holdout, and show what the rows did.

    The same command goes on where a stopped one left off. Exit code 3 when the rows cannot be trained on.
    """

    def work(notify: Any, check: Any) -> Any:
        with importing():
            from halo_forge.failures.iteration import iterate_run, plan_iteration

        if dry_run:
            return plan_iteration(run, rows, output, notify)
        return iterate_run(run, rows, output, notify=notify, check=check)

    found = watched(work)
    if as_json:
        print_json(found)
    else:
        from halo_forge.failures.outcome import iteration_words

        print(printable(found["words"] if isinstance(found, dict) else iteration_words(found)))
