"""A monitor's report as one page: what rings, each check over the windows, new topics. Static, like a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from halo_forge.monitor.records import DriftCheck, MonitorReport, WindowReport
from halo_forge.report.charts import CURVE_WIDTH, Dot, Tick
from halo_forge.report.page import page_dress, page_environment
from halo_forge.report.wording import number, share
from halo_forge.runs import write_atomic

CHART_HEIGHT = 90
MAX_WINDOWS_DRAWN = 240
TONES = {"ok": "pass", "drift": "fail", "too_few_rows": "wait"}
TITLES = {"ok": "No drift", "drift": "Drift", "too_few_rows": "Too few rows"}
MEASURES = {
    "length": "stability index",
    "category": "stability index",
    "rate": "change of the share",
    "vector": "squared discrepancy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """One check. `path` runs in a box CURVE_WIDTH wide over the windows; `limit_y` is where its threshold lies."""

    name: str
    measure: str
    last: DriftCheck
    before: str
    now: str
    is_ringing: bool
    path: str
    dots: tuple[Dot, ...]
    limit_y: float
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    words: str


def write_monitor_page(path: Path, report: MonitorReport, windows: Sequence[WindowReport]) -> None:
    """Write the page. Raises OSError where the file cannot be written."""
    write_atomic(path, render_monitor_page(report, windows))


def render_monitor_page(report: MonitorReport, windows: Sequence[WindowReport]) -> str:
    on = {alarm.name for alarm in report.alarms if alarm.is_on}
    views = [check_view(check, windows, check.name in on) for check in report.checks]
    views.sort(key=lambda view: (not (view.is_ringing or view.last.drifted), not view.last.significant))
    return (
        page_environment()
        .get_template("monitor.html.j2")
        .render(
            **page_dress(),
            report=report,
            tone=TONES[report.verdict],
            title=TITLES[report.verdict],
            views=views,
            height=CHART_HEIGHT,
            events=[
                (window, event, name)
                for window in reversed(windows)
                for event, names in (("raised", window.raised), ("cleared", window.cleared))
                for name in names
            ][:50],
        )
    )


def check_view(check: DriftCheck, windows: Sequence[WindowReport], is_ringing: bool) -> CheckView:
    found = [(window.number, one) for window in windows for one in window.checks if one.name == check.name]
    found = found[-MAX_WINDOWS_DRAWN:]
    top = 1.15 * max([check.threshold, check.statistic, *(one.statistic for _, one in found)])
    first, last = (found[0][0], found[-1][0]) if found else (0, 0)

    def x(window: int) -> float:
        return round(100 * (window - first) / max(last - first, 1), 2)

    def y(value: float) -> float:
        return round(CHART_HEIGHT * (1 - value / top), 1)

    points = [f"{x(window) * CURVE_WIDTH / 100:.1f} {y(one.statistic)}" for window, one in found]
    is_share = check.kind in ("rate", "category")
    unit = share if is_share else number
    return CheckView(
        name=check.name,
        measure=MEASURES[check.kind],
        last=check,
        before="" if check.reference is None else unit(check.reference),
        now="" if check.observed is None else unit(check.observed),
        is_ringing=is_ringing,
        path=f"M{'L'.join(points)}" if len(points) > 1 else "",
        dots=tuple(
            Dot(x(window), y(one.statistic), f"window {window}: {number(one.statistic)}")
            for window, one in found
            if one.drifted
        ),
        limit_y=y(check.threshold),
        y_ticks=(Tick(y(check.threshold), number(check.threshold)), Tick(y(0), "0")),
        x_ticks=tuple(Tick(x(window), f"{window:,}") for window in sorted({first, last})) if found else (),
        words=f"{check.name} over {len(found)} windows, last {number(check.statistic)}, "
        f"threshold {number(check.threshold)}",
    )
