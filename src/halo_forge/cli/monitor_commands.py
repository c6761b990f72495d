"""`monitor watch` and `monitor regress`; `monitor RELEASE LOG` is `monitor watch RELEASE LOG`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperGroup

from halo_forge.cli.running import JsonOption, SetOption, print_json, told_in_words
from halo_forge.config import load_config
from halo_forge.errors import ExitCode

ReleaseArgument = Annotated[Path, typer.Argument(help="Published version or run directory.", metavar="RELEASE")]
MonitorConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML with a monitor section.", metavar="FILE")
]
EXITS = {"ok": ExitCode.OK, "drift": ExitCode.GATE_FAILED, "too_few_rows": ExitCode.EVIDENCE_INSUFFICIENT}


class WatchByDefault(TyperGroup):
    """A first word that names no command is the release to watch."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["watch", *args]
        return super().parse_args(ctx, args)


@told_in_words
def watch_command(
    reference: ReleaseArgument,
    log: Annotated[Path, typer.Argument(help="Production log, JSONL with prompt and answer.", metavar="LOG")],
    config: MonitorConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what a model does in production with what it did when released. Exit code 4 on drift, 5 on few rows."""
    from halo_forge.monitor import observe

    report = observe(load_config(config, overrides=overrides or ()).config, reference, log)
    if as_json:
        print_json(report)
    else:
        print(report.words())
    raise typer.Exit(int(EXITS[report.verdict]))
