"""failures.html: each cluster with examples, in the dress of a run's report. Static; every text is escaped and cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from halo_forge.failures.records import FailedAnswer, FailureCluster, Inspection
from halo_forge.report.page import page_dress, page_environment
from halo_forge.report.visible import Clipped, Difference, clip, difference, visible
from halo_forge.runs import write_atomic

SHOWN_CHARS = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One failure. `answered` is split where it leaves what was expected."""

    source: str
    how: str
    prompt: Clipped
    expected: Clipped
    answered: Difference
    num_hidden: int
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    cluster: FailureCluster
    width: float  # of its bar, percent of the largest
    examples: tuple[ExampleView, ...]


def write_page(path: Path, inspection: Inspection) -> None:
    """Raises OSError where the file cannot be written."""
    write_atomic(path, render_page(inspection))


def render_page(inspection: Inspection) -> str:
    largest = max((cluster.num for cluster in inspection.clusters), default=1)
    views = [
        ClusterView(
            cluster=cluster, width=round(100 * cluster.num / largest, 1),
            examples=tuple(map(_example_view, cluster.examples)),
        )
        for cluster in inspection.clusters
    ]  # fmt: skip
    return (
        page_environment()
        .get_template("failures.html.j2")
        .render(
            **page_dress(),
            found=inspection,
            name=Path(inspection.run).resolve().name,
            views=views,
        )
    )


def _example_view(example: FailedAnswer) -> ExampleView:
    answered = clip(visible(example.answered), SHOWN_CHARS)
    expected = clip(visible(example.expected), SHOWN_CHARS)
    return ExampleView(
        source=example.source, how=example.how, prompt=clip(visible(example.prompt), SHOWN_CHARS), expected=expected,
        answered=difference(answered.text, expected.text), num_hidden=answered.num_hidden, stopped=example.stopped,
    )  # fmt: skip
