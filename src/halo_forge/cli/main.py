"""The command line: parse, resolve the configuration, call one function, turn the result into text or JSON.

Nothing here imports torch; `halo-forge --help` answers in under half a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import typer
from typer.core import TyperGroup

from halo_forge.cli import (
    bench_commands,
    config_commands,
    data_commands,
    data_tools,
    diagnose_command,
    failure_commands,
    init_command,
    model_commands,
    monitor_commands,
    plan_command,
    release_commands,
    sampling_commands,
    suite_commands,
    train_commands,
)
from halo_forge.domains import domain_names

CONTEXT = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True, slots=True)
class Group:
    """Commands under one word. kind: how its arguments are read; callback: what it does without a command."""

    help: str
    commands: Mapping[str, Callable[..., None]]
    kind: type[TyperGroup] = TyperGroup
    callback: Callable[..., None] | None = None


def make_app(help_text: str, kind: type[TyperGroup] = TyperGroup, *, answers_alone: bool = False) -> typer.Typer:
    return typer.Typer(
        cls=kind,
        help=help_text,
        no_args_is_help=not answers_alone,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=CONTEXT,
    )


SFT = Group(
    "Fine-tune on text.",
    {"train": train_commands.sft_train_command, "datasets": train_commands.sft_datasets_command},
)
DATA = Group(
    "Check, clean, split, mix and prepare rows.",
    {
        "check": data_commands.check_command,
        "show": data_commands.show_command,
        "prepare": data_commands.prepare_command,
        "stats": data_tools.stats_command,
        "diff": data_tools.diff_command,
        "dedupe": data_tools.dedupe_command,
        "contamination": data_tools.contamination_command,
        "split": data_tools.split_command,
        "mix": data_tools.mix_command,
        "convert": data_tools.convert_command,
        "rules": data_tools.rules_command,
    },
)
SUITES = Group(
    "Prompt suites: safety, abstention, calibration, instructions, behaviour.",
    {
        "list": suite_commands.list_command,
        "show": suite_commands.show_command,
        "run": suite_commands.run_command,
    },
    callback=suite_commands.suites_callback,
)
BENCH = Group(
    "Published benchmarks, base and tuned on the same items.",
    {
        "run": bench_commands.run_command,
        "list": bench_commands.list_command,
        "mirror": bench_commands.mirror_command,
    },
)
MONITOR = Group(
    "Watch a released version in production.",
    {"watch": monitor_commands.watch_command, "regress": monitor_commands.regress_command},
    kind=monitor_commands.WatchByDefault,
)
CONFIG = Group(
    "Look at a configuration.",
    {
        "show": config_commands.show_command,
        "check": config_commands.check_command,
        "validate": config_commands.check_command,
        "schema": config_commands.schema_command,
    },
)
HIDDEN = frozenset({"validate"})
"""Names that work and are not listed."""


def commands() -> dict[str, Callable[..., None] | Group]:
    """Every command and group, in the order in which `--help` lists them: that of the pipeline."""
    return {
        "demo": train_commands.demo_command,
        "init": init_command.init_command,
        "plan": plan_command.plan_command,
        "run": train_commands.run_command,
        "sft": SFT,
        **{
            name: Group(
                f"Fine-tune with the defaults of the {name} domain.", {"sft": train_commands.domain_command(name)}
            )
            for name in domain_names()
            if name != "text"
        },
        "data": DATA,
        "diagnose": diagnose_command.diagnose_command,
        "evaluate": release_commands.evaluate_command,
        "inspect": failure_commands.inspect_command,
        "iterate": failure_commands.iterate_command,
        "generate": sampling_commands.generate_command,
        "handoff": sampling_commands.handoff_command,
        "judge": release_commands.judge_command,
        "suites": SUITES,
        "bench": BENCH,
        "gate": release_commands.gate_command,
        "publish": release_commands.publish_command,
        "models": Group("Published versions.", model_commands.COMMANDS),
        "monitor": MONITOR,
        "report": release_commands.report_command,
        "config": CONFIG,
        "domains": config_commands.domains_command,
        "doctor": config_commands.doctor_command,
    }


def build() -> typer.Typer:
    app = make_app("Supervised fine-tuning from raw rows to a released, watched model.")
    app.callback()(version_option)
    for name, entry in commands().items():
        if not isinstance(entry, Group):
            app.command(name)(entry)
            continue
        group = make_app(entry.help, entry.kind, answers_alone=entry.callback is not None)
        group.callback(invoke_without_command=entry.callback is not None)(entry.callback or _nothing)
        for word, command in entry.commands.items():
            group.command(word, hidden=word in HIDDEN)(command)
        app.add_typer(group, name=name)
    return app


def _nothing() -> None:
    """A group with one command keeps its word on the command line only with a callback."""


def show_version(value: bool) -> None:
    if value:
        from halo_forge import __version__

        print(f"halo-forge {__version__}")
        raise typer.Exit


def version_option(
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    # Where it is installed, peft imports it with everything else, and it lists the kernels that it did not find.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    build()()


if __name__ == "__main__":
    main()
