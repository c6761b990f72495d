"""Geometry of the page's charts. The template draws it; every text in it is escaped there like any other.

Charts are fluid without a script: a chart's height is in pixels, horizontal places are percent, and only curves live
in a box that is stretched (with strokes that are not), so labels keep their size on a phone and in print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from halo_forge.artifacts import Comparison, Measurement
from halo_forge.report.read_run import Point
from halo_forge.report.wording import learning_rate, metric_value, number, scale_of

CURVE_WIDTH = 1000.0  # units of the stretched box
MAX_DRAWN_POINTS = 240
MIN_BAND_WIDTH = 0.8  # percent
MAX_SOURCES_DRAWN = 7  # as many colours as can be told apart
SMOOTHING_STEPS = 20  # the smooth curve averages over about one part in so many of all steps


@dataclass(frozen=True, slots=True)
class Tick:
    place: float  # percent of the width, or pixels from the top
    label: str


@dataclass(frozen=True, slots=True)
class Dot:
    x: float  # percent
    y: float  # pixels
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Steps of a chart that something is said about, both included."""

    number: int
    first: int
    last: int
    tone: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A mark's place: percent of the width."""

    number: int
    x: float
    width: float
    tone: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Paths are in a box CURVE_WIDTH wide and `height` high; `words` tells the chart to those who cannot see it."""

    height: int
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    raw: str
    smooth: str
    dots: tuple[Dot, ...]
    dots_path: str
    words: str
    bands: tuple[Band, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCurve:
    """One source. `number` chooses its colour; first and last are its training loss there, or validation loss."""

    name: str
    number: int
    path: str
    dots: tuple[Dot, ...]
    train: tuple[float, float] | None
    validation: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChart:
    height: int
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    curves: tuple[SourceCurve, ...]
    num_hidden: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """Percent of the width; low and high are None where there is no interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalRow:
    base: Whisker | None
    tuned: Whisker | None
    left: str
    right: str


# ---------------------------------------------------------------------------------------------- curves


def loss_chart(
    train: Sequence[Point], validation: Sequence[Point], marks: Sequence[Mark] = (), height: int = 240
) -> LineChart | None:
    if not train and not validation:
        return None
    values = [point.value for point in (*train, *validation)]
    top = _nice_above(
        _upper_fence([point.value for point in train], floor=max((p.value for p in validation), default=0))
    )
    bottom = min(0.0, math.floor(min(values)))
    first, last = _step_range([*train, *validation])
    scale = _Scale(first, last, bottom, top, height)
    dots = tuple(
        Dot(
            scale.x_percent(point.step),
            scale.y(point.value),
            f"validation loss {number(point.value)}, step {point.step}",
        )
        for point in _thinned(validation)
    )
    words = f"Loss over {last:,} steps."
    if train:
        words += f" Training: from {number(train[0].value)} to {number(train[-1].value)}."
    if validation:
        best = min(validation, key=lambda point: point.value)
        words += f" Validation: last {number(validation[-1].value)}, best {number(best.value)} at step {best.step:,}."
    return LineChart(
        height=height,
        y_ticks=scale.y_ticks(),
        x_ticks=scale.x_ticks(),
        raw=scale.path(_thinned(train)),
        smooth=scale.path(_thinned(_smoothed(train))) if len(train) >= 8 else "",
        dots=dots,
        dots_path=scale.path(_thinned(validation)),
        words=words,
        bands=tuple(_band(mark, scale) for mark in marks),
    )


def _band(mark: Mark, scale: _Scale) -> Band:
    """At least MIN_BAND_WIDTH wide, so that one step can be seen, and inside the chart."""
    left, right = (min(max(scale.x_percent(step), 0.0), 100.0) for step in (mark.first, mark.last))
    width = max(right - left, MIN_BAND_WIDTH)
    return Band(number=mark.number, x=round(min(left, 100 - width), 2), width=width, tone=mark.tone, words=mark.words)


