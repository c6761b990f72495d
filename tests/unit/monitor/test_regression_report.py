"""The released model measured again: what moved, which way, and whether the model or the machine did it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from halo_forge.artifacts import EvalReport
from halo_forge.monitor.regression import compare_with_release, read_answers


@pytest.fixture
def report(builder: ModuleType, tmp_path: Path) -> EvalReport:
    return builder.build_run(tmp_path / "run").report


def moved(report: EvalReport, metric: str, *, tuned: float = 0.0, base: float = 0.0) -> EvalReport:
    """The same report with one metric's values moved."""
    rows = []
    for row in report.comparisons:
        if row.metric == metric:
            sides = {"tuned": tuned, "base": base}
            row = row.model_copy(
                update={
                    side: getattr(row, side).model_copy(update={"value": getattr(row, side).value + by})
                    for side, by in sides.items()
                }
            )
        rows.append(row)
    return report.model_copy(update={"comparisons": tuple(rows)})


def test_the_same_numbers_are_no_regression(report: EvalReport) -> None:
    found = compare_with_release(report, report, None, 0.02, "run v1", "")
    assert found.verdict == "ok"
    assert {change.verdict for change in found.changes if change.released is not None} == {"same"}
    assert found.changed_libraries == {}


@pytest.mark.parametrize(
    ("metric", "by", "verdict"),
    [
        ("json_valid", -0.05, "worse"),
        ("json_valid", -0.01, "changed"),
        ("json_valid", 0.05, "better"),
        ("perplexity", 1.0, "worse"),
        ("perplexity", 0.001, "changed"),
        ("perplexity", -1.0, "better"),
    ],
)
def test_a_change_is_judged_by_its_direction_and_size(report: EvalReport, metric: str, by: float, verdict: str) -> None:
    found = compare_with_release(report, moved(report, metric, tuned=by), None, 0.02, None, "")
    assert {change.metric: change.verdict for change in found.changes}[metric] == verdict
    assert found.verdict == ("regressed" if verdict == "worse" else "ok")
    if verdict == "worse":
        assert "the base model did not move" in found.reason


def test_a_library_that_moved_the_base_too_is_named(report: EvalReport) -> None:
    now = moved(report, "perplexity", tuned=1.0, base=1.0)
    libraries = {**now.provenance.libraries, "torch": "9.9"}
    now = now.model_copy(update={"provenance": now.provenance.model_copy(update={"libraries": libraries})})
    found = compare_with_release(report, now, None, 0.02, None, "")
    assert "the base model moved too" in found.reason
    assert found.changed_libraries["torch"][1] == "9.9"
    assert "torch" in found.words()


def test_changed_answers_are_counted_item_by_item(report: EvalReport, tmp_path: Path) -> None:
    before = {f"r{at}": {"text": "x", "scores": {"json_valid": 1.0}} for at in range(12)}
    after = {key: ({"text": "y", "scores": {"json_valid": 0.0}} if at < 7 else row)
             for at, (key, row) in enumerate(before.items())}  # fmt: skip
    found = compare_with_release(report, report, (before, after), 0.02, None, "")
    assert found.num_answers_changed == 7
    change = next(change for change in found.changes if change.metric == "json_valid")
    assert (change.changed_items, change.p_value) == (7, pytest.approx(2 / 128))
    (tmp_path / "broken.jsonl").write_text(json.dumps({"id": 1}))
    assert read_answers(tmp_path / "broken.jsonl") is None


def test_nothing_measured_is_no_pass(report: EvalReport) -> None:
    now = report.model_copy(update={"comparisons": ()})
    assert compare_with_release(report, now, None, 0.02, None, "").verdict == "not_measured"
