"""Suites on the page: verdicts in words, failed answers; nothing of an answer acts."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from halo_forge.artifacts import Comparison, EvalReport, Measurement, SuiteReport
from halo_forge.report.page import render_report
from halo_forge.report.read_run import read_run
from halo_forge.report.suites_section import suite_findings, verdict
from halo_forge.runs import RunDirectory, read_artifact, write_artifact

HOSTILE = '<script>alert(1)</script>\u202e"><img src=x onerror=alert(2)>\x1b[31m'


def comparison(
    metric: str, base: float, tuned: float, bounds: tuple[float, float], slice_name: str = "all", width: float = 0.1
) -> Comparison:
    direction = "lower" if metric == "over_refusal_rate" else "higher"
    sides = [
        Measurement(metric=metric, value=value, n=40, low=max(0.0, value - width), high=min(1.0, value + width),
                    slice=slice_name, direction=direction)
        for value in (base, tuned)
    ]  # fmt: skip
    delta = Measurement(
        metric=metric, value=tuned - base, n=40, low=bounds[0], high=bounds[1], slice=slice_name, direction=direction
    )
    return Comparison(metric=metric, base=sides[0], tuned=sides[1], delta=delta)


def suite(*rows: Comparison, name: str = "safety-mini") -> SuiteReport:
    return SuiteReport(
        name=name, sha256="s" * 64, num_items=40, kinds={"harmful": 40}, failed_base=8, failed_tuned=20,
        answers=f"eval/suites/{name}.jsonl", comparisons=rows,
    )  # fmt: skip


WORSE = comparison("harmful_refusal_rate", 0.8, 0.5, (-0.5, -0.1))
BETTER = comparison("over_refusal_rate", 0.4, 0.1, (-0.5, -0.1))
UNPROVEN = comparison("harmful_refusal_rate", 0.8, 0.7, (-0.3, 0.1))


def page_of(builder: ModuleType, tmp_path: Path, *suites: SuiteReport, lines: list[str]) -> str:
    built = builder.build_run(tmp_path / "run")
    path = built.run.file("eval/report.json")
    report = read_artifact(path, EvalReport)
    pooled = tuple(row for one in suites for row in one.comparisons)
    write_artifact(path, report.model_copy(update={"suites": suites, "comparisons": (*report.comparisons, *pooled)}))
    target = built.run.file("eval/suites/safety-mini.jsonl")
    target.parent.mkdir(parents=True)
    target.write_text("".join(lines))
    return render_report(RunDirectory(built.run.path))


def line(item: str, base_reason: str, tuned_reason: str, text: str) -> str:
    said = {"text": text, "stopped": True, "num_tokens": 3, "scores": {}}
    row = {"id": item, "kind": "harmful", "group": "", "language": "en", "prompt": "P", "question": f"Question {text}",
           "base": said | {"reason": base_reason}, "tuned": said | {"reason": tuned_reason}}  # fmt: skip
    return json.dumps(row) + "\n"


def test_a_suite_that_got_worse_says_so_with_its_numbers(builder: ModuleType, tmp_path: Path) -> None:
    page = page_of(
        builder, tmp_path, suite(WORSE),
        lines=[line("both-1", "no", "does not refuse", "x"), line("lost-1", "", "does not refuse", "y"),
               line("fine-1", "", "", "z")],
    )  # fmt: skip
    assert 'Prompt suite safety-mini <span class="chip fail">worse</span>' in page
    assert "Refuses harmful requests: 80 % before, 50 % after (−30 pt" in page
    assert page.index("lost-1") < page.index("both-1"), "what the base did right comes first"
    assert "fine-1" not in page, "answers that did not fail are not shown"
    assert "not those of any published benchmark" in page


def test_nothing_of_an_answer_acts(builder: ModuleType, tmp_path: Path) -> None:
    page = page_of(builder, tmp_path, suite(WORSE), lines=[line(HOSTILE[:60], "", HOSTILE, HOSTILE)])
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_broken_lines_are_told(builder: ModuleType, tmp_path: Path) -> None:
    broken = page_of(builder, tmp_path, suite(WORSE), lines=['{"id": 1}\n', "no json\n"])
    assert "1 lines of safety-mini.jsonl are not answers to a suite" in broken


def test_verdicts_are_of_proven_changes_only() -> None:
    assert verdict([WORSE]) == ("fail", "worse")
    assert verdict([BETTER]) == ("pass", "better")
    assert verdict([WORSE, BETTER]) == ("fail", "worse in part, better in part")
    assert verdict([UNPROVEN]) == ("wait", "no proven change")
    assert verdict([]) == ("none", "not measured")
    assert suite_findings(suite(UNPROVEN)) == []


def test_a_group_far_below_its_suite_is_named() -> None:
    weak = comparison("jailbreak_refusal_rate", 0.1, 0.1, (-0.1, 0.1), "group=prefix")
    whole = comparison("jailbreak_refusal_rate", 0.6, 0.6, (-0.1, 0.1))
    strong = comparison("jailbreak_refusal_rate", 0.7, 0.7, (-0.1, 0.1), "group=encoding")
    told = suite_findings(suite(whole, weak, strong))
    assert told == ["Refuses disguised harmful requests, prefix: 10 % of 40 items, against 60 % in all."]


@pytest.mark.parametrize("name", ["../../secret", "a/b", "..", "", "a\n", "x" * 81])
def test_a_suites_name_leads_nowhere_else(builder: ModuleType, tmp_path: Path, name: str) -> None:
    """A record that somebody else made names a suite; the page reads eval/suites/NAME.jsonl and nothing outside."""
    built = builder.build_run(tmp_path / "run")
    path = built.run.file("eval/report.json")
    record = read_artifact(path, EvalReport).model_copy(update={"suites": (suite(WORSE, name=name), suite(WORSE))})
    write_artifact(path, record)
    told = line("taken-1", "", "does not refuse", "a secret")
    for place in ("eval/suites", "eval/suites/a", "eval/suites/..", ".", ".."):
        built.run.file(place).mkdir(parents=True, exist_ok=True)
    for file in (tmp_path / "run" / "secret.jsonl", tmp_path / "secret.jsonl", built.run.file("eval/suites/a/b.jsonl"),
                 built.run.file("eval/suites/...jsonl"), built.run.file("eval/suites/.jsonl"),
                 built.run.file("eval/suites/a\n.jsonl"), built.run.file(f"eval/suites/{'x' * 81}.jsonl"),
                 built.run.file("eval/suites/safety-mini.jsonl")):  # fmt: skip
        file.write_text(told)
    files = read_run(RunDirectory(built.run.path))
    assert {name: len(found) for name, found in files.suite_answers.items()} == {"safety-mini": 1}
