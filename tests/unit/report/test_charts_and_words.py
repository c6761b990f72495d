"""Geometry of the charts, wording of numbers, and the contrast of the page's colours."""

from __future__ import annotations

import re
from importlib import resources
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.artifacts import Comparison, Direction, Measurement
from halo_forge.report import wording
from halo_forge.report.charts import MAX_DRAWN_POINTS, interval_row, length_strip, loss_chart, rate_chart
from halo_forge.report.read_run import Point


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def series(values: list[float]) -> list[Point]:
    return [Point(step, value) for step, value in enumerate(values, start=1)]


# ---------------------------------------------------------------------------------------------- curves


def test_a_curve_goes_where_its_values_are() -> None:
    chart = loss_chart(series([2.0, 1.0, 0.0]), [Point(3, 1.0)], height=200)
    assert chart is not None
    assert places(chart.raw) == [(0.0, 0.0), (500.0, 100.0), (1000.0, 200.0)]
    assert [(dot.x, dot.y) for dot in chart.dots] == [(100.0, 100.0)]
    assert [(tick.label, tick.place) for tick in chart.y_ticks] == [
        ("0", 200.0), ("0.5", 150.0), ("1", 100.0), ("1.5", 50.0), ("2", 0.0),
    ]  # fmt: skip
    assert "Training: from 2 to 0" in chart.words
    assert "best 1 at step 3" in chart.words


def test_no_values_no_chart_and_one_value_is_enough() -> None:
    assert loss_chart([], []) is None
    assert rate_chart([]) is None
    chart = loss_chart([Point(7, 1.0)], [])
    assert chart is not None
    assert chart.raw == ""
    assert [tick.label for tick in chart.x_ticks] == ["7"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e3, 1e6), min_size=1, max_size=700), st.lists(st.floats(0, 1e6), max_size=20))
def test_every_point_lies_inside_the_chart(train: list[float], validation: list[float]) -> None:
    chart = loss_chart(series(train), series(validation), height=240)
    assert chart is not None
    for x, y in places(chart.raw) + places(chart.smooth) + places(chart.dots_path):
        assert 0 <= x <= 1000
        assert 0 <= y <= 240
    assert chart.raw.count("L") <= MAX_DRAWN_POINTS


