"""What a run tells a person while it works: headings, tables and one live line, on stderr.

Events come from the stages (`notify(event, fields)`); records are rendered when a stage is done. Off a terminal there
is no live line: a plain one every few seconds instead. NO_COLOR is respected by rich.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from halo_forge.artifacts import Comparison, EvalReport, GateDecision, Measurement, PreparedData, Release, TrainedModel
from halo_forge.cli.folding import folded, reading_width
from halo_forge.cli.running import printable
from halo_forge.report.wording import duration, interval, metric_change, metric_value, outcome

STAGES = ("data", "train", "evaluate", "gate", "publish")
PLAIN_LINE_EVERY_S = 10.0
VERDICT_CHARS = 13
"""Room for the longest verdict and a blank."""
FINDING_STYLE = {"error": "bold red", "warning": "bold yellow", "note": "bold"}
VERDICT_STYLE = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}


class Reporter:
    """A `Notify` that draws. `close` ends the live line; safe to call more than once."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_plain_s = 0.0
        self._said: set[str] = set()  # the data record repeats the notes that were told while it was made

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        if self.quiet:
            return
        handler = getattr(self, "_on_" + event.replace(".", "_"), None)
        if handler is not None:
            handler(fields)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    # ---------------------------------------------------------------------------------------------- events

    def _on_note(self, fields: Mapping[str, Any]) -> None:
        self._said.add(fields["text"])
        self.console.print(Text(f"  {fields['text']}", style="dim"))

    def _on_stage(self, fields: Mapping[str, Any]) -> None:
        self.close()
        name = fields["name"]
        number = f"{STAGES.index(name) + 1}/{len(STAGES)}" if name in STAGES else ""
        self.console.print()
        self.console.print(Text.assemble((f"{number} ", "dim"), (name, "bold cyan"), (f"  {fields['title']}", "")))

    def _on_stage_done(self, fields: Mapping[str, Any]) -> None:
        self.close()
        record = fields["record"]
        if isinstance(record, PreparedData):
            record = record.model_copy(update={"notes": tuple(n for n in record.notes if n not in self._said)})
        for kind, render in _RENDERERS.items():
            if isinstance(record, kind):
                render(self.console, record)

    def _on_masks(self, fields: Mapping[str, Any]) -> None:
        self.console.print(Text(f"  {fields['title']}", style="dim"))
        for block in fields["blocks"]:
            self.console.print()
            self.console.print(Text.from_ansi(_indent(block)))

    def _on_data_source(self, fields: Mapping[str, Any]) -> None:
        counts = ", ".join(f"{fields[key]} {key}" for key in ("read", "kept", "fixed", "dropped"))
        self.console.print(Text(f"  {fields['path']}: {fields['format']} ({counts})"))

    def _on_data_progress(self, fields: Mapping[str, Any]) -> None:
        self._live("reading", fields["rows"], None, "rows")

    def _on_train_start(self, fields: Mapping[str, Any]) -> None:
        self.close()
        share = fields["num_trainable"] / fields["num_parameters"]
        self.console.print(
            f"  {fields['num_examples']} examples, {fields['examples_per_step']} a step, {fields['num_steps']} steps; "
            f"{fields['num_trainable'] / 1e6:.1f} of {fields['num_parameters'] / 1e6:.1f} million weights trained "
            f"({share:.1%}); {fields['precision']} on {fields['device']}, {fields['attention']} attention"
        )

    def _on_train_step(self, fields: Mapping[str, Any]) -> None:
        detail = (
            f"loss {fields['loss']:.3f}  {fields['tokens_per_s']:.0f} tokens/s  rate {fields['learning_rate']:.1e}"
            f"  {duration(fields['eta_s'])} left"
        )
        self._live("training", fields["step"], fields["num_steps"], detail, always=fields["is_logged"])

    def _on_train_validation(self, fields: Mapping[str, Any]) -> None:
        best = ", best so far" if fields["is_best"] else ""
        self.console.print(f"  step {fields['step']}: validation loss {fields['loss']:.4f}{best}")
        if fields.get("by_source"):
            render_sources(self.console, fields["by_source"])

    def _on_train_finding(self, fields: Mapping[str, Any]) -> None:
        style = FINDING_STYLE[fields["severity"]]
        title = printable(fields["title"])
        self.console.print(Text.assemble(f"  step {fields['step']}: ", (fields["severity"], style), f": {title}"))
        self.console.print(Text(f"    {printable(fields['evidence'])}"))
        self.console.print(Text(f"    next: {printable(fields['next_action'])}", style="dim"))

    def _on_eval_progress(self, fields: Mapping[str, Any]) -> None:
        title = fields.get("title") or f"answers of the {fields['which']} model"
        self._live(title, fields["done"], fields["total"], fields.get("unit", "prompts"))

    # ---------------------------------------------------------------------------------------------- live line

    def _live(self, title: str, done: int, total: int | None, detail: str, *, always: bool = False) -> None:
        if not self.console.is_terminal:
            now = time.monotonic()
            if always or now - self._last_plain_s > PLAIN_LINE_EVERY_S:
                self._last_plain_s = now
                self.console.print(f"  {title} {done}{'' if total is None else f'/{total}'}  {detail}")
            return
        if self._bar is None:
            columns = (TextColumn("  {task.description}"), BarColumn(28), TextColumn("{task.fields[detail]}"))
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, detail="")
        assert self._task is not None
        count = f"{done}" if total is None else f"{done}/{total}"
        self._bar.update(self._task, description=title, completed=done, total=total, detail=f"{count}  {detail}")


