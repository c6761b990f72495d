"""Scores of text against text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from halo_forge.errors import UsageError
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.measure import Measured
from halo_forge.evaluate.metrics import METRICS, Answer, Given
from halo_forge.evaluate.metrics.json_answers import (
    json_match,
    json_valid,
    schema_valid,
)
from halo_forge.evaluate.metrics.overlap import exact_match, numeric_match, squad_words, token_f1
from halo_forge.evaluate.score import score_items
from halo_forge.models.generate import Prompt
from halo_forge.texts.json_documents import is_json_document
from halo_forge.texts.json_schema import load_schema


def test_exact_match_strips_only_the_ends() -> None:
    assert exact_match(" yes\n", "yes") == 1
    assert exact_match("y es", "yes") == 0
    assert exact_match('{"a": 1}', '{"a":1}') == 0


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("cat", "cat sat", 2 / 3),
        ("cat cat cat", "cat", 0.5),  # words are counted: saying it thrice is not free
        ("cat cat", "cat cat", 1.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("", "", 1.0),
        ("the", "", 1.0),
        ("你好世界", "你好", 2 / 3),
        ("«Paris»", "paris", 1.0),
    ],
)
def test_token_f1(text: str, reference: str, expected: float) -> None:
    assert token_f1(text, reference) == pytest.approx(expected)


def test_words_keep_what_is_no_article_or_punctuation() -> None:
    assert squad_words("A theatre, another: the an") == ["theatre", "another"]


@given(st.text(max_size=60), st.text(max_size=60))
def test_scores_of_any_text_stay_in_bounds(text: str, reference: str) -> None:
    assert 0 <= token_f1(text, reference) <= 1
    assert token_f1(text, reference) == token_f1(reference, text)
    assert exact_match(text, text) == token_f1(text, text) == 1
    assert json_valid(text, "{}") in (0, 1)
    assert numeric_match(text, "#### 3") in (0, 1)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ('{"b": [1, 2], "a": 1.0}', '{"a":1,"b":[1,2]}', 1),
        ('{"a": true}', '{"a": 1}', 0),
        ("[2, 1]", "[1, 2]", 0),
        ('{"a": 1} and more', '{"a": 1}', 0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 0),
        ("", "[]", 0),
        ("3", "3", None),
        ("anything", "no JSON", None),
    ],
)
def test_json_match(text: str, reference: str, expected: float | None) -> None:
    assert json_match(text, reference) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1]}', True),
        (" [] \n", True),
        ("NaN", False),
        ('{"a": NaN}', False),
        ("{'a': 1}", False),
        ("12", False),
        ("", False),
        ("[" * 100_000, False),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, False),
        ("[" + "9" * 5000 + "]", False),
    ],
)
def test_json_documents(text: str, expected: bool) -> None:
    assert is_json_document(text) is expected
    assert json_valid(text, "{}") == expected
    assert json_valid(text, "prose") is None


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("so 48 + 24 = 72", "x\n#### 72", 1),
        ("#### 72.0", "#### 72", 1),
        ("It costs $1,234.50 in all.", "#### 1234.5", 1),
        ("72 #### 71", "#### 72", 0),
        ("72, then nothing ####", "#### 72", 0),
        ("-5", "#### -5", 1),
        ("five", "#### 5", 0),
        ("#### 1 then #### 2", "#### 2", 1),
        ("2", "the answer is 2", 1),
        ("2", "two, that is 2", None),
        ("1/2", "so\n\\boxed{0.5}", 1),
        ("50%", "The answer is: 1/2", 1),
        ("2", "#### two", None),
    ],
)
def test_numeric_match(text: str, reference: str, expected: float | None) -> None:
    assert numeric_match(text, reference) == expected


def test_metrics_say_when_they_do_not_apply() -> None:
    json_rows, prose_rows = ['{"a": 1}', "[1]"], ["one", "two", "{}"]
    assert METRICS["json_valid"].inapplicable(json_rows, Given()) is None
    assert METRICS["json_valid"].inapplicable([*json_rows, "one", "two"], Given()) is None  # half is enough
    assert "1 of 3" in (METRICS["json_match"].inapplicable(prose_rows, Given()) or "")
    assert METRICS["json_valid"].inapplicable([], Given()) is not None
    assert "0 of 3" in (METRICS["numeric_match"].inapplicable(prose_rows, Given()) or "")
    assert METRICS["numeric_match"].inapplicable(["#### 1"], Given()) is None
    assert METRICS["schema_valid"].inapplicable(prose_rows, Given()) is not None
    assert METRICS["schema_valid"].inapplicable(prose_rows, Given(validator=Draft202012Validator({}))) is None


def test_length_and_stopping_come_from_the_answer() -> None:
    answer = Answer(text="x", num_tokens=7, stopped=False)
    scores = {name: METRICS[name].score for name in ("stop_rate", "answer_length")}
    assert scores["stop_rate"] is not None
    assert scores["answer_length"] is not None
    assert scores["stop_rate"](answer, "", Given()) == 0
    assert scores["answer_length"](answer, "", Given()) == 7


def write_schema(path: Path, schema: object) -> str:
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return str(path)


def test_answers_against_a_schema(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"$ref": "#/$defs/word"}},
        "$defs": {"word": {"type": "string"}},
    }
    validator = load_schema(write_schema(tmp_path / "schema.json", schema), "here")
    assert schema_valid('{"name": "f"}', validator) == 1
    assert schema_valid('{"name": 1}', validator) == 0
    assert schema_valid("not JSON", validator) == 0


def test_a_recursive_schema_and_a_deep_answer_are_no_crash(tmp_path: Path) -> None:
    validator = load_schema(write_schema(tmp_path / "s.json", {"type": "array", "items": {"$ref": "#"}}), "here")
    assert schema_valid("[" * 400 + "]" * 400, validator) in (0, 1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ({"type": "objekt"}, "not a valid JSON Schema"),
        ({"$ref": "https://example.invalid/other.json"}, "refers to https://example.invalid/other.json"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "refers to #/$defs/missing"),
    ],
)
def test_a_bad_schema_file_is_named(tmp_path: Path, content: object, told: str) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        write_schema(path, content)
    with pytest.raises(UsageError) as raised:
        load_schema(str(path), f"evaluation.json_schema: {path}")
    assert told in raised.value.what
    assert str(path) in (raised.value.where or "")


def test_a_reference_out_of_a_nested_schema_is_told_when_it_is_met(tmp_path: Path) -> None:
    nested = {"properties": {"a": {"$id": "https://example.invalid/a", "$ref": "other.json"}}}
    validator = load_schema(write_schema(tmp_path / "s.json", nested), "here")
    with pytest.raises(UsageError, match="not inside it"):
        schema_valid('{"a": 1}', validator)


@pytest.mark.parametrize(
    ("text", "stopped", "expected"),
    [("so\n#### 7", True, 1), ("so\n#### 7", False, 0), ("so it is 7", True, 0), ("\\boxed{7}", True, 0)],
)
def test_an_answer_that_was_cut_off_does_not_end_in_its_convention(text: str, stopped: bool, expected: int) -> None:
    score = METRICS["answer_format"].score
    assert score is not None
    assert score(Answer(text=text, num_tokens=7, stopped=stopped), "#### 5", Given()) == expected
    assert score(Answer(text=text, num_tokens=7, stopped=stopped), "five", Given()) is None


def test_the_rows_whose_reference_is_no_number_are_counted() -> None:
    items = [
        Item(id=str(at), example=None, prompt=Prompt((1,), frozenset()), reference=reference)
        for at, reference in enumerate(("#### 1", "#### one", "#### 3"))
    ]
    said = Measured(np.ones(3), np.ones(3, dtype=np.int64), [Answer("#### 3", 2, True)] * 3, "float32", Path("none"))
    scored = score_items(items, said, said, Given())
    assert scored.tuned["numeric_match"].tolist()[::2] == [0, 1]
    assert np.isnan(scored.tuned["numeric_match"][1])
    assert scored.notes == ("numeric_match: 1 of 3 references have no final number that can be read",)