def test_a_spike_survives_thinning_but_does_not_flatten_the_rest() -> None:
    values = [1.0] * 5000
    values[3210] = 90.0
    chart = loss_chart(series(values), [])
    assert chart is not None
    heights = [y for _, y in places(chart.raw)]
    assert min(heights) == 0  # the spike, at the top
    assert sorted(heights)[len(heights) // 2] < 200  # everything else is not pressed to the floor


def test_smoothing_does_not_lag() -> None:
    """On a straight line the mean of equally many neighbours on both sides is the line itself."""
    chart = loss_chart(series([200.0 - step for step in range(200)]), [])
    assert chart is not None
    raw, smooth = places(chart.raw), places(chart.smooth)
    assert max(abs(a[1] - b[1]) for a, b in zip(raw, smooth, strict=True)) < 0.2


def test_rate_labels_are_as_in_a_configuration() -> None:
    chart = rate_chart(series([1e-4, 5e-4, 5e-5]))
    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == ["5e-4", "0"]


def test_length_strip_places() -> None:
    strip = length_strip({"min": 51, "p50": 256, "p95": 410, "max": 512}, 512)
    assert strip is not None
    assert (strip.shortest, strip.median, strip.longest) == (9.96, 50.0, 100.0)
    assert strip.bulk == pytest.approx(80.08 - 9.96, abs=0.02)
    assert length_strip({"min": 1}, 512) is None
    longer = length_strip({"min": 1, "p50": 2, "p95": 3, "max": 900}, 512)
    assert longer is not None
    assert longer.longest == 100.0


# ---------------------------------------------------------------------------------------------- intervals


def compared(metric: str, base: tuple, tuned: tuple, delta: tuple, direction: Direction = "higher") -> Comparison:
    sides = [
        Measurement(metric=metric, value=value, low=low, high=high, n=40, direction=direction)
        for value, low, high in (base, tuned, delta)
    ]
    return Comparison(metric=metric, base=sides[0], tuned=sides[1], delta=sides[2])


def test_shares_lie_on_a_fixed_axis() -> None:
    row = interval_row(compared("json_valid", (0.0, 0.0, 0.1), (0.75, 0.6, 0.9), (0.75, 0.5, 0.9)))
    assert row is not None
    assert row.base is not None
    assert row.tuned is not None
    assert (row.base.value, row.base.low, row.base.high) == (0, 0, 10)
    assert (row.tuned.value, row.tuned.low, row.tuned.high) == (75, 60, 90)
    assert (row.left, row.right) == ("0 %", "100 %")


def test_far_apart_numbers_get_a_logarithmic_axis() -> None:
    row = interval_row(compared("perplexity", (1000.0, 900.0, 1000.0), (1.0, 1.0, 10.0), (-999.0, None, None), "lower"))
    assert row is not None
    assert row.base is not None
    assert row.tuned is not None
    assert row.right == "1,000 (log)"
    assert (row.tuned.value, row.base.value) == (0, 100)
    assert row.tuned.high == pytest.approx(33.33, abs=0.01)


def test_what_was_not_measured_has_no_place() -> None:
    nothing = Measurement(metric="m", value=None, n=0, status="not_measured")
    assert interval_row(Comparison(metric="m", base=nothing, tuned=nothing, delta=nothing)) is None
    half = compared("m", (1.0, None, None), (float("nan"), None, None), (float("nan"), None, None))
    row = interval_row(half)
    assert row is not None
    assert row.tuned is None


@pytest.mark.parametrize(
    ("direction", "delta", "expected"),
    [
        ("higher", (0.2, 0.1, 0.3), "better"),
        ("higher", (-0.2, -0.3, -0.1), "worse"),
        ("lower", (-0.2, -0.3, -0.1), "better"),
        ("lower", (0.2, 0.1, 0.3), "worse"),
        ("higher", (0.2, -0.1, 0.3), "unproven"),
        ("higher", (0.2, 0.0, 0.3), "unproven"),
        ("higher", (0.2, None, None), "unproven"),
        ("none", (0.2, 0.1, 0.3), "neither"),
        ("higher", (None, None, None), "missing"),
    ],
)
def test_only_an_interval_away_from_zero_is_better_or_worse(direction: Direction, delta: tuple, expected: str) -> None:
    row = compared("exact_match", (0.1, 0.0, 0.2), (0.3, 0.2, 0.4), delta, direction)
    assert wording.outcome(row) == expected


# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (9.4123, "9.41"), (99.96, "100"), (1234.5, "1,234"), (0.345, "0.345"), (2.0, "2"),
     (0.00012345, "0.00012"), (-3.14159, "-3.14"), (float("inf"), "not finite"), (float("nan"), "not finite"),
     (1e20, "1e+20")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert wording.number(value) == text


def test_units() -> None:
    assert wording.share(0.875) == "87.5 %"
    assert wording.share(1.0) == "100 %"
    assert wording.metric_change("json_valid", -0.125) == "−12.5 pt"
    assert wording.metric_change("perplexity", 2.0) == "+2"
    assert wording.metric_change("perplexity", 0.0) == "±0"
    assert [wording.duration(s) for s in (0.42, 12.3, 144, 3600 * 5 + 125)] == [
        "0.4 s",
        "12 s",
        "2 min 24 s",
        "5 h 2 min",
    ]
    assert [wording.size(n) for n in (512, 2_100_000_000)] == ["512 B", "2.1 GB"]
    assert [wording.compact(n) for n in (999, 12_345, 4_884_480, 7_241_732_096)] == [
        "999",
        "12.3 k",
        "4.88 M",
        "7.24 B",
    ]
    assert wording.moment("2026-01-31T09:05:00+00:00") == "31 January 2026, 09:05 UTC"
    assert wording.moment("not a time") == "not a time"
    assert [wording.plural(n, "row") for n in (1, 2, 1.0, 0.5)] == ["1 row", "2 rows", "1 row", "0.5 rows"]
    assert [wording.learning_rate(r) for r in (5e-4, 2.5e-5, 0.0, 0.02)] == ["5e-4", "2.5e-5", "0", "0.02"]
    assert wording.item_score("exact_match", 1.0) == "yes"
    assert wording.item_score("harmful_refusal_rate", 0.0) == "no"
    assert wording.item_score("token_f1", 1.0) == "1"


# ---------------------------------------------------------------------------------------------- colours


def palettes() -> dict[str, dict[str, str]]:
    css = resources.files("halo_forge.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    found = {
        name: dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", text))
        for name, text in (("light", light), ("dark", dark))
    }
    assert set(found["light"]) == set(found["dark"])
    return found


def contrast(first: str, second: str) -> float:
    """Ratio of WCAG 2.2, from relative luminance."""

    def luminance(colour: str) -> float:
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


TEXT_ON = [
    *((ink, ground) for ink in ("ink", "soft", "accent") for ground in ("paper", "raised", "sunk")),
    *((tone, f"{tone}-soft") for tone in ("pass", "fail", "wait")),
    *(("ink", ground) for ground in ("pass-soft", "fail-soft", "wait-soft", "mark", "mark-next")),
    *((tone, ground) for tone in ("pass", "fail") for ground in ("paper", "raised")),
]
MARKS_ON = [(mark, "paper") for mark in ("base", "accent", "strong-line")]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(theme: str) -> None:
    colours = palettes()[theme]
    for ink, ground in TEXT_ON:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (theme, ink, ground)
    for mark, ground in MARKS_ON:
        assert contrast(colours[mark], colours[ground]) >= 3, (theme, mark, ground)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_ticks_are_in_order() -> None:
    chart = loss_chart(series([1.0] * 40), [])
    assert chart is not None
    assert all(a.place < b.place for a, b in pairwise(chart.x_ticks))
    assert all(a.place > b.place for a, b in pairwise(chart.y_ticks))
