"""`pass_at_1` and `compile_rate`: the code in the answers under the rows' own tests, in the sandbox. Axes: N items.

One greedy answer a row, so pass@k for k = 1; more samples are drawn and counted by `halo-forge generate`. A row without
`tests` says nothing. Where the sandbox does not hold, both are not measured, with the reason: never 0.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from halo_forge.evaluate.call_turns import CALLS
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.metrics import Answer
from halo_forge.sandbox import Unavailable, Verdict, require_sandbox
from halo_forge.verify import RowTests, row_tests
from halo_forge.verify.code import compile_answer, run_row_tests

FloatArray = npt.NDArray[np.float64]
PASSES, COMPILES = "pass_at_1", "compile_rate"
NO_TESTS = "no answered row has `tests`"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeScores:
    """base, tuned: metric -> score per item [N], nan where there is none. `inapplicable`: no row has tests.
    `unmeasured`: there are tests, and they could not be run here."""

    base: dict[str, FloatArray] = field(default_factory=dict)
    tuned: dict[str, FloatArray] = field(default_factory=dict)
    inapplicable: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def score_code(items: Sequence[Item], base: Sequence[Answer | None], tuned: Sequence[Answer | None]) -> CodeScores:
    """Both models' answers to the rows that carry tests. Tests that cannot be run are a note, no failure."""
    problems: Counter[str] = Counter()
    tests = {
        index: _tests(item, problems)
        for index, item in enumerate(items)
        if item.prompt is not None and item.tests and set(item.tests) != {CALLS}
    }
    if not tests:
        return CodeScores(inapplicable=dict.fromkeys((PASSES, COMPILES), NO_TESTS))
    try:
        require_sandbox()
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers:
            found = [
                dict(zip(tests, workers.map(_judge, [answers[i] for i in tests], tests.values()), strict=True))
                for answers in (base, tuned)
            ]
    except Unavailable as error:
        reason = f"generated code is not run here: {error}"
        return CodeScores(unmeasured=dict.fromkeys((PASSES, COMPILES), reason))
    bad = {index: v[0].reason for side in found for index, v in side.items() if v and v[0].status == "bad_tests"}
    problems.update(f"their tests cannot be run ({reason})" for reason in bad.values())
    scores = [_scores(side, bad, len(items)) for side in found]
    return CodeScores(
        base=scores[0], tuned=scores[1], notes=tuple(f"{count} rows: {words}" for words, count in problems.items())
    )  # fmt: skip


def _tests(item: Item, problems: Counter[str]) -> RowTests | None:
    try:
        return row_tests(item.tests or {})
    except ValueError as error:
        problems[str(error)] += 1
        return None


def _judge(answer: Answer | None, tests: RowTests | None) -> tuple[Verdict, Verdict] | None:
    """(passes, compiles)."""
    if answer is None or tests is None:
        return None
    passes = run_row_tests(answer.text, tests)
    return passes, passes if passes.passed else compile_answer(answer.text, tests)


def _scores(
    side: dict[int, tuple[Verdict, Verdict] | None], bad: dict[int, str], num_items: int
) -> dict[str, FloatArray]:
    passes, compiles = np.full(num_items, np.nan), np.full(num_items, np.nan)
    for index, verdicts in side.items():
        if verdicts is None:
            continue
        compiles[index] = float(verdicts[1].passed)
        if index not in bad:
            passes[index] = float(verdicts[0].passed)
    return {PASSES: passes, COMPILES: compiles}
