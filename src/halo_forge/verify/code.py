"""Code in an answer: found, compiled and tested, in the sandbox and nowhere else."""

from __future__ import annotations

import re

from halo_forge.sandbox import Limits, Verdict, compiles, run_program, run_tests
from halo_forge.verify.row_tests import RowTests

_FENCE = re.compile(r"^ {0,3}```[ \t]*([\w+-]*)[^\n`]*\n(.*?)(?:^ {0,3}```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
PYTHON_NAMES = ("python", "py", "python3", "")
DEFAULT = Limits()


def code_of(answer: str) -> str:
    """The Python in an answer: its first fenced block marked python (or unmarked), else the whole text."""
    for language, content in _FENCE.findall(answer):
        if language.lower() in PYTHON_NAMES:
            return str(content)
    return answer


def whole_code(answer: str, tests: RowTests) -> str:
    """The code of an answer, behind the row's prefix where it only continues it."""
    code = code_of(answer)
    defined = tests.entry_points and re.search(rf"^(?:async )?def {tests.entry_points[0]}\b", code, re.MULTILINE)
    return code if not tests.prefix or defined else tests.prefix + code


def compile_answer(answer: str, tests: RowTests | None, limits: Limits = DEFAULT) -> Verdict:
    """Whether the code of an answer compiles (behind the row's prefix, where it has one)."""
    return compiles(code_of(answer) if tests is None else whole_code(answer, tests), limits)


def run_row_tests(answer: str, tests: RowTests, limits: Limits = DEFAULT) -> Verdict:
    """Whether the code of an answer passes the row's tests."""
    code = whole_code(answer, tests)
    if not tests.cases:
        return run_tests(code, tests.code, tests.entry_points, tests.setup, limits)
    program = f"{tests.setup}\n{code}" if tests.setup else code
    for number, (stdin, expected) in enumerate(tests.cases, 1):
        outcome = run_program(program, stdin, limits)
        if outcome.ending == "timed_out":
            return Verdict(status="timed_out", reason=f"case {number}: the time is up")
        if outcome.ending != "ended":
            return Verdict(status="limit", reason=f"case {number}: {outcome.ending.replace('_', ' ')}")
        if _lines(outcome.stdout.decode(errors="replace")) != _lines(expected):
            return Verdict(status="failed", reason=f"case {number}: another output")
    return Verdict(status="passed", reason=f"{len(tests.cases)} cases")


def _lines(text: str) -> list[str]:
    """Without white space at the ends of lines and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
