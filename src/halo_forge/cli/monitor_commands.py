"""`monitor watch` and `monitor regress`; `monitor RELEASE LOG` is `monitor watch RELEASE LOG`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from halo_forge.cli.folding import folded, reading_width
from halo_forge.cli.running import JsonOption, SetOption, importing, print_json, printable, told_in_words
from halo_forge.config import load_config
from halo_forge.errors import ExitCode, Interrupted, UsageError

if TYPE_CHECKING:
    from halo_forge.monitor import MonitorReport, WatchSession

ReleaseArgument = Annotated[Path, typer.Argument(help="Published version or run directory.", metavar="RELEASE")]
MonitorConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML with a monitor section.", metavar="FILE")
]
PageOption = Annotated[Path | None, typer.Option("--html", help="Write a page with curves to FILE.", metavar="FILE")]
EXITS = {"ok": ExitCode.OK, "drift": ExitCode.GATE_FAILED, "too_few_rows": ExitCode.EVIDENCE_INSUFFICIENT}
REGRESSION_EXITS = {
    "ok": ExitCode.OK, "regressed": ExitCode.GATE_FAILED, "not_measured": ExitCode.EVIDENCE_INSUFFICIENT
}  # fmt: skip


class WatchByDefault(TyperGroup):
    """A first word that names no command is the release to watch."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["watch", *args]
        return super().parse_args(ctx, args)


@told_in_words
def watch_command(
    reference: ReleaseArgument,
    log: Annotated[Path, typer.Argument(help="Production log, JSONL with prompt and answer.", metavar="LOG")],
    state: Annotated[
        Path | None,
        typer.Option(help="Remember what was read in DIRECTORY; the next call reads on.", metavar="DIRECTORY"),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Read on until stopped. Needs --state.")] = False,
    poll: Annotated[float, typer.Option(help="Seconds between two looks at the log.", min=0.05, max=86400)] = 5.0,
    html: PageOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and judge the whole log, write nothing, alarm nobody.")
    ] = False,
    config: MonitorConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what a model does in production with what it did when released. Exit code 4 on drift, 5 on few rows."""
    from halo_forge.monitor import observe, open_session
    from halo_forge.report.monitor_page import write_monitor_page

    settings = load_config(config, overrides=overrides or ()).config
    if follow and state is None:
        raise UsageError("--follow needs a memory", fix="add --state DIRECTORY")
    embed = _embed_for(reference)
    if state is None or dry_run:
        report = observe(settings, reference, log, embed=embed)
        if html is not None and not dry_run:
            write_monitor_page(html, report, ())
    else:
        session = open_session(settings, reference, log, state, _tell, embed)
        with session.state:
            report = _watch(session, follow=follow, poll_s=poll, html=html)
    if as_json:
        print_json(report)
    else:
        print(folded(printable(report.words()), 7, reading_width()))
    raise typer.Exit(int(EXITS[report.verdict]))


def _watch(session: WatchSession, *, follow: bool, poll_s: float, html: Path | None) -> MonitorReport:
    """Read once, or until a signal comes; the report and the page are written after each reading."""
    from halo_forge.monitor import follow as follow_log
    from halo_forge.report.monitor_page import write_monitor_page
    from halo_forge.runs import StopSignal, write_artifact

    def keep(report: MonitorReport) -> None:
        write_artifact(session.state.directory / "report.json", report)
        if html is not None:
            write_monitor_page(html, report, session.state.windows())

    with StopSignal() as stop:
        try:
            if follow:
                follow_log(session, stop.check, keep, poll_s)
            else:
                session.read(stop.check)
        except Interrupted:
            if not follow:
                raise
    report = session.report()
    keep(report)
    return report


def _tell(event: str, fields: Any) -> None:
    print(printable(fields["text"]), file=sys.stderr, flush=True)


def _embed_for(reference: Path) -> Any:
    """Sentence embeddings where the release stored such and the package is here; the hashed ones need nothing."""
    from halo_forge.monitor.watch import find_reference, read_reference

    space = read_reference(find_reference(reference)[0]).prompt_space
    if space is None or space.kind.startswith("hashed"):
        return None
    from halo_forge.models import sentences

    if space.kind != sentences.KIND or not sentences.is_installed():
        return None
    encoder = sentences.load_encoder(None, "sentence embeddings of prompts", "monitor.embedding: hashed")
    return lambda texts: sentences.sentence_vectors(texts, *encoder)


@told_in_words
def regress_command(
    reference: ReleaseArgument,
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory with the holdout. Default: the one the version names.", metavar="RUN"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check that all is there, measure nothing.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a released model on its holdout again and compare with the numbers it was released with. Exit code 4 when
    a metric is worse by more than monitor.max_regression."""
    with importing():
        from halo_forge.regress import find_release, regress

    found = find_release(reference, run, overrides or ())
    if dry_run:
        if as_json:
            print_json(found.facts())
        else:
            print(found.words())
        return
    report = regress(found)
    if as_json:
        print_json(report)
    else:
        print(printable(report.words()))
    raise typer.Exit(int(REGRESSION_EXITS[report.verdict]))