# ------------------------------------------------------------------------------------------------ records


def render_prepared(console: Console, record: PreparedData) -> None:
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for heading in ("split", "rows", "tokens", "trained tokens"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, split in record.splits.items():
        share = f" ({split.supervised_tokens / split.tokens:.0%})" if split.tokens else ""
        table.add_row(name, f"{split.rows:,}", f"{split.tokens:,}", f"{split.supervised_tokens:,}{share}")
    console.print(table)
    for code, count in record.reasons.items():
        console.print(Text(f"  {count} x {code}"))
    for note in record.notes:
        console.print(Text(f"  {note}", style="dim"))


def render_sources(console: Console, by_source: Mapping[str, Mapping[str, Any]]) -> None:
    """The validation loss of each source: {name: {"loss", "num_supervised_tokens"}}."""
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for heading in ("source", "validation loss", "trained tokens"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for name, of_source in by_source.items():
        table.add_row(Text(printable(name)), f"{of_source['loss']:.4f}", f"{of_source['num_supervised_tokens']:,}")
    console.print(table)


def render_trained(console: Console, record: TrainedModel) -> None:
    validation = "" if record.validation_loss is None else f", validation loss {record.validation_loss:.4f}"
    console.print(
        f"  {record.num_steps} steps in {duration(record.train_time_s)} ({record.tokens_per_s:.0f} tokens/s, "
        f"peak memory {record.peak_memory_bytes / 1e9:.1f} GB): train loss {record.train_loss:.4f}{validation}; "
        f"final_model is step {record.final_step}"
    )


def render_report(console: Console, record: EvalReport) -> None:
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column(f"holdout, n = {record.num_items}", no_wrap=True)
    for heading in ("base", "tuned", "change", "won/lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in record.overall:
        table.add_row(
            row.metric,
            _measured(row.base),
            _measured(row.tuned),
            _change(row),
            f"{row.wins}/{row.losses}",
        )
    console.print(table)
    for suite in record.suites:
        told = f"{suite.failed_base} answers of the base fail, {suite.failed_tuned} of the tuned: {suite.answers}"
        console.print(Text(printable(f"  {suite.name}, {suite.num_items} items: {told}"), style="dim"))
    general = [row.tuned.n for row in record.overall if row.metric.startswith("general_")]
    texts = f"; general_*: {general[0]} texts that come with halo-forge" if general else ""
    console.print(Text(f"  second lines: {record.confidence:.0%} confidence intervals{texts}", style="dim"))
    if any(row.tuned.subsampled for row in record.overall):
        told = f"answers to {record.num_scored} of {record.num_items} rows only (evaluation.max_prompts): subsampled"
        console.print(Text(f"  {told}", style="dim"))
    slices = dict.fromkeys(row.slice for row in record.comparisons if row.slice != "all")
    if slices:
        console.print(Text(f"  also by {len(slices)} slices: eval/report.json, report.html", style="dim"))
    for note in record.notes:
        console.print(Text(f"  {printable(note)}", style="dim"))


def _measured(measurement: Measurement) -> Text:
    if measurement.value is None:
        return Text(measurement.status.replace("_", " "), style="dim")
    value = metric_value(measurement.metric, measurement.value)
    return Text.assemble(value, ("\n" + interval(measurement.metric, measurement), "dim"))


def _change(row: Comparison) -> Text:
    if row.delta.value is None:
        return Text("")
    bounds = interval(row.metric, row.delta, is_change=True)
    style = {"better": "green", "worse": "red"}.get(outcome(row), "")
    return Text.assemble((metric_change(row.metric, row.delta.value), style), ("\n" + bounds, "dim"))


def render_decision(console: Console, record: GateDecision) -> None:
    width = console.width if console.is_terminal or reading_width() is not None else None
    console.print(Text(f"  {record.verdict}", style=VERDICT_STYLE[record.verdict]))
    for rule in record.rules:
        told = printable(rule.reason).removesuffix(".") + "."
        if rule.margin is not None:
            told += f" Margin {rule.margin:+.3g}."
        if rule.verdict == "INCONCLUSIVE" and not rule.blocking:
            told += " This rule holds nothing back."
        label = f"    {rule.verdict:<{VERDICT_CHARS}}"
        text = Text(folded(f"{label}{told}", VERDICT_CHARS, width))
        text.stylize(VERDICT_STYLE[rule.verdict], 4, len(label))
        console.print(text)
        if rule.next_action and rule.verdict != "PASS":
            indent = " " * (4 + VERDICT_CHARS)
            lines = [f"{indent}next: {printable(rule.next_action)}"]
            lines += [f"{indent}try:  {printable(rule.command)}"] if rule.command else []
            console.print(Text(folded("\n".join(lines), 6, width), style="dim"))


def render_release(console: Console, record: Release) -> None:
    forced = " (forced, without a PASS)" if record.forced else ""
    console.print(f"  {record.name} v{record.version}{forced}: {record.path}")


_RENDERERS: dict[type, Any] = {
    PreparedData: render_prepared,
    TrainedModel: render_trained,
    EvalReport: render_report,
    GateDecision: render_decision,
    Release: render_release,
}


def _indent(block: str) -> str:
    return "\n".join("    " + line for line in block.splitlines())
