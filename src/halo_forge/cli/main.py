"""The command line: parse, resolve the configuration, call one function, turn the result into text or JSON.

Nothing here imports torch; `halo-forge --help` answers in under half a second.
"""

from __future__ import annotations

import logging

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

CONTEXT = {"help_option_names": ["-h", "--help"]}


def make_app(help_text: str, kind: type[TyperGroup] = TyperGroup) -> typer.Typer:
    return typer.Typer(
        cls=kind,
        help=help_text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=CONTEXT,
    )


def build() -> typer.Typer:
    app = make_app("Supervised fine-tuning from raw rows to a released, watched model.")
    app.callback()(version_option)
    app.command("demo")(train_commands.demo_command)
    app.command("init")(init_command.init_command)
    app.command("plan")(plan_command.plan_command)
    app.command("run")(train_commands.run_command)

    sft = make_app("Fine-tune on text.")
    sft.command("train")(train_commands.sft_train_command)
    sft.command("datasets")(train_commands.sft_datasets_command)
    app.add_typer(sft, name="sft")
    for name in ("reasoning", "agentic", "vlm", "audio"):
        domain = make_app(f"Fine-tune with the defaults of the {name} domain.")
        domain.callback()(lambda: None)
        domain.command("sft")(train_commands.domain_command(name))
        app.add_typer(domain, name=name)

    data = make_app("Check, clean, split, mix and prepare rows.")
    data.command("check")(data_commands.check_command)
    data.command("show")(data_commands.show_command)
    data.command("prepare")(data_commands.prepare_command)
    data.command("stats")(data_tools.stats_command)
    data.command("diff")(data_tools.diff_command)
    data.command("dedupe")(data_tools.dedupe_command)
    data.command("contamination")(data_tools.contamination_command)
    data.command("split")(data_tools.split_command)
    data.command("mix")(data_tools.mix_command)
    data.command("convert")(data_tools.convert_command)
    data.command("rules")(data_tools.rules_command)
    app.add_typer(data, name="data")

    app.command("diagnose")(diagnose_command.diagnose_command)
    app.command("evaluate")(release_commands.evaluate_command)
    app.command("inspect")(failure_commands.inspect_command)
    app.command("iterate")(failure_commands.iterate_command)
    app.command("generate")(sampling_commands.generate_command)
    app.command("handoff")(sampling_commands.handoff_command)
    app.command("judge")(release_commands.judge_command)
    suites = typer.Typer(
        help="Prompt suites: safety, abstention, calibration, instructions, behaviour.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=CONTEXT,
    )
    suites.callback(invoke_without_command=True)(suite_commands.suites_callback)
    suites.command("list")(suite_commands.list_command)
    suites.command("show")(suite_commands.show_command)
    suites.command("run")(suite_commands.run_command)
    app.add_typer(suites, name="suites")
    bench = make_app("Published benchmarks, base and tuned on the same items.")
    bench.command("run")(bench_commands.run_command)
    bench.command("list")(bench_commands.list_command)
    bench.command("mirror")(bench_commands.mirror_command)
    app.add_typer(bench, name="bench")
    app.command("gate")(release_commands.gate_command)
    app.command("publish")(release_commands.publish_command)
    models = make_app("Published versions.")
    for name, command in model_commands.COMMANDS.items():
        models.command(name)(command)
    app.add_typer(models, name="models")
    monitor = make_app("Watch a released version in production.", monitor_commands.WatchByDefault)
    monitor.command("watch")(monitor_commands.watch_command)
    monitor.command("regress")(monitor_commands.regress_command)
    app.add_typer(monitor, name="monitor")
    app.command("report")(release_commands.report_command)

    config = make_app("Look at a configuration.")
    config.command("show")(config_commands.show_command)
    config.command("check")(config_commands.check_command)
    config.command("validate", hidden=True)(config_commands.check_command)
    config.command("schema")(config_commands.schema_command)
    app.add_typer(config, name="config")
    app.command("domains")(config_commands.domains_command)
    app.command("doctor")(config_commands.doctor_command)
    return app


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
