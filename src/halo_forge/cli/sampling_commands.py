"""Commands that sample a model: `generate` and `handoff`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from halo_forge.cli.running import JsonOption, importing, print_json, printable, told_in_words
from halo_forge.errors import UsageError

SamplesOption = Annotated[int, typer.Option("--samples", "-k", help="Answers to draw for each prompt.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy decoding.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Draw from the most likely tokens that hold this share.")]
SeedOption = Annotated[int, typer.Option(help="The same seed draws the same answers.")]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer in tokens.")]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Answers that are drawn together; changes no answer.")]
VerifierOption = Annotated[
    list[str] | None,
    typer.Option(
        "--verifier", "-v", metavar="VERIFIER",
        help="compile, unit-test, regex:PATTERN, json-schema:FILE, numeric, exact, python:FILE. Repeatable.",
    ),
]  # fmt: skip
PromptsOption = Annotated[
    list[str] | None, typer.Option("--prompts", help="Files of prompts, in any row format.", metavar="FILE")
]
HoldoutOption = Annotated[
    list[str] | None, typer.Option("--holdout", help="Files whose prompts must not be asked.", metavar="FILE")
]
LimitOption = Annotated[int | None, typer.Option("--max-prompts", help="Ask at most this many prompts.", min=1)]
FormatOption = Annotated[str, typer.Option("--format", help="Row format of the prompts; `auto` detects it.")]


@told_in_words
def generate_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL of kept answers.", metavar="FILE")],
    prompts: PromptsOption = None,
    run: Annotated[Path | None, typer.Option(help="Run whose model and prompts are taken.", metavar="RUN")] = None,
    split: Annotated[str, typer.Option(help="Prompts of --run: train or validation.")] = "validation",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model, instead of the one of --run.")] = None,
    samples: SamplesOption = 4,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    seed: SeedOption = 0,
    max_new_tokens: TokensOption = 256,
    batch_size: BatchOption = 16,
    verifier: VerifierOption = None,
    keep: Annotated[str, typer.Option(help="best (one a prompt), passed, or all.")] = "passed",
    holdout: HoldoutOption = None,
    max_prompts: LimitOption = None,
    row_format: FormatOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw answers, verify them, and write those that are kept as rows for `sft train --data`.

    The same command goes on where a stopped one left off. Held-out prompts are never asked.
    """
    kept = _one_of("--keep", keep, ("best", "passed", "all"))
    chosen_split = _one_of("--split", split, ("train", "validation", "holdout"))
    if keep != "all" and not verifier:
        raise UsageError(
            f"--keep {keep} needs a verifier that decides", fix="--verifier exact (or another), or --keep all"
        )

    def work(notify: Any, check: Any) -> dict[str, Any]:
        with importing():
            from halo_forge.sampling.generation import Drawing
            from halo_forge.sampling.run import Request, sample_command

        drawing = Drawing(
            samples=samples, temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )  # fmt: skip
        request = Request(
            output=output, prompts=tuple(prompts or ()), run=run, split=chosen_split, model=model, drawing=drawing,
            verifiers=tuple(verifier or ()), keep=kept, holdout=tuple(holdout or ()),
            row_format=known_format(row_format), limit=max_prompts, overwrite=force,
        )  # fmt: skip
        return sample_command(request, notify, check)

    record = watched(work)
    print_json(record) if as_json else print(printable(generation_words(record)))


@told_in_words
def handoff_command(
    run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the package.", metavar="DIRECTORY")],
    prompts: PromptsOption = None,
    samples: SamplesOption = 8,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    seed: SeedOption = 0,
    max_new_tokens: TokensOption = 256,
    batch_size: BatchOption = 16,
    verifier: VerifierOption = None,
    max_prompts: LimitOption = None,
    row_format: FormatOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Package a run for preference training (DPO) and rejection sampling (RAFT): model, baseline, judged answers.

    Prompts come from the validation rows, or from --prompts; none of them was trained on or is held out.
    """

    def work(notify: Any, check: Any) -> dict[str, Any]:
        with importing():
            from halo_forge.sampling.generation import Drawing
            from halo_forge.sampling.handoff import hand_off
            from halo_forge.sampling.run import Request

        drawing = Drawing(
            samples=samples, temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )  # fmt: skip
        request = Request(
            output=output, prompts=tuple(prompts or ()), run=run, drawing=drawing, verifiers=tuple(verifier or ()),
            limit=max_prompts, row_format=known_format(row_format),
        )  # fmt: skip
        return hand_off(request, notify, check)

    record = watched(work)
    if as_json:
        print_json(record)
        return
    print(printable(generation_words(record)))
    for name, file in record["files"].items():
        print(printable(f"{record['output']}/{name}: {file['rows']} rows" if "rows" in file else
                        f"{record['output']}/{name}: {file['bytes']} bytes"))  # fmt: skip


def _one_of(name: str, value: str, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise UsageError(f"{name} {value}: there is no such choice", expected=", ".join(allowed))
    return value


def known_format(name: str) -> Any:
    from halo_forge.data.conversion.formats import FORMATS

    return _one_of("--format", name, ("auto", *FORMATS))


def watched(work: Callable[[Any, Any], dict[str, Any]]) -> dict[str, Any]:
    """The work with a live line on stderr, ended by a signal at the next step."""
    from rich.console import Console

    from halo_forge.cli.console import Reporter
    from halo_forge.runs import StopSignal

    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    with StopSignal() as stop:
        try:
            return work(reporter, stop.check)
        finally:
            reporter.close()


def generation_words(record: Mapping[str, Any]) -> str:
    """What was asked, what passed, what was kept."""
    asked, prompts = record["prompts_sampled"], record["prompts"]
    left_out = {name: prompts[name] for name in ("repeated", "in_holdout", "in_train") if prompts[name]}
    left_out |= prompts["unusable"]
    lines = [
        f"{asked} prompts asked of {prompts['read']} read"
        + (f"; left out: {', '.join(f'{count} {name}' for name, count in left_out.items())}" if left_out else ""),
        f"{record['samples']} samples ({record['samples_reused']} were there already), "
        + (f"{record['passed']} passed, {record['not_measured']} not measured, " if record["verifiers"] else "")
        + f"{record['samples'] - record['stopped']} cut off",
    ]
    for name, counts in record["verifiers"].items():
        lines.append(f"  {name}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    if record["pass_at_k"]:
        known = [(k, value) for k, value in record["pass_at_k"].items() if value is not None]
        lines.append("  " + (", ".join(f"pass@{k} {value:.1%}" for k, value in known) or "pass@k: not measured"))
    if "rows" in record:
        lines.append(f"{record['output']}: {record['rows']} rows kept ({record['keep']})")
    return "\n".join(lines)