def source_chart(
    train: Mapping[str, Sequence[Point]], validation: Mapping[str, Sequence[Point]], height: int = 200
) -> SourceChart | None:
    """One smoothed training curve for each source, its validations as dots. None with fewer than two sources."""
    names = sorted({*train, *validation})
    shown = names[:MAX_SOURCES_DRAWN]
    points = [point for name in shown for point in (*train.get(name, ()), *validation.get(name, ()))]
    if len(names) < 2 or not points:
        return None
    top = _nice_above(_upper_fence([point.value for point in points], floor=0))
    first, last = _step_range(points)
    scale = _Scale(first, last, min(0.0, math.floor(min(point.value for point in points))), top, height)
    curves = []
    for number_, name in enumerate(shown):
        steps, checks = list(train.get(name, ())), list(validation.get(name, ()))
        curves.append(
            SourceCurve(
                name=name,
                number=number_,
                path=scale.path(_thinned(_smoothed(steps))),
                dots=tuple(
                    Dot(scale.x_percent(p.step), scale.y(p.value), f"{name}: {number(p.value)}, step {p.step}")
                    for p in _thinned(checks)
                ),
                train=(_smoothed(steps)[0].value, _smoothed(steps)[-1].value) if steps else None,
                validation=(checks[0].value, checks[-1].value) if checks else None,
            )
        )
    return SourceChart(
        height=height,
        y_ticks=scale.y_ticks(),
        x_ticks=scale.x_ticks(),
        curves=tuple(curves),
        num_hidden=len(names) - len(shown),
        words=f"Loss by source over {last:,} steps, {len(shown)} sources; the table below has the numbers.",
    )


