"""The committed example files are what their README says, and the demo's rows can be made and checked again."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import sysconfig
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from halo_forge.data import check_file
from halo_forge.texts.final_answers import convention_of, final_number, without_annotations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
README = (EXAMPLES / "README.md").read_text()


def demo_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / "docstring_json.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docstring_json", EXAMPLES / "make_docstring_json.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_messy_rows_end_as_the_readme_says() -> None:
    report = check_file(str(EXAMPLES / "messy.jsonl"))
    table = re.findall(r"^\| (\d+) \| (\w+) \| ?(\w*) ?\|", README, re.M)
    assert [int(line) for line, _, _ in table] == list(range(1, report.read + 1))
    found = {row["line"]: (row["action"], row["code"]) for row in report.rows}
    assert {int(line): (action, code) for line, action, code in table if code} == found
    assert len({code for _, _, code in table if code}) >= 12
    assert (report.kept, report.fixed, report.dropped, report.usable) == (4, 2, 13, False)
    assert "example.org" not in json.dumps(report.to_dict())


def test_demo_rows_are_sound_and_diverse() -> None:
    rows = demo_rows()
    report = check_file(str(EXAMPLES / "docstring_json.jsonl"))
    assert report.read == report.kept == len(rows) == 600
    assert report.rows == ()
    answers = [json.loads(row["messages"][1]["content"]) for row in rows]
    assert max(Counter(answer["name"].casefold() for answer in answers).values()) == 1
    assert max(Counter(answer["summary"].casefold() for answer in answers).values()) == 1
    assert min(Counter(row["slices"]["kind"] for row in rows).values()) >= 100


def test_demo_answers_satisfy_the_schema_and_the_schema_is_strict() -> None:
    schema = json.loads((EXAMPLES / "docstring_json.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    answers = [row["messages"][1]["content"] for row in demo_rows()]
    for answer in answers:
        validator.validate(json.loads(answer))
        assert answer == json.dumps(json.loads(answer), separators=(",", ":"))
    sound = json.loads(answers[0])
    assert set(schema["required"]) == set(sound)
    for key in sound:
        assert not validator.is_valid({name: value for name, value in sound.items() if name != key})
        assert not validator.is_valid(sound | {key: None})
    assert not validator.is_valid(sound | {"more": 1})


def test_demo_answers_follow_from_the_question() -> None:
    """A second derivation, from the stub's text by Python's own parser."""
    import ast

    for row in demo_rows():
        question, answer = (message["content"] for message in row["messages"])
        node = ast.parse(question.split("\n\n", 1)[1]).body[0]
        assert isinstance(node, ast.FunctionDef)
        is_method = node.args.args[0].arg == "self"
        written = re.search(r"def \w+\((?:self(?:, )?)?(.*)\):\n", question)
        assert written is not None
        expected = {
            "name": node.name,
            "kind": "method" if is_method else "function",
            "args": re.split(r", (?=\w+(?:=|, |$))", written.group(1)),
            "summary": ast.get_docstring(node),
        }
        assert json.loads(answer) == expected
        assert list(json.loads(answer)) == list(expected)


def test_the_script_makes_these_rows(maker: ModuleType) -> None:
    version = re.search(r"CPython (3\.11\.\d+)", README)
    assert version is not None
    if platform.python_version() != version.group(1):
        pytest.skip(f"the rows come from CPython {version.group(1)}, this is {platform.python_version()}")
    assert maker.make_rows(Path(sysconfig.get_paths()["stdlib"])) == demo_rows()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, b=1):\n    'Do the thing now.'", [("f", "function", ("a", "b=1"))]),
        ("class C:\n    def g(self, a):\n        'Do the thing now.'", [("g", "method", ("a",))]),
        ("def f():\n    'Do the thing now.'", []),
        ("def f(a='\\n'):\n    'Do the thing now.'", []),
        ("def _f(a):\n    'Do the thing now.'", []),
        ("def f(*a):\n    'Do the thing now.'", []),
        ("def f(a):\n    'Two words'", []),
        ("def f(a):\n    'It says \"no\" to you.'", []),
        ("class _C:\n    def g(self):\n        'Do the thing now.'", []),
    ],
)
def test_which_stubs_are_taken(maker: ModuleType, source: str, expected: list[tuple[Any, ...]]) -> None:
    import ast

    found = maker.stubs("m", ast.parse(source))
    assert [(stub.name, stub.kind, stub.args) for stub in found] == expected


def test_demo_rows_are_short(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """About 60k tokens in all, so that the demo fits its five minutes."""
    lengths = [len(smollm2_tokenizer.apply_chat_template(row["messages"], return_dict=False)) for row in demo_rows()]
    assert max(lengths) <= 200
    assert 55_000 <= sum(lengths) <= 62_000


def test_the_word_problems_can_be_made_again_and_every_answer_follows_from_its_steps() -> None:
    """Each step's expression has the value that it is given, and the last one is the answer, in each convention."""
    spec = importlib.util.spec_from_file_location("word_problems", EXAMPLES / "reasoning" / "make_word_problems.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.make_rows()
    text = (EXAMPLES / "reasoning" / "word_problems.jsonl").read_text()
    assert "".join(json.dumps(row) + "\n" for row in rows) == text
    ends = Counter(convention_of(row["answer"]) for row in rows)
    assert ends == {"hashes": 168, "boxed": 156, "sentence": 156}
    assert len({row["question"] for row in rows}) == len(rows) == 480
    for row in rows:
        *steps, _ = without_annotations(row["answer"]).split("\n")
        for step in steps:
            told = re.fullmatch(r".*: ([\d.]+) ([-+x/]) ([\d.]+)(?: / (\d+))? = ([\d.]+?)\.", step)
            assert told is not None, step
            one, sign, two, by, value = told.groups()
            first, second = Fraction(one), Fraction(two)
            found = {"+": first + second, "-": first - second, "x": first * second, "/": first / second}[sign]
            assert found / int(by or 1) == Fraction(value), step
        number = final_number(row["answer"])
        assert number is not None
        assert number.value == Fraction(value)
