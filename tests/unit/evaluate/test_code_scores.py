"""pass@1 and compile rate of rows that carry tests: what counts, what does not, and no sandbox is no zero."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halo_forge.evaluate import code_scores
from halo_forge.evaluate.code_scores import NO_TESTS, score_code
from halo_forge.evaluate.compare import Comparing, compare_metrics
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.measure import Measured
from halo_forge.evaluate.metrics import Answer, Given
from halo_forge.evaluate.score import score_items
from halo_forge.evaluate.statistics import Resampling
from halo_forge.models.generate import Prompt
from halo_forge.sandbox import Unavailable

TESTS = {"entry_point": "f", "code": "assert f(2) == 4"}
RIGHT, WRONG, BROKEN = "def f(x):\n    return x * x", "def f(x):\n    return 0", "def f(x:"


def item(name: str, tests: dict[str, Any] | None) -> Item:
    return Item(id=name, example=None, prompt=Prompt((1,), frozenset({2})), reference="r", tests=tests)


def answers(*texts: str | None) -> list[Answer | None]:
    return [None if text is None else Answer(text, 3, True) for text in texts]


ITEMS = [
    item("a", TESTS), item("b", TESTS), item("c", None), item("d", {"entry_point": 3}),
    item("e", {**TESTS, "code": "import no_such_module"}), item("f", TESTS),
]  # fmt: skip


def test_each_row_counts_for_what_its_tests_say() -> None:
    scores = score_code(
        ITEMS, answers(WRONG, BROKEN, RIGHT, RIGHT, RIGHT, None), answers(RIGHT, WRONG, RIGHT, RIGHT, BROKEN, RIGHT)
    )
    nan = math.nan
    np.testing.assert_array_equal(scores.base["pass_at_1"], [0, 0, nan, nan, nan, nan])
    np.testing.assert_array_equal(scores.base["compile_rate"], [1, 0, nan, nan, 1, nan])
    np.testing.assert_array_equal(scores.tuned["pass_at_1"], [1, 0, nan, nan, nan, 1])
    np.testing.assert_array_equal(scores.tuned["compile_rate"], [1, 1, nan, nan, 0, 1])
    assert len(scores.notes) == 2
    assert any("no_such_module" in note for note in scores.notes)


def test_rows_without_tests_have_no_code_to_score() -> None:
    scores = score_code([item("a", None)], answers(RIGHT), answers(RIGHT))
    assert scores.inapplicable == {"pass_at_1": NO_TESTS, "compile_rate": NO_TESTS}
    assert not scores.base


def test_tests_of_a_row_that_was_not_asked_are_not_run() -> None:
    beyond = replace(item("a", TESTS), prompt=None)
    assert set(score_code([beyond], [None], [None]).inapplicable.values()) == {NO_TESTS}


def measured(*texts: str) -> Measured:
    num = len(texts)
    return Measured(
        nll_sums=np.ones(num), num_tokens=np.ones(num, dtype=np.int64), answers=answers(*texts), dtype="float32",
        cache=Path("none"),
    )  # fmt: skip


def compared(monkeypatch: pytest.MonkeyPatch, *, available: bool) -> dict[str, Any]:
    def missing() -> None:
        raise Unavailable("this kernel has no Landlock")

    if not available:
        monkeypatch.setattr(code_scores, "require_sandbox", missing)
    items = [item(str(number), TESTS) for number in range(4)]
    base, tuned = measured(WRONG, WRONG, BROKEN, RIGHT), measured(RIGHT, RIGHT, WRONG, RIGHT)
    scored = score_items(items, base, tuned, Given())
    how = Comparing(Resampling(0.95, 100, 0), {})
    return {row.metric: row for row in compare_metrics(scored, base, tuned, None, how, wanted=frozenset())}


def test_the_report_has_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = compared(monkeypatch, available=True)
    assert (rows["pass_at_1"].base.value, rows["pass_at_1"].tuned.value, rows["pass_at_1"].wins) == (0.25, 0.75, 2)
    assert (rows["compile_rate"].base.value, rows["compile_rate"].tuned.value) == (0.75, 1.0)


def test_without_a_sandbox_nothing_is_measured_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = compared(monkeypatch, available=False)
    for name in ("pass_at_1", "compile_rate"):
        assert (rows[name].tuned.status, rows[name].tuned.value) == ("not_measured", None)
        assert "no Landlock" in str(rows[name].tuned.note)