def rate_chart(rates: Sequence[Point], height: int = 110) -> LineChart | None:
    if not rates:
        return None
    first, last = _step_range(rates)
    highest = max(point.value for point in rates)
    scale = _Scale(first, last, 0.0, highest or 1.0, height)
    ticks = (Tick(scale.y(highest), learning_rate(highest)), Tick(scale.y(0), "0"))
    return LineChart(
        height=height,
        y_ticks=ticks,
        x_ticks=scale.x_ticks(),
        raw="",
        smooth=scale.path(_thinned(rates)),
        dots=(),
        dots_path="",
        words=f"Learning rate over {last:,} steps, at most {learning_rate(highest)}, "
        f"at the end {learning_rate(rates[-1].value)}.",
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    first: int
    last: int
    bottom: float
    top: float
    height: int

    def x_percent(self, step: float) -> float:
        return round(100 * (step - self.first) / max(self.last - self.first, 1), 2)

    def y(self, value: float) -> float:
        inside = min(max(value, self.bottom), self.top)
        return round(self.height * (1 - (inside - self.bottom) / (self.top - self.bottom)), 1)

    def path(self, points: Sequence[Point]) -> str:
        places = [f"{self.x_percent(point.step) * CURVE_WIDTH / 100:.1f} {self.y(point.value)}" for point in points]
        return f"M{'L'.join(places)}" if len(places) > 1 else ""

    def y_ticks(self) -> tuple[Tick, ...]:
        step = (self.top - self.bottom) / 4
        return tuple(Tick(self.y(self.bottom + i * step), number(self.bottom + i * step)) for i in range(5))

    def x_ticks(self) -> tuple[Tick, ...]:
        span = self.last - self.first
        steps = sorted({self.first + round(span * part / 4) for part in range(5)})
        return tuple(Tick(self.x_percent(step), f"{step:,}") for step in steps)


def _step_range(points: Sequence[Point]) -> tuple[int, int]:
    steps = [point.step for point in points]
    return min(steps), max(steps)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_DRAWN_POINTS points. Each bucket keeps its lowest and highest, so a spike stays a spike."""
    if len(points) <= MAX_DRAWN_POINTS:
        return list(points)
    num_buckets = MAX_DRAWN_POINTS // 2
    kept: list[Point] = []
    for bucket in range(num_buckets):
        part = points[bucket * len(points) // num_buckets : (bucket + 1) * len(points) // num_buckets]
        ends = {min(part, key=lambda point: point.value), max(part, key=lambda point: point.value)}
        kept.extend(sorted(ends, key=lambda point: point.step))
    return kept


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Mean over as many steps before as after, fewer at the ends: unlike a running average it does not lag."""
    reach = max(1, len(points) // (2 * SMOOTHING_STEPS))
    totals = [0.0, *accumulate(point.value for point in points)]
    smooth = []
    for index, point in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        mean = (totals[index + near + 1] - totals[index - near]) / (2 * near + 1)
        smooth.append(Point(point.step, mean))
    return smooth


def _upper_fence(values: Sequence[float], floor: float) -> float:
    """The highest value, unless a few spikes are so far out that they would flatten everything else."""
    if not values:
        return floor
    ordered = sorted(values)
    usual = ordered[int(0.98 * (len(ordered) - 1))]
    return max(floor, ordered[-1] if ordered[-1] <= 2 * usual else 1.5 * usual)


def _nice_above(value: float) -> float:
    if value <= 0:
        return 1.0
    value = max(value, 1e-9)  # below, powers of ten lose their digits
    size = 10.0 ** math.floor(math.log10(value))
    steps = (step * size for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10))
    return float(next((step for step in steps if step >= value), value))


# ---------------------------------------------------------------------------------------------- lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthStrip:
    """Percent of the length limit; `bulk` is the width from the shortest row to the 95th percentile."""

    shortest: float
    longest: float
    median: float
    bulk: float
    anchor: str
    median_label: str
    limit_label: str
    words: str


def length_strip(lengths: Mapping[str, int], limit: int) -> LengthStrip | None:
    if not {"min", "p50", "p95", "max"} <= set(lengths) or limit < 1:
        return None
    axis = _Axis(0.0, float(max(limit, lengths["max"])), False)
    shortest, median = axis.percent(lengths["min"]), axis.percent(lengths["p50"])
    return LengthStrip(
        shortest=shortest,
        longest=axis.percent(lengths["max"]),
        median=median,
        bulk=round(axis.percent(lengths["p95"]) - shortest, 2),
        anchor="start" if median < 20 else "end" if median > 80 else "middle",
        median_label=f"median {lengths['p50']:,}",
        limit_label=f"{int(axis.high):,}",
        words=f"From {lengths['min']:,} to {lengths['max']:,}, half of them up to {lengths['p50']:,} and 95 % up to "
        f"{lengths['p95']:,}. Longer than {limit:,} is over-long.",
    )


# ---------------------------------------------------------------------------------------------- intervals


def interval_row(row: Comparison) -> IntervalRow | None:
    """Base and tuned on one axis of their own: shares from 0 to 100 %, anything else from 0 (or logarithmic where the
    two are more than 20 times apart)."""
    numbers = [
        value
        for side in (row.base, row.tuned)
        for value in (side.value, side.low, side.high)
        if value is not None and math.isfinite(value)
    ]
    if not numbers or (row.base.value is None and row.tuned.value is None):
        return None
    if scale_of(row.metric) == "share":
        low, high, is_log = 0.0, 1.0, False
    else:
        low, high = min(0.0, *numbers), _nice_above(max(numbers))
        is_log = min(numbers) > 0 and max(numbers) / min(numbers) > 20
        if is_log:
            low = 10.0 ** math.floor(math.log10(min(numbers)))
    places = _Axis(low, high, is_log)
    return IntervalRow(
        base=places.whisker(row.base),
        tuned=places.whisker(row.tuned),
        left=metric_value(row.metric, low),
        right=metric_value(row.metric, high) + (" (log)" if is_log else ""),
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    is_log: bool

    def percent(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return round(100 * min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0), 2)

    def whisker(self, side: Measurement) -> Whisker | None:
        if side.value is None or not math.isfinite(side.value):
            return None
        ends = [self.percent(end) if end is not None and math.isfinite(end) else None for end in (side.low, side.high)]
        return Whisker(value=self.percent(side.value), low=ends[0], high=ends[1])
