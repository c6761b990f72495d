"""The difference of two versions and the changelog of a model, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from halo_forge.cli.running import printable
from halo_forge.report.wording import metric_change, metric_value, scale_of

if TYPE_CHECKING:
    from halo_forge.artifacts import Measurement
    from halo_forge.publish.changelog import Changelog, VersionNotes
    from halo_forge.publish.lineage import MetricChange, VersionDiff

LONGEST = 60
PARTS = ("data", "mix", "config", "software", "model")


def print_diff(diff: VersionDiff) -> None:
    weights = "the same weights" if diff.same_weights else "other weights"
    print(f"{diff.name} v{diff.before} -> v{diff.after}: {weights}; gate {diff.verdicts[0]} -> {diff.verdicts[1]}")
    for title in PARTS:
        changes = getattr(diff, title)
        print(f"\n{title}" + ("" if changes else ": no change"))
        for change in changes:
            print(printable(f"  {change.what}: {_short(change.before)} -> {_short(change.after)}"))
    print("\nmetrics" + _holdout(diff.same_holdout))
    print(f"  {'':<24}{'v' + str(diff.before):>12}{'v' + str(diff.after):>12}{'change':>12}  interval of the change")
    for row in diff.metrics:
        print(printable(_metric_line(row)))


def _holdout(same: bool | None) -> str:
    if same is None:
        return " (one of the two has no holdout)"
    return " (same holdout)" if same else " (another holdout: the numbers cannot be compared)"


def _metric_line(row: MetricChange) -> str:
    cells = f"  {row.metric:<24}{_value(row.before):>12}{_value(row.after):>12}"
    if row.change is None:
        return f"{cells}{'':>12}  {row.outcome}"
    bounds = f"{_interval(row)}, " if row.low is not None else ""
    bounds += f"{row.num_pairs} in pairs, " if row.num_pairs else ""
    return f"{cells}{metric_change(row.metric, row.change):>12}  {bounds}{row.outcome}"


def _interval(row: MetricChange) -> str:
    low, high = metric_change(row.metric, row.low), metric_change(row.metric, row.high)
    return f"{low.removesuffix(' pt') if scale_of(row.metric) == 'share' else low} to {high}"


def _value(measurement: Measurement | None) -> str:
    if measurement is None or measurement.value is None:
        return "–"
    return metric_value(measurement.metric, measurement.value)


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def changelog_markdown(log: Changelog) -> str:
    """Markdown: a heading for each version, newest first, then when users got which."""
    lines = [f"# {log.name}", ""]
    for notes in log.versions:
        lines += [*_version_lines(notes), ""]
    lines += ["## What `released` named", ""] if log.moves else []
    lines += [f"- {move.at} {move.action}: {_named(move.before)} -> {_named(move.after)}" for move in log.moves]
    return printable("\n".join(lines).rstrip("\n"))


def _version_lines(notes: VersionNotes) -> Iterator[str]:
    marks = ["forced"] * notes.forced + list(notes.aliases)
    yield f"## v{notes.version}" + (f" ({', '.join(marks)})" if marks else "")
    yield ""
    yield f"Published {notes.created_at}; gate {notes.verdict}."
    if notes.problem is not None:
        yield f"What changed cannot be told: {notes.problem}."
    if notes.diff is None:
        return
    yield f"Against v{notes.diff.before}{_holdout(notes.diff.same_holdout)}:"
    yield ""
    for part in PARTS:
        for change in getattr(notes.diff, part):
            if not change.what.endswith(", sha256"):
                yield f"- {part}: {change.what}: {_short(change.before)} -> {_short(change.after)}"
    for outcome in ("better", "worse"):
        for row in notes.diff.metrics:
            if row.outcome == outcome:
                values = f"{_value(row.before)} -> {_value(row.after)}"
                yield f"- {outcome}: {row.metric} {values} (change {_interval(row)})"
    open_rows = [row.metric for row in notes.diff.metrics if row.outcome in ("unclear", "unchanged")]
    if open_rows:
        yield f"- no proven change: {', '.join(open_rows)}"


def _named(version: int | None) -> str:
    return "none" if version is None else f"v{version}"
