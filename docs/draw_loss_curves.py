"""Draw the golden loss curves (tests/golden/loss_curves.json) into docs/images/loss_curves.svg.

python docs/draw_loss_curves.py            draw
python docs/draw_loss_curves.py --check    exit 1 when the picture is not that of the curves
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

from halo_forge.report.charts import CURVE_WIDTH, LineChart, loss_chart
from halo_forge.report.read_run import Point

ROOT = Path(__file__).resolve().parents[1]
CURVES, PICTURE = ROOT / "tests/golden/loss_curves.json", ROOT / "docs/images/loss_curves.svg"
COLUMNS, WIDTH, HEIGHT = 4, 190, 110
LEFT, TOP, GAP = 34, 30, 46  # pixels: labels of the loss, the title, and the steps below with some air
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600; fill: #1f2328 }
.grid { stroke: #d0d7de; stroke-width: 1 }
.reference, .curve { fill: none; vector-effect: non-scaling-stroke }
.reference { stroke: #afb8c1; stroke-width: 1.5 }
.curve { stroke: #0969da; stroke-width: 1.5 }
"""


def picture(curves: dict[str, list[float]]) -> str:
    """One small chart a curve on equal axes, that of LoRA in grey behind each."""
    rows = -(-len(curves) // COLUMNS)
    width, height = COLUMNS * (LEFT + WIDTH + 12), rows * (TOP + HEIGHT + GAP) - 20
    panels = [panel(name, points_of(curve), points_of(curves["lora"])) for name, curve in curves.items()]
    placed = [
        f'<g transform="translate({at % COLUMNS * (LEFT + WIDTH + 12) + LEFT} '
        f'{at // COLUMNS * (TOP + HEIGHT + GAP) + TOP})">\n{text}\n</g>'
        for at, text in enumerate(panels)
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    words = "; ".join(f"{name}: {curve[0]:.2f} to {curve[-1]:.2f}" for name, curve in curves.items())
    background = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    title = f"<title>Loss over {len(curves['lora'])} steps. {escape(words)}</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", background, *placed, "</svg>"]) + "\n"


def points_of(curve: list[float]) -> list[Point]:
    return [Point(step, loss) for step, loss in enumerate(curve, start=1)]


def panel(name: str, curve: list[Point], reference: list[Point]) -> str:
    """The report's own chart: the curve as its training loss, LoRA's as its validation."""
    chart = loss_chart(curve, reference, height=HEIGHT)
    assert chart is not None
    stretched = f'<g transform="scale({WIDTH / CURVE_WIDTH} 1)">'
    paths = f'<path class="reference" d="{chart.dots_path}"/><path class="curve" d="{chart.raw}"/>'
    lines = [f'<text class="title" x="0" y="-12">{escape(name)}</text>', *axes(chart)]
    return "\n".join([*lines, f"{stretched}{paths}</g>"])


def axes(chart: LineChart) -> list[str]:
    across = [
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{tick.place}" y2="{tick.place}"/>'
        f'<text x="-6" y="{tick.place + 4}" text-anchor="end">{tick.label}</text>'
        for tick in chart.y_ticks[::2]
    ]
    below = [
        f'<text x="{tick.place * WIDTH / 100:.1f}" y="{HEIGHT + 16}" text-anchor="middle">{tick.label}</text>'
        for tick in chart.x_ticks[::2]
    ]
    return across + below


def main() -> None:
    drawn = picture(json.loads(CURVES.read_text())["curves"])
    if "--check" in sys.argv[1:]:
        sys.exit(not PICTURE.is_file() or PICTURE.read_text() != drawn)
    PICTURE.write_text(drawn)


if __name__ == "__main__":
    main()
