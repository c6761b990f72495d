"""Numbers and metric names as a person reads them."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal

from halo_forge.artifacts import Comparison, Measurement
from halo_forge.metrics import METRIC_FACTS

Scale = Literal["share", "number"]

DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "none": "no better direction"}


def label_of(metric: str) -> str:
    """A metric that is not ours is shown under its own name."""
    return METRIC_FACTS[metric].label if metric in METRIC_FACTS else metric


def scale_of(metric: str) -> Scale:
    return "share" if metric in METRIC_FACTS and METRIC_FACTS[metric].is_share else "number"


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands separated; `–` for what does not exist, a word for what is not finite."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or abs(value) >= 1e15:
        return f"{value:g}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{value:.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def share(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.{digits}f}".removesuffix(".0") + " %"


def metric_value(metric: str, value: float | None) -> str:
    return share(value) if scale_of(metric) == "share" else number(value)


def metric_change(metric: str, value: float | None) -> str:
    """A signed difference; of shares, in percentage points."""
    if value is None or not math.isfinite(value):
        return number(value)
    size = f"{100 * abs(value):.1f}".removesuffix(".0") + " pt" if scale_of(metric) == "share" else number(abs(value))
    return ("+" if value > 0 else "−" if value < 0 else "±") + size


def interval(metric: str, measurement: Measurement, *, is_change: bool = False) -> str:
    """`61 to 88 %`, or an empty text where there is no interval."""
    if measurement.low is None or measurement.high is None:
        return ""
    form = metric_change if is_change else metric_value
    low, high = form(metric, measurement.low), form(metric, measurement.high)
    for unit in (" %", " pt"):
        if low.endswith(unit) and high.endswith(unit):
            low = low.removesuffix(unit)
    return f"{low} to {high}"


def outcome(row: Comparison) -> Literal["better", "worse", "unproven", "neither", "missing"]:
    """What the interval of the change says, given the metric's good direction."""
    low, high = row.delta.low, row.delta.high
    if row.delta.status != "measured" or row.delta.value is None:
        return "missing"
    if row.delta.direction == "none":
        return "neither"
    if low is None or high is None or low <= 0 <= high:
        return "unproven"
    return "better" if (low > 0) == (row.delta.direction == "higher") else "worse"


def item_score(metric: str, score: float) -> str:
    """The score of one answer: yes or no where it is one."""
    if metric in METRIC_FACTS and METRIC_FACTS[metric].kind == "rate":
        return "yes" if score else "no"
    return number(score)


def learning_rate(value: float) -> str:
    """0.0005 -> 5e-4, as rates are written in configurations."""
    if value == 0 or not math.isfinite(value) or abs(value) >= 0.01:
        return number(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def plural(value: float, noun: str) -> str:
    told = f"{value:,.0f}" if float(value).is_integer() else number(value, 6)
    return f"{told} {noun}" if value == 1 else f"{told} {noun}s"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{number(num_bytes)} {unit}"
        num_bytes /= 1000
    return f"{number(num_bytes)} GB"


def count(value: int) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,}"


def compact(value: int) -> str:
    """4884480 -> 4.88 M."""
    for limit, divisor, unit in ((10**9, 1e9, "B"), (10**6, 1e6, "M"), (10**4, 1e3, "k")):
        if value >= limit:
            return f"{number(value / divisor)} {unit}"
    return f"{value:,}"


def moment(iso: str) -> str:
    """2026-01-31T09:05:00+00:00 -> 31 January 2026, 09:05 UTC. Anything else as it is."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = when.tzname() or ""
    return f"{when.day} {when:%B %Y, %H:%M} {zone}".strip()
