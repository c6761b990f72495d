"""Verifiers by name: `compile`, `unit-test`, `regex:PATTERN`, `json-schema:FILE`, `numeric`, `exact`, `python:FILE`.

Each takes an answer and its question and says passed, failed or not measured, with the reason. Those that run code do
so in the sandbox; where that does not hold, they refuse before anything is generated.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from halo_forge.errors import DataError, UsageError
from halo_forge.sandbox import Limits, Unavailable, Verdict, require_sandbox
from halo_forge.texts.final_answers import final_number
from halo_forge.texts.numbers import same_number
from halo_forge.verify.code import compile_answer, run_row_tests
from halo_forge.verify.row_tests import RowTests, row_tests

NAMES = ("compile", "unit-test", "regex:PATTERN", "json-schema:FILE", "numeric", "exact", "python:FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What was asked. `reference` is None where the row has no answer; `tests` is the row's column of that name."""

    prompt: str
    reference: str | None = None
    tests: Mapping[str, Any] | None = None
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """`score` is from 0 to 1, and 1 exactly where it passed; None where nothing could be measured."""

    status: Literal["passed", "failed", "not_measured"]
    score: float | None = None
    reason: str = ""


Verifier = Callable[[str, Question], Judged]
PASSED, FAILED = Judged(status="passed", score=1.0), Judged(status="failed", score=0.0)


def make_verifiers(specs: Sequence[str], limits: Limits | None = None) -> dict[str, Verifier]:
    """Verifiers by their spec, in order. Raises UsageError for a name, pattern, schema or file that cannot be used, and
    where code would have to run and the sandbox does not hold on this machine."""
    made: dict[str, Verifier] = {}
    for spec in specs:
        name, _, argument = spec.partition(":")
        maker = _MAKERS.get(name)
        if maker is None or (name in _WITH_ARGUMENT) != bool(argument):
            raise UsageError(f"no verifier {spec!r}", where="--verifier", expected=", ".join(NAMES))
        made[spec] = maker(argument, limits or Limits())
    return made


def _outcome(passed: bool, reason: str = "") -> Judged:
    return PASSED if passed else Judged(status="failed", score=0.0, reason=reason)


def _not_measured(reason: str) -> Judged:
    return Judged(status="not_measured", reason=reason)


# ------------------------------------------------------------------------------------------------ text


def _regex(pattern: str, limits: Limits) -> Verifier:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"this is not a regular expression: {error}", where=f"--verifier regex:{pattern}") from None
    return lambda answer, question: _outcome(compiled.search(answer) is not None, "no match")


def _exact(argument: str, limits: Limits) -> Verifier:
    def verify(answer: str, question: Question) -> Judged:
        if question.reference is None:
            return _not_measured("the row has no answer to compare with")
        return _outcome(answer.strip() == question.reference.strip(), "another text")

    return verify


def _numeric(argument: str, limits: Limits) -> Verifier:
    """The marked final number of both, else the last number; equal however they are written (1/2 and 0.5)."""

    def verify(answer: str, question: Question) -> Judged:
        expected = final_number(question.reference or "")
        if expected is None:
            return _not_measured("the row's answer has no number")
        said = final_number(answer)
        return _outcome(
            said is not None and same_number(said, expected), "no number" if said is None else "another number"
        )

    return verify


def _json_schema(path: str, limits: Limits) -> Verifier:
    from halo_forge.texts.json_schema import load_schema, schema_error

    validator = load_schema(path, where=f"--verifier json-schema:{path}")

    def verify(answer: str, question: Question) -> Judged:
        problem = schema_error(answer, validator, where=path)
        return _outcome(problem is None, problem or "")

    return verify


# ------------------------------------------------------------------------------------------------ code


def _sandboxed(judge: Callable[[str, RowTests | None], Judged], needs_tests: bool) -> Verifier:
    try:
        require_sandbox()
    except Unavailable as error:
        raise UsageError(
            f"generated code is not run here: {error}", expected="Linux with Landlock and seccomp",
            fix="run this on such a machine, or leave out the verifiers compile and unit-test",
        ) from None  # fmt: skip

    def verify(answer: str, question: Question) -> Judged:
        try:
            tests = None if question.tests is None else row_tests(question.tests)
        except ValueError as error:
            return _not_measured(str(error))
        if tests is None and needs_tests:
            return _not_measured("the row has no tests")
        try:
            return judge(answer, tests)
        except Unavailable as error:
            return _not_measured(str(error))

    return verify


def _of_verdict(verdict: Verdict) -> Judged:
    if verdict.status == "bad_tests":
        return _not_measured(f"the row's tests cannot be run: {verdict.reason}")
    return _outcome(verdict.passed, verdict.reason or verdict.status)


def _compile(argument: str, limits: Limits) -> Verifier:
    return _sandboxed(lambda answer, tests: _of_verdict(compile_answer(answer, tests, limits)), needs_tests=False)


def _unit_test(argument: str, limits: Limits) -> Verifier:
    def judge(answer: str, tests: RowTests | None) -> Judged:
        assert tests is not None
        return _of_verdict(run_row_tests(answer, tests, limits))

    return _sandboxed(judge, needs_tests=True)


# ------------------------------------------------------------------------------------------------ the user's own


def _python(path: str, limits: Limits) -> Verifier:
    """`verify(prompt, answer, row)` of the user's file: True, False or a score from 0 to 1 (1 passes); None where the
    row says nothing. The file is the user's own program and is not sandboxed."""
    specification = importlib.util.spec_from_file_location("halo_forge_user_verifier", path)
    if not Path(path).is_file() or specification is None or specification.loader is None:
        raise UsageError("there is no such Python file", where=f"--verifier python:{path}")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"the verifier's file cannot be loaded: {type(error).__name__}: {error}", where=path) from None
    function = getattr(module, "verify", None)
    if not callable(function):
        raise UsageError("the file has no function `verify`", where=path, expected="def verify(prompt, answer, row)")

    def verify(answer: str, question: Question) -> Judged:
        try:
            found = function(question.prompt, answer, dict(question.row))
        except Exception as error:
            raise DataError(f"the verifier failed: {type(error).__name__}: {error}", where=path) from None
        if found is None:
            return _not_measured("the verifier says nothing about this row")
        score = float(found) if isinstance(found, bool | int | float) else math.nan
        if not 0 <= score <= 1:
            raise DataError(f"the verifier returned {found!r}", where=path, expected="a bool, None or a number in 0..1")
        return PASSED if score == 1 else Judged(status="failed", score=score, reason=f"score {score:g}")

    return verify


_MAKERS: dict[str, Callable[[str, Limits], Verifier]] = {
    "compile": _compile, "unit-test": _unit_test, "regex": _regex, "json-schema": _json_schema, "numeric": _numeric,
    "exact": _exact, "python": _python,
}  # fmt: skip
_WITH_ARGUMENT = frozenset({"regex", "json-schema", "python"})
