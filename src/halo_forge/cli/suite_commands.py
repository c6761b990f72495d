"""`suites`: the prompt suites there are, what is in one, and what a model says to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halo_forge.artifacts import SuiteRun
from halo_forge.cli.running import JsonOption, SetOption, given, importing, print_json, printable, told_in_words
from halo_forge.config import load_config
from halo_forge.suites.suite import Suite, load_suite, load_suites, shipped_suites

SHOWN_CHARS = 100


def suites_callback(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the suites; with a subcommand, do that."""
    if context.invoked_subcommand is None:
        list_command(as_json)


@told_in_words
def list_command(as_json: JsonOption = False) -> None:
    """The prompt suites that come with halo-forge, with their items by kind and the hash of their file."""
    suites = [load_suite(name) for name in shipped_suites()]
    if as_json:
        print_json([_summary(suite) for suite in suites])
        return
    for suite in suites:
        kinds = ", ".join(f"{count} {kind}" for kind, count in suite.kinds.items())
        print(f"{suite.name:<18} {len(suite.items):>4} items  {suite.sha256[:12]}  {kinds}")


def _summary(suite: Suite) -> dict[str, Any]:
    return {"name": suite.name, "items": len(suite.items), "kinds": suite.kinds, "sha256": suite.sha256}


@told_in_words
def show_command(
    name: Annotated[str, typer.Argument(help="Name of a suite, or a JSONL file of your own.", metavar="SUITE")],
    as_json: JsonOption = False,
) -> None:
    """Every item of a suite. A file of your own is checked: exit code 3 names the line that is wrong."""
    suite = load_suite(name)
    if as_json:
        items = [item.model_dump(mode="json", exclude_defaults=True) for item in suite.items]
        print_json({**_summary(suite), "content": items})
        return
    print(f"{suite.name}: {len(suite.items)} items, sha256 {suite.sha256}")
    for item in suite.items:
        asked = " ".join(item.turns[-1].content.split())
        told = asked if len(asked) <= SHOWN_CHARS else f"{asked[: SHOWN_CHARS - 1]}…"
        print(printable(f"{item.id:<12} {item.kind:<13} {item.group:<16} {item.language:<3} {told}"))


@told_in_words
def run_command(
    model: Annotated[str, typer.Argument(help="Model name or directory.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the answers.", metavar="DIRECTORY")],
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="Name or file; again for more. Default: all.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask one model the suites and score what it says. The same command goes on where it was stopped."""
    flags = given({
        "MODEL": ("model.name", model), "--output": ("output.dir", str(output)),
        "--suite": ("evaluation.suites", suite or shipped_suites()),
    })  # fmt: skip
    resolved = load_config(flags=flags, overrides=overrides or ())
    suites = load_suites(resolved.config.evaluation.suites)
    from rich.console import Console

    from halo_forge.cli.console import Reporter

    with importing():
        from halo_forge.evaluate.suites.alone import run_suites

    reporter = Reporter(Console(stderr=True, highlight=False), quiet=as_json)
    try:
        record = run_suites(resolved.config, suites, reporter)
    finally:
        reporter.close()
    print_json(record) if as_json else print(printable(_words(record)))


def _words(record: SuiteRun) -> str:
    from halo_forge.report.wording import interval, label_of, metric_value

    lines = [f"{record.model_name}: {sum(suite.num_items for suite in record.suites)} items"]
    for row in record.measurements:
        if row.slice != "all":
            continue
        if row.value is None:
            lines.append(f"  {row.metric:<24} not measured: {row.note}")
            continue
        value, bounds = metric_value(row.metric, row.value), interval(row.metric, row)
        lines.append(f"  {row.metric:<24} {value:>8}  {f'({bounds})':<20} n {row.n:<4} {label_of(row.metric)}")
    for suite in record.suites:
        lines.append(f"  {suite.name}: {suite.failed_tuned} of {suite.num_items} fail, see {suite.answers}")
    return "\n".join(lines)
