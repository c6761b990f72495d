"""Verifiers: what passes, what fails, what says nothing, and what cannot be used."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from halo_forge.errors import DataError, UsageError
from halo_forge.sandbox import Limits, Unavailable
from halo_forge.verify import Question, make_verifiers, mean_pass_at_k, pass_at_k, row_tests, verifiers
from halo_forge.verify.code import code_of

ADD = {"entry_point": "add", "code": "assert add(1, 2) == 3"}
RIGHT = "def add(a, b):\n    return a + b"
HUMANEVAL = {
    "entry_point": "double", "prefix": "def double(x):\n    '''Twice.'''\n",
    "code": "def check(candidate):\n    assert candidate(2) == 4",
}  # fmt: skip
PROGRAM = {"cases": [{"stdin": "1 2", "stdout": "3\n"}, {"stdin": "5 6", "stdout": "11"}]}
SUM = "print(sum(map(int, input().split())))"


def judged(spec: str, answer: str, reference: str | None = None, tests: Any = None) -> str:
    question = Question(prompt="q", reference=reference, tests=tests, row={"messages": []})
    return make_verifiers([spec], Limits(wall_s=10.0, memory_bytes=256 << 20))[spec](answer, question).status


@pytest.mark.parametrize(
    ("spec", "answer", "reference", "tests", "status"),
    [
        ("exact", " a\n", "a", None, "passed"),
        ("exact", "b", "a", None, "failed"),
        ("exact", "b", None, None, "not_measured"),
        ("numeric", "so 1,234.0", "#### 1234", None, "passed"),
        ("numeric", "12 then #### 7 apples, 9", "work 3 #### 7", None, "passed"),
        ("numeric", "#### none 7", "7", None, "passed"),
        ("numeric", "nothing", "7", None, "failed"),
        ("numeric", "7", "nothing", None, "not_measured"),
        ("numeric", "-0.50", "-.5", None, "passed"),
        (r"regex:^\d+$", "42", None, None, "passed"),
        (r"regex:^\d+:\d+$", "4:2", None, None, "passed"),
        (r"regex:^\d+$", "x", None, None, "failed"),
        ("compile", "Here:\n```python\nx = 1\n```\nnot python", None, None, "passed"),
        ("compile", "def f(:", None, None, "failed"),
        ("compile", "    return 2 * x", None, HUMANEVAL, "passed"),
        ("unit-test", RIGHT, None, ADD, "passed"),
        ("unit-test", f"```py\n{RIGHT}\n```", None, ADD, "passed"),
        ("unit-test", "def add(a, b):\n    return 0", None, ADD, "failed"),
        ("unit-test", "", None, ADD, "failed"),
        ("unit-test", RIGHT, None, None, "not_measured"),
        ("unit-test", RIGHT, None, {"code": "x"}, "not_measured"),
        ("unit-test", RIGHT, None, {**ADD, "code": "import no_such_module"}, "not_measured"),
        ("unit-test", "    return 2 * x", None, HUMANEVAL, "passed"),
        ("unit-test", "def double(x):\n    return x + x", None, HUMANEVAL, "passed"),
        ("unit-test", "    return x", None, HUMANEVAL, "failed"),
        ("unit-test", SUM, None, PROGRAM, "passed"),
        ("unit-test", "print(3)", None, PROGRAM, "failed"),
        ("unit-test", "while True: pass", None, PROGRAM, "failed"),
    ],
)
def test_verifiers(spec: str, answer: str, reference: str | None, tests: Any, status: str) -> None:
    if answer.startswith("while"):
        question = Question(prompt="", tests=tests)
        verify = make_verifiers([spec], Limits(wall_s=0.5))[spec]
        assert verify(answer, question).status == status
        return
    assert judged(spec, answer, reference, tests) == status


def test_json_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}))
    spec = f"json-schema:{path}"
    assert judged(spec, '{"a": 1}') == "passed"
    for answer in ('{"a": "1"}', "{}", '```json\n{"a": 1}\n```', '{"a": NaN}', "[" * 100_000):
        assert judged(spec, answer) == "failed"
    path.write_text('{"$ref": "http://localhost:9/x"}')
    with pytest.raises(UsageError, match="which is not in it"):
        make_verifiers([spec])
    for text in ("{", '{"type": 3}'):
        path.write_text(text)
        with pytest.raises(UsageError):
            make_verifiers([spec])


def test_the_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def verify(prompt, answer, row):\n"
        "    return {'yes': True, 'half': 0.5, 'skip': None, 'much': 2, 'fail': 1 / (answer != 'fail')}[answer]"
    )
    verify = make_verifiers([f"python:{path}"])[f"python:{path}"]
    question = Question(prompt="")
    assert verify("yes", question).status == "passed"
    assert (verify("half", question).status, verify("half", question).score) == ("failed", 0.5)
    assert verify("skip", question).status == "not_measured"
    for answer in ("much", "fail"):
        with pytest.raises(DataError, match=r"returned 2|ZeroDivisionError"):
            verify(answer, question)
    for content in ("verify = 1", "1 / 0", "def f(:"):
        path.write_text(content)
        with pytest.raises(UsageError):
            make_verifiers([f"python:{path}"])


@pytest.mark.parametrize(
    "spec", ["", "unknown", "regex", "regex:(", "exact:x", "json-schema:none.json", "python:no.py"]
)
def test_what_cannot_be_used_is_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        make_verifiers([spec])


def test_code_is_not_run_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise Unavailable("this kernel has no Landlock")

    monkeypatch.setattr(verifiers, "require_sandbox", missing)
    for spec in ("compile", "unit-test"):
        with pytest.raises(UsageError, match="no Landlock"):
            make_verifiers([spec])
    assert make_verifiers(["numeric", "exact"])


def test_a_sandbox_that_breaks_later_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise Unavailable("no more processes")

    monkeypatch.setattr(verifiers, "run_row_tests", broken)
    assert judged("unit-test", RIGHT, tests=ADD) == "not_measured"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"entry_point": "f", "code": ""}, "code"),
        ({"entry_point": "f g", "code": "x"}, "not the name"),
        ({"entry_point": "class", "code": "x"}, "not the name"),
        ({"code": "x"}, "entry_point"),
        ({"entry_point": "f", "code": "x", "test": "y"}, "no key 'test'"),
        ({"cases": [{"stdin": "1"}]}, "case"),
        ({"cases": [{"stdin": 1, "stdout": "1"}]}, "stdin"),
        ({"cases": 3}, "list"),
        ({"cases": [{"stdout": ""}], "code": "x"}, "both"),
        ({"entry_point": "f", "code": "x", "setup": 3}, "setup"),
    ],
)
def test_tests_of_another_form_are_told_in_words(value: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        row_tests(value)


def test_the_first_python_block_is_the_code() -> None:
    assert code_of("a\n```json\n{}\n```\nb\n```python title\nx = 1\n```\n```python\ny\n```") == "x = 1\n"
    assert code_of("x = 1") == "x = 1"
    assert code_of("```\nx = 1") == "x = 1"


@pytest.mark.parametrize(("num_samples", "num_passed"), [(1, 0), (1, 1), (5, 2), (6, 5), (4, 0), (4, 4)])
def test_pass_at_k_is_the_share_of_draws_with_a_pass(num_samples: int, num_passed: int) -> None:
    """Against counting every draw of k of the n samples."""
    for k in range(1, num_samples + 1):
        draws = list(itertools.combinations(range(num_samples), k))
        share = sum(any(number < num_passed for number in draw) for draw in draws) / len(draws)
        assert pass_at_k(num_samples, num_passed, k) == pytest.approx(share, abs=1e-15)


def test_pass_at_k_of_many_and_of_none() -> None:
    assert pass_at_k(200, 10, 1) == 0.05
    assert mean_pass_at_k([(4, 4), (4, 0), (1, 1)], 2) == 0.5
    assert mean_pass_at_k([(1, 1)], 2) is None
    for wrong in ((3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*wrong)
