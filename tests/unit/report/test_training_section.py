"""What the page says about a training: findings with their marks, loss by source, answers step by step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halo_forge.report import render_report
from halo_forge.report.charts import Mark, Point, loss_chart, source_chart
from halo_forge.report.read_run import SampleAnswer
from halo_forge.report.training_section import MAX_STEPS_SHOWN, sample_views
from halo_forge.runs import RunDirectory
from synthetic_curves import Run, healthy_run, noisy


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def page_of(directory: Path, run: Run, extra: list[dict[str, Any]] | None = None) -> str:
    write_lines(directory / "metrics.jsonl", [*run.lines(), *(extra or [])])
    return render_report(RunDirectory(directory))


def overfitting_run() -> Run:
    run = healthy_run(num_validations=8)
    rising = {50: 1.7, 100: 1.3, 150: 1.2, 200: 1.21, 250: 1.25, 300: 1.31, 350: 1.36, 400: 1.42}
    return Run(**{**{f: getattr(run, f) for f in run.__dataclass_fields__}, "validation": rising})


def test_a_finding_stands_in_words_and_as_a_mark_on_the_plot(tmp_path: Path) -> None:
    page = page_of(tmp_path, overfitting_run())
    assert "Overfitting: the validation loss rises while the training loss falls" in page
    assert "go back to step 150" in page
    (band,) = re.findall(r'<rect class="band (\w+)" x="([\d.]+)%" width="([\d.]+)%"', page)
    assert band == ("wait", "37.34", "62.66")  # steps 150 to 400 of 1 to 400
    assert len(re.findall(r'<rect class="mark wait"', page)) == 1


def test_a_run_without_findings_says_so_and_has_no_mark(tmp_path: Path) -> None:
    page = page_of(tmp_path, healthy_run())
    assert "Nothing found" in page
    assert 'class="band' not in page
    assert 'class="mark ' not in page


def test_what_was_told_and_is_no_longer_so_is_kept_apart(tmp_path: Path) -> None:
    told = {
        "kind": "finding", "step": 30, "code": "loss_rising", "severity": "error", "title": "It rose",
        "evidence": "from 1 to 2", "next_action": "lower it", "first_step": 20, "last_step": 30,
        "numbers": {}, "curve": "train", "source": None,
    }  # fmt: skip
    page = page_of(tmp_path, healthy_run(), [told])
    assert "1 finding told while it trained" in page
    assert "It rose" in page
    assert 'class="band' not in page


def by_source(run: Run, **sources: np.ndarray) -> Run:
    return Run(**{**{f: getattr(run, f) for f in run.__dataclass_fields__}, "by_source": sources})


def test_one_curve_for_each_source(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    run = by_source(
        healthy_run(),
        good=noisy(np.linspace(2, 1, 400), 0.05, rng),
        **{"flat <b>": noisy(np.full(400, 3.0), 0.05, rng)},
    )
    validation = {"kind": "validation", "step": 401, "loss": 1.0}
    validation["by_source"] = {"good": {"loss": 1.1, "num_supervised_tokens": 50}}
    page = page_of(tmp_path, run, [validation])
    assert "Loss by source" in page
    assert len(re.findall(r'<path class="l\d"', page)) == 2
    assert len(re.findall(r'<circle class="l\d"', page)) == 1
    assert "Nothing is learned from flat &lt;b&gt;" in page
    assert "flat <b>" not in page
    assert "Loss by source" not in page_of(tmp_path, healthy_run())


def test_sources_beyond_the_colours_are_counted() -> None:
    series = {f"s{n}": [Point(1, 1.0), Point(2, 0.5)] for n in range(9)}
    chart = source_chart(series, {})
    assert chart is not None
    assert (len(chart.curves), chart.num_hidden) == (7, 2)


@pytest.mark.parametrize(("first", "last"), [(1, 1), (100, 100), (50, 50), (1, 100), (90, 400), (0, 3)])
def test_marks_stay_inside_the_chart(first: int, last: int) -> None:
    points = [Point(step, 1.0) for step in range(1, 101)]
    chart = loss_chart(points, [], [Mark(number=1, first=first, last=last, tone="fail", words="")])
    assert chart is not None
    (band,) = chart.bands
    assert band.x >= 0
    assert band.width > 0
    assert band.x + band.width <= 100.01


def answers(num_steps: int, prompt: str = "Q: a?") -> list[SampleAnswer]:
    return [
        SampleAnswer(step=step, prompt=prompt, answer=f"answer {step}", reference="right", stopped=step % 2 == 0)
        for step in range(1, num_steps + 1)
    ]


def test_many_steps_show_the_first_the_last_and_some_between() -> None:
    (view,) = sample_views(answers(100))
    steps = [row.step for row in view.steps]
    assert len(steps) == MAX_STEPS_SHOWN
    assert (steps[0], steps[-1]) == (1, 100)
    assert steps == sorted(steps)
    assert [row.step for row in sample_views(answers(3))[0].steps] == [1, 2, 3]


def test_answers_stand_step_by_step_and_escaped(tmp_path: Path) -> None:
    rows = [
        {"step": step, "prompt": f"P{n}<i>", "answer": f"says <script>{step}</script>", "reference": "R&D",
         "stopped": False}
        for step in (4, 8) for n in (1, 2)
    ]  # fmt: skip
    write_lines(tmp_path / "samples.jsonl", [*rows, {"step": "x"}])
    page = page_of(tmp_path, healthy_run())
    assert page.count("&lt;script&gt;4&lt;/script&gt;") == 2
    assert "<script>" not in page
    assert "1 lines of samples.jsonl are not sample answers" in page
    assert "Answers while training" in page
