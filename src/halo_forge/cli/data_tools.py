"""Commands that work on row files by themselves: dedupe, contamination, split, mix, convert; and stats, diff, rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halo_forge.cli.folding import folded, reading_width
from halo_forge.cli.running import JsonOption, SetOption, given, print_json, printable, told_in_words
from halo_forge.config import load_config
from halo_forge.errors import ExitCode, UsageError

FilesArgument = Annotated[
    list[str], typer.Argument(help="Files, directories, globs, or - for stdin.", metavar="FILE...")
]
FormatOption = Annotated[str, typer.Option("--format", help="Row format; `auto` detects it.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.", metavar="PATH")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
SHOWN = 20


def _config(files: list[str], row_format: str, overrides: list[str] | None, more: dict[str, tuple[Any, str]]) -> Any:
    flags = given({"FILE": ("data.train_file", files), "--format": ("data.format", row_format)})
    return load_config(flags=flags | more, overrides=overrides or ()).config


@told_in_words
def dedupe_command(
    files: FilesArgument,
    output: OutputOption = None,
    threshold: Annotated[
        float | None, typer.Option(help="Likeness (Jaccard of word 5-grams) of near-duplicates.")
    ] = None,
    semantic: Annotated[float | None, typer.Option(help="Cosine of sentence embeddings; off without it.")] = None,
    row_format: FormatOption = "auto",
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find exact and near duplicates; the first copy in input order stays. With --output, write the rows that stay."""
    from halo_forge.data.row_files import examined, write_rows

    config = _config(files, row_format, overrides, given({
        "--threshold": ("data.near_duplicate_threshold", threshold),
        "--semantic": ("data.semantic_duplicate_threshold", semantic),
    }))  # fmt: skip
    with examined(config) as found:
        written = write_rows(found, {output: found.rows.kept}, overwrite=force) if output else []
        report = found.rows.duplicates
        assert report is not None
    if as_json:
        print_json({**report.model_dump(mode="json"), "read": found.summary.num_read, "written": written})
        return
    print(f"{found.summary.num_read} rows: {report.exact} exact, {report.near} near and {report.semantic} semantic "
          f"duplicates, {report.across_sources} of them across files")  # fmt: skip
    for pair in report.examples:
        print(printable(f"{pair.dropped} repeats {pair.kept} ({pair.kind}, {pair.similarity:.0%}): {pair.excerpt}"))
    _print_written(written)


