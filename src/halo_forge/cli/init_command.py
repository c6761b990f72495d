"""`init FILE`: look at rows, write a configuration that already validates, say what was chosen and why."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from halo_forge.cli.running import JsonOption, print_json, printable, told_in_words
from halo_forge.errors import DataError, UsageError

DEFAULT_CONFIG = Path("halo-forge.yaml")


@told_in_words
def init_command(
    file: Annotated[str, typer.Argument(help="Rows: a file, directory or pattern.", metavar="FILE")],
    config: Annotated[Path, typer.Argument(help="The configuration to write.", metavar="[CONFIG]")] = DEFAULT_CONFIG,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model to start from.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Run directory.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace CONFIG if it exists.")] = False,
    no_input: Annotated[
        bool, typer.Option("--yes", "-y", "--no-input", help="Ask nothing; take what is proposed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at rows and write a commented configuration for them, ready to run."""
    from halo_forge.config import load_config
    from halo_forge.config.schema import ModelSection
    from halo_forge.data.starter_config import look_at, starter_config
    from halo_forge.runs import write_atomic

    if config.exists() and not force:
        raise UsageError("this file exists", where=str(config), fix="--force replaces it, or name another")
    look = look_at(file)
    if sys.stdin.isatty() and sys.stderr.isatty() and not no_input and not as_json:
        for verdict in look.verdicts:
            print(printable(verdict), file=sys.stderr)
        model = model or typer.prompt("Model to start from", default=ModelSection().name, err=True)
        proposed = {choice.key: choice.value for choice in starter_config(look).choices}["output.dir"]
        output = output or typer.prompt("Directory for the run", default=str(proposed), err=True)
    starter = starter_config(look, model=model, output=output)
    earlier = config.read_bytes() if config.exists() else None
    try:
        write_atomic(config, starter.text)
    except OSError as error:
        raise DataError(f"the configuration cannot be written: {error.strerror or error}", where=str(config)) from None
    try:
        load_config(config, environment={})
    except Exception:  # --model or --output make no configuration: leave things as they were
        if earlier is None:
            config.unlink()
        else:
            write_atomic(config, earlier)
        raise
    command = shlex.join(["halo-forge", "run", str(config)])
    if as_json:
        print_json(
            {
                "config": str(config),
                "rows": look.num_rows,
                "formats": list(look.formats),
                "choices": [dataclasses.asdict(choice) for choice in starter.choices],
                "warnings": list(starter.warnings),
                "next": command,
            }
        )
        return
    for verdict in look.verdicts:
        print(printable(verdict))
    width = max(len(choice.key) for choice in starter.choices)
    for choice in starter.choices:
        print(printable(f"  {choice.key:<{width}}  {_shown(choice.value):<24}  {choice.why}"))
    for warning in starter.warnings:
        print(printable(f"note: {warning}"))
    print(printable(f"wrote {config}\nnext: {command}"))


def _shown(value: object) -> str:
    from halo_forge.config.yaml_text import yaml_value

    return yaml_value(value)
