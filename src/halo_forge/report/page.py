"""Run directory -> report.html. The page is static: no script, no network, one style sheet allowed by its hash."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from halo_forge.metrics import SUITE_METRICS
from halo_forge.report import wording
from halo_forge.report.answers import FIRST_SHOWN, flipped, side_by_side
from halo_forge.report.charts import interval_row, length_strip, loss_chart, rate_chart, source_chart
from halo_forge.report.data_charts import small_share
from halo_forge.report.data_section import data_part
from halo_forge.report.read_run import RunFiles, read_run
from halo_forge.report.sections import (
    banner,
    chosen_settings,
    config_rows,
    fingerprints,
    headline,
    mask_views,
    next_lines,
    reproduce_lines,
    slice_rows,
    stages,
    training_facts,
)
from halo_forge.report.suites_section import suite_views
from halo_forge.report.training_section import sample_views, training_findings
from halo_forge.report.visible import visible
from halo_forge.runs import RunDirectory, write_atomic

TEMPLATES = "templates"
MAX_MASKS_SHOWN = 6


def write_report(run: RunDirectory, holdout_uses: str = "") -> Path:
    """Write report.html from the records that are there, also for a run that has not finished or has failed.

    holdout_uses  a sentence on how often this holdout was looked at, where somebody counts that
    Raises OSError only where the file cannot be written.
    """
    path = run.file("report.html")
    write_atomic(path, render_report(run, holdout_uses))
    return path


def render_report(run: RunDirectory, holdout_uses: str = "") -> str:
    files = read_run(run)
    return page_environment().get_template("report.html.j2").render(_content(files, holdout_uses))


def _content(files: RunFiles, holdout_uses: str) -> dict[str, Any]:
    found = training_findings(files.metrics)
    flips = flipped(files.answers, files.flips)
    comparisons = files.evaluation.overall if files.evaluation else ()
    return {
        **page_dress(),
        "files": files,
        "name": files.path.resolve().name,
        "is_data_only": files.is_data_only,
        "data": data_part(files, holdout_uses),
        "next_lines": next_lines(files),
        "step": {anchor: place for place, anchor in enumerate(_anchors(files), start=1)},
        "stages": stages(files),
        "banner": banner(files),
        "headline": headline(files),
        "masks": mask_views(files.masks[:MAX_MASKS_SHOWN]),
        "length_strip": length_strip(files.prepared.token_lengths, files.prepared.max_seq_length)
        if files.prepared
        else None,
        "training_findings": found,
        "loss_chart": loss_chart(
            files.metrics.train_loss, files.metrics.validation_loss, found.marks if found is not None else ()
        ),
        "source_chart": source_chart(files.metrics.train_sources, files.metrics.validation_sources),
        "samples": sample_views(files.samples),
        "rate_chart": rate_chart(files.metrics.learning_rate),
        "training_facts": training_facts(files),
        "comparisons": [(row, interval_row(row)) for row in comparisons if row.metric not in SUITE_METRICS],
        "slice_rows": slice_rows(files),
        "suites": suite_views(files),
        "flips": flips,
        "answers": side_by_side(files.answers, flips),
        "num_answers_open": FIRST_SHOWN,
        "fingerprints": fingerprints(files),
        "chosen_settings": chosen_settings(files),
        "config_rows": config_rows(files),
        "reproduce_lines": reproduce_lines(files),
    }


def _anchors(files: RunFiles) -> tuple[str, ...]:
    """The sections of the page. Before anything was trained, what has not begun is one section, not four."""
    later = ("next",) if files.is_data_only else ("training", "evaluation", "gate")
    return ("data", "masks", *later, "release", "reproduce")


@cache
def page_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("halo_forge.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    for name in (
        "compact", "count", "duration", "interval", "label_of", "metric_change", "metric_value", "moment", "number",
        "outcome", "plural", "share", "size",
    ):  # fmt: skip
        environment.filters[name] = getattr(wording, name)
    environment.filters["small_share"] = small_share
    environment.globals["DIRECTIONS"] = wording.DIRECTIONS
    return environment


def _shown(value: Any) -> Any:
    """Every expression of the template passes here, so no field can smuggle a hidden character onto the page."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def page_dress() -> dict[str, Any]:
    """`style` and `policy` for a page's template: one style sheet, allowed by its hash, images from the page itself,
    and nothing else."""
    style = page_style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    # Our own file, the only text on the page that is not escaped: its hash must be of the very characters.
    return {"style": Markup(style), "policy": policy}


@cache
def page_style() -> str:
    return resources.files("halo_forge.report").joinpath(TEMPLATES, "report.css").read_text(encoding="utf-8")
