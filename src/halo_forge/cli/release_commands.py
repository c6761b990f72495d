"""Commands over finished runs: `evaluate`, `gate`, `publish`, `report`. `models ...`: model_commands.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from halo_forge.artifacts import EvalReport, GateDecision
from halo_forge.cli.running import VERDICT_EXIT, JsonOption, SetOption, importing, print_json, told_in_words
from halo_forge.config import Config, load_config
from halo_forge.config.schema import GateSection
from halo_forge.errors import UsageError
from halo_forge.runs import RunDirectory, read_artifact, write_artifact

RunArgument = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]


def config_of(run: Path) -> Path:
    path = run / "config.resolved.yaml"
    if not path.is_file():
        raise UsageError("this is not a run directory", where=str(run), expected="config.resolved.yaml in it")
    return path


@told_in_words
def evaluate_command(run: RunArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Evaluate a trained run against its base model again, for instance with other settings."""
    from halo_forge.cli.train_commands import How, execute

    resolved = load_config(config_of(run), overrides=[*(overrides or ()), f"output.dir={run}"])
    execute(resolved, "evaluate", How(as_json=as_json))


@told_in_words
def judge_command(
    run: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be asked, send nothing.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have another model (judge.judge_model) compare the answers of base and tuned. Goes on where it stopped."""
    with importing():
        from halo_forge.evaluate.judge import plan_judgement
        from halo_forge.pipeline import ask_judge
    from halo_forge.runs import StopSignal, silent

    config = load_config(config_of(run), overrides=overrides or ()).config
    if not config.judge.is_on:
        raise UsageError(
            "no judge is named", where="judge.judge_model", fix="--set judge.endpoint=URL --set judge.judge_model=NAME"
        )
    if dry_run:
        plan = plan_judgement(config, RunDirectory(run))
        print_json(plan) if as_json else print(plan.words())
        return
    report = read_artifact(run / "eval" / "report.json", EvalReport)
    with StopSignal() as stop, RunDirectory.open(run) as directory:
        judged = ask_judge(config, directory, report, silent, stop.check)
    print_json(judged) if as_json else print(judged.words())


@told_in_words
def gate_command(
    run: RunArgument,
    rules: Annotated[
        Path | None, typer.Option("--rules", help="YAML with a gate section to judge by instead.", metavar="FILE")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a run's evaluation against the gate's rules. Exit code 0 PASS, 4 FAIL, 5 INCONCLUSIVE.

    The verdict by the run's own rules is recorded in gate.json; with --rules or --set it is only printed.
    """
    from halo_forge.gate import require_known_metrics
    from halo_forge.metrics import scorer_names
    from halo_forge.report import write_report
    from halo_forge.verdict import judge_evaluation

    config = load_config(config_of(run), overrides=overrides or (), flags={"output.dir": (str(run), "RUN")}).config
    if rules is not None:
        config = config.model_copy(update={"gate": gate_section_of(rules, config, overrides or ())})
    require_known_metrics(config.gate, scorer_names(config.evaluation.scorers))
    report = read_artifact(run / "eval" / "report.json", EvalReport)
    decision = judge_evaluation(config, RunDirectory(run), report)
    if not overrides and rules is None:
        with RunDirectory.open(run) as directory:
            write_artifact(directory.file("gate.json"), decision)
            write_report(directory)
    show_decision(decision, as_json)
    raise typer.Exit(int(VERDICT_EXIT[decision.verdict]))


def gate_section_of(rules: Path, config: Config, overrides: Sequence[str]) -> GateSection:
    """The gate section of another file, checked as a configuration's; the run's schema file counts for it."""
    schema = config.evaluation.json_schema
    gate_overrides = [setting for setting in overrides if setting.startswith("gate.")]
    flags = {"evaluation.json_schema": (schema, "the run")} if schema is not None else None
    return load_config(rules, overrides=gate_overrides, flags=flags).config.gate


def show_decision(decision: GateDecision, as_json: bool) -> None:
    if as_json:
        print_json(decision)
        return
    from rich.console import Console

    from halo_forge.cli.console import render_decision

    render_decision(Console(highlight=False, soft_wrap=True), decision)


@told_in_words
def publish_command(
    run: RunArgument,
    force: Annotated[bool, typer.Option("--force", help="Publish without a PASS; the version is marked.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a run's model as the next version of the registry; only from a PASS unless forced."""
    with importing():
        from halo_forge.pipeline import publish_run

    settings = [*(overrides or ()), f"output.dir={run}", *(["publish.force=true"] if force else [])]
    release = publish_run(load_config(config_of(run), overrides=settings))
    if as_json:
        print_json(release)
    else:
        print(f"{release.name} v{release.version}{' (forced)' if release.forced else ''}: {release.path}")


@told_in_words
def report_command(run: RunArgument) -> None:
    """Write report.html again from the records in a run directory."""
    from halo_forge.report import write_report

    config_of(run)
    print(write_report(RunDirectory(run)))