@told_in_words
def contamination_command(
    files: FilesArgument,
    benchmark: Annotated[
        list[str], typer.Option("--benchmark", "-b", help="gsm8k, mmlu, humaneval, ..., a file or a directory.")
    ],
    output: OutputOption = None,
    row_format: FormatOption = "auto",
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find rows that repeat benchmark items. Exit code 3 where some do. With --output, write the clean rows."""
    from halo_forge.data.overlap.benchmark_items import benchmarks_of
    from halo_forge.data.prepared_report import contamination
    from halo_forge.data.row_files import examined, write_rows

    config = _config(files, row_format, overrides, given({"--benchmark": ("data.decontaminate", benchmark)}))
    with examined(config) as found:
        reports = contamination(found.rows, benchmarks_of(config.data))
        written = write_rows(found, {output: found.rows.kept}, overwrite=force) if output else []
    if as_json:
        print_json({"read": found.summary.num_read, "benchmarks": reports, "written": written})
    else:
        for report in reports:
            print(f"{report.benchmark}: {report.items} items; rows: {report.exact} exact, {report.near} near, "
                  f"{report.ngram_13} share a 13-gram, {report.ngram_8} an 8-gram")  # fmt: skip
            for hit in report.examples:
                print(printable(f"  {hit.file}:{hit.line} ~ {hit.item} ({hit.kind}, {hit.overlap:.0%}): {hit.excerpt}"))
        _print_written(written)
    if any(report.exact or report.near for report in reports):
        raise typer.Exit(int(ExitCode.DATA))


@told_in_words
def split_command(
    files: FilesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the three files.", metavar="DIR")],
    validation: Annotated[float | None, typer.Option(help="Share to validate on.")] = None,
    holdout: Annotated[float | None, typer.Option(help="Share to hold out.")] = None,
    by: Annotated[str | None, typer.Option(help="Column whose equal values stay together, or `source`.")] = None,
    stratify: Annotated[str | None, typer.Option(help="Column whose values are split alike, or `source`.")] = None,
    row_format: FormatOption = "auto",
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Split rows by hash into train.jsonl, validation.jsonl and holdout.jsonl; rows added later never move old ones."""
    from halo_forge.data.row_files import examined, split_masks, write_rows

    config = _config(files, row_format, overrides, given({
        "--validation": ("data.validation_split", validation), "--holdout": ("data.holdout_split", holdout),
        "--by": ("data.split_by", by), "--stratify": ("data.stratify_by", stratify),
    }))  # fmt: skip
    with examined(config) as found:
        written = write_rows(found, split_masks(found, output), overwrite=force)
        notes = found.notes
    if as_json:
        print_json({"written": written, "notes": notes})
        return
    for note in notes:
        print(printable(note))
    _print_written(written)


@told_in_words
def mix_command(
    config: Annotated[Path, typer.Argument(help="YAML configuration with data.sources.", metavar="CONFIG")],
    output: OutputOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what each source gives to the training rows and to the loss. With --output, write the mixed rows."""
    from halo_forge.data.prepared_report import mix_of
    from halo_forge.data.row_files import examined, write_rows
    from halo_forge.models.new_tokens import tokenizer_of

    settings = load_config(config, overrides=overrides or ()).config
    if not settings.data.sources:
        raise UsageError("this configuration has no data.sources, so there is nothing to mix", where=str(config))
    tokenizer = tokenizer_of(settings.model)
    with examined(settings, tokenizer) as found:
        report = mix_of(found.rows, settings)
        assert report is not None
        written = write_rows(found, {output: found.rows.split == 0}, overwrite=force) if output else []
        notes = found.rows.notes
    if as_json:
        print_json({**report.to_dict(), "notes": [*notes, *report.notes], "written": written})
        return
    print(printable("\n".join([report.words(), *notes])))
    _print_written(written)


@told_in_words
def convert_command(
    files: FilesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL file to write.", metavar="FILE")],
    row_format: FormatOption = "auto",
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write rows of any format as JSONL of `messages`. Exit code 3 if rows could not be converted."""
    from halo_forge.data.convert_file import convert_file

    counts = convert_file(_config(files, row_format, overrides, {}).data, output, overwrite=force)
    if as_json:
        print_json(counts.to_dict())
    else:
        for row in counts.rows[:SHOWN]:
            print(printable(f"{row.file}:{row.line}: dropped: {row.reason} [{row.code}]"))
        print(f"{counts.read} rows read, {counts.written} written ({counts.fixed} of them fixed) to {output}, "
              f"{counts.dropped} dropped")  # fmt: skip
    if counts.dropped:
        raise typer.Exit(int(ExitCode.DATA))


@told_in_words
def stats_command(
    run: Annotated[Path, typer.Argument(help="Run directory with prepared data.", metavar="RUN")],
    as_json: JsonOption = False,
) -> None:
    """Rows, tokens, lengths, languages and findings of prepared data."""
    from halo_forge.data.stats import data_stats

    stats = data_stats(run)
    print_json(stats.to_dict()) if as_json else print(printable(stats.words()))


@told_in_words
def diff_command(
    before: Annotated[Path, typer.Argument(help="Run directory.", metavar="A")],
    after: Annotated[Path, typer.Argument(help="Run directory.", metavar="B")],
    as_json: JsonOption = False,
) -> None:
    """What changed between two prepared sets: rows, sources, settings, reasons, tokens."""
    from halo_forge.data.diff import diff_prepared

    found = diff_prepared(before, after)
    print_json(found.to_dict()) if as_json else print(folded(printable(found.words()), 4, reading_width()))


@told_in_words
def rules_command(as_json: JsonOption = False) -> None:
    """Every reason code: what it means, what happens to its rows, and what data.policies may say instead."""
    from halo_forge.data.reasons import REASONS

    if as_json:
        print_json([
            {"code": r.code, "kind": r.kind, "meaning": r.meaning, "default": r.default or "data.on_bad_row",
             "allowed": r.allowed}
            for r in REASONS.values()
        ])  # fmt: skip
        return
    kind = ""
    for reason in REASONS.values():
        if reason.kind != kind:
            kind = reason.kind
            print(f"\n{kind}")
        print(f"  {reason.code:38} {reason.default or 'on_bad_row':11} {reason.meaning}")


def _print_written(written: list[Any]) -> None:
    for file in written:
        print(printable(f"{file.path}: {file.rows} rows, sha256 {file.sha256}"))
