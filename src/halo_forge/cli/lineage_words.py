"""The difference of two versions, for a person to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from halo_forge.cli.running import printable

if TYPE_CHECKING:
    from halo_forge.artifacts import Measurement
    from halo_forge.publish.lineage import MetricChange, VersionDiff

LONGEST = 60


def print_diff(diff: VersionDiff) -> None:
    weights = "the same weights" if diff.same_weights else "other weights"
    print(f"{diff.name} v{diff.before} -> v{diff.after}: {weights}; gate {diff.verdicts[0]} -> {diff.verdicts[1]}")
    for title in ("data", "mix", "config", "software", "model"):
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
    bounds = "" if row.low is None or row.high is None else f"{row.low:+.4g} to {row.high:+.4g}, "
    return f"{cells}{row.change:>+12.4g}  {bounds}{row.outcome}"


def _value(measurement: Measurement | None) -> str:
    return "-" if measurement is None or measurement.value is None else f"{measurement.value:.4g}"


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
