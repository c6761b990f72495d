"""Commands that only read: `config show|check|schema`, `domains`, `doctor`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from halo_forge.cli.running import ConfigOption, JsonOption, SetOption, print_json, told_in_words
from halo_forge.config import config_json_schema, explain_config, load_config
from halo_forge.errors import ConfigError, ConfigProblem, ExitCode
from halo_forge.gate import check_rules
from halo_forge.metrics import scorer_names

ConfigArgument = Annotated[Path | None, typer.Argument(help="YAML configuration.", metavar="[FILE]")]


@told_in_words
def show_command(
    file: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print every value in effect and where it comes from."""
    resolved = load_config(file or config, overrides=overrides or ())
    rows = explain_config(resolved)
    if as_json:
        print_json(
            {
                "config": resolved.config.to_dict(),
                "origins": {key: origin for key, _, origin in rows},
                "notices": list(resolved.notices),
                "sha256": resolved.sha256,
            }
        )
        return
    width = max(len(key) for key, _, _ in rows)
    for key, value, origin in rows:
        print(f"{key:<{width}}  {value:<28}  # {origin}")
    for notice in resolved.notices:
        print(f"# {notice}")


@told_in_words
def check_command(
    file: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration: every problem at once, with file, line and column. Exit code 2 if there is one."""
    resolved = load_config(file or config, overrides=overrides or ())
    also = scorer_names(resolved.config.evaluation.scorers)
    found = check_rules(resolved.config.gate.rules, also)
    problems = [ConfigProblem(message=text, where="gate.rules") for text in found]
    if problems:
        raise ConfigError(problems)
    if as_json:
        print_json({"ok": True, "notices": list(resolved.notices), "sha256": resolved.sha256})
        return
    for notice in resolved.notices:
        print(notice)
    print("ok")


@told_in_words
def schema_command() -> None:
    """Print the JSON Schema of the configuration, for editors and other programs."""
    print_json(config_json_schema())


@told_in_words
def domains_command(as_json: JsonOption = False) -> None:
    """List the domains and what each trains."""
    from halo_forge.domains import all_domains

    domains = all_domains().values()
    if as_json:
        print_json([dataclasses.asdict(domain) | {"defaults": dict(domain.defaults)} for domain in domains])
        return
    for domain in domains:
        print(f"{domain.name:<10} {domain.title:<10} {domain.note}".rstrip())
        if domain.model_types:
            print(f"{'':<21} models: {', '.join(domain.model_types)}")


@told_in_words
def doctor_command(
    as_json: JsonOption = False,
    hub: Annotated[bool, typer.Option(help="Try to reach the Hub.")] = True,
) -> None:
    """Examine this machine: Python, torch, cores, memory, precision, disk, cache, Hub; each problem with its fix."""
    from halo_forge.doctor import examine

    findings = examine(hub=hub)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True)
        marks = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "problem": ("problem", "bold red")}
        for finding in findings:
            console.print(Text.assemble(marks[finding.status], "  ", (f"{finding.name:<22}", "bold"), finding.detail))
            if finding.fix:
                console.print(Text(f"         {'':<22}try: {finding.fix}", style="dim"))
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(int(ExitCode.RUN_FAILED))
