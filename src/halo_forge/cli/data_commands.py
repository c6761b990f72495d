"""Commands over rows: `data check`, `data show`, `data prepare`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from halo_forge.cli.folding import folded, reading_width
from halo_forge.cli.running import (
    ConfigOption,
    FreshOption,
    JsonOption,
    SetOption,
    given,
    print_json,
    printable,
    told_in_words,
)
from halo_forge.config import load_config
from halo_forge.errors import ExitCode, UsageError

SHOWN_BAD_ROWS = 20


@told_in_words
def check_command(
    files: Annotated[list[str], typer.Argument(help="Files, directories or globs.", metavar="FILE...")],
    row_format: Annotated[str, typer.Option("--format", help="Row format; `auto` detects it.")] = "auto",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read rows without a model and say, line by line, what is wrong with them. Exit code 3 if rows are unusable."""
    from halo_forge.data import check

    flags = given({"FILE": ("data.train_file", files), "--format": ("data.format", row_format)})
    report = check(load_config(flags=flags, overrides=overrides or ()).config)
    if as_json:
        print_json(report.to_dict())
    else:
        for source in report.sources:
            if not any(note.startswith(f"{source['path']}: {source['format']}") for note in report.notes):
                print(printable(f"{source['path']}: {source['format']}"))
        for row in report.rows[:SHOWN_BAD_ROWS]:
            print(printable(f"{row['file']}:{row['line']}: {row['action']}: {row['reason']} [{row['code']}]"))
        for note in report.notes:
            print(folded(printable(note), 2, reading_width()))
        if len(report.rows) > SHOWN_BAD_ROWS:
            print(f"... and {len(report.rows) - SHOWN_BAD_ROWS} more (--json prints all)")
        print(f"{report.read} rows read: {report.kept} kept ({report.fixed} of them fixed), {report.dropped} dropped")
    if report.bad_frac > 0 or not report.kept:  # duplicates are dropped too, and are no damage
        raise typer.Exit(int(ExitCode.DATA))


@told_in_words
def show_command(
    data: Annotated[str | None, typer.Option("--data", help="Rows to look at.", metavar="FILE")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Whose template and tokens.")] = None,
    row: Annotated[int, typer.Option("--row", help="Which row, counted from 1.", min=1)] = 1,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print one row as the model will see it, its tokens coloured by how much they are trained."""
    flags = given({"--data": ("data.train_file", data), "--model": ("model.name", model)})
    chosen = load_config(config, overrides=overrides or (), flags=flags).config
    if not chosen.data.names_rows:
        raise UsageError("no rows to look at", fix="halo-forge data show --data FILE --model NAME --row 1")
    from halo_forge.chat import ChatEncoder, token_view, view_as_ansi, view_as_json
    from halo_forge.data import conversation_of_row
    from halo_forge.models.new_tokens import tokenizer_of

    conversation = conversation_of_row(chosen, row)
    tokenizer = tokenizer_of(chosen.model)
    encoder = ChatEncoder(
        tokenizer,
        max_seq_length=chosen.data.max_seq_length,
        train_on=chosen.data.train_on,
        overlong=chosen.data.overlong,
        reasoning=chosen.data.reasoning,
    )
    encoded = encoder.encode(conversation)
    if as_json:
        print(json.dumps(view_as_json(token_view(encoded.example, tokenizer)), ensure_ascii=False))
        return
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(view_as_ansi(token_view(encoded.example, tokenizer), color=coloured))
    example = encoded.example
    where = f"{conversation.source.path}:{conversation.source.line}"
    print(
        f"\n{where}: {len(example.input_ids)} tokens, {example.num_supervised_tokens} trained"
        + "".join(f", {note}" for note in encoded.notes),
        file=sys.stderr,
    )


@told_in_words
def prepare_command(
    config: Annotated[Path | None, typer.Argument(help="YAML configuration.", metavar="[CONFIG]")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Rows.", metavar="FILE")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Whose template and tokens.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Run directory.")] = None,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read, check, split and tokenise the rows into the run directory; train nothing."""
    from halo_forge.cli.train_commands import How, execute

    flags = given(
        {
            "--data": ("data.train_file", data),
            "--model": ("model.name", model),
            "--output": ("output.dir", output),
        }
    )
    resolved = load_config(config, overrides=overrides or (), flags=flags)
    execute(resolved, "data", How(fresh=fresh, as_json=as_json))
