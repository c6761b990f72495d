"""What counts as wrong, and in which way an answer is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halo_forge.errors import UsageError
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.measure import Measured
from halo_forge.evaluate.metrics import Answer, Given
from halo_forge.evaluate.score import Scored, score_items
from halo_forge.failures.kinds import deciding_metric, failure_kind
from halo_forge.models.generate import Prompt

REFERENCE = '{"name":"index","kind":"method","args":["dir"]}'


@pytest.mark.parametrize(
    ("said", "stopped", "kind"),
    [
        ("  ", True, "nothing was said"),
        ("I'm sorry, but I can't help with that.", True, "refused"),
        ("I don't know what this is.", True, "says that it does not know"),
        ("one two three four " * 30, False, "repeats itself"),
        ('{"name":"index","ki', False, "cut off"),
        ('{"name":"index"', True, "not JSON"),
        (f"```json\n{REFERENCE}\n```", True, "JSON with something around it"),
        ("[1]", True, "another JSON value"),
        ('{"name":"index"}', True, "other JSON keys"),
        ('{"name":"index","kind":"function","args":["dir"]}', True, "wrong value of kind"),
        ('{"name":"x","kind":"function","args":["dir"]}', True, "wrong value of kind and name"),
        ('{"name":"x","kind":"y","args":[]}', True, "wrong value of several JSON keys"),
        ('{"name":"index","kind":"method","args":[true]}', True, "wrong value of args"),
        ('{"kind":"method","name":"index","args":["dir"]}', True, "equal JSON, written otherwise"),
    ],
)
def test_json_answers(said: str, stopped: bool, kind: str) -> None:
    assert failure_kind(item(REFERENCE), Answer(said, 5, stopped), "json_match") == kind


@pytest.mark.parametrize(
    ("reference", "said", "metric", "kind"),
    [
        ("#### 7", "#### 8", "numeric_match", "wrong number"),
        ("spam", "ham", "class_accuracy", "wrong label"),
        ("def f(): ...", "def g(): ...", "pass_at_1", "code that fails its tests"),
        ("short", "word " * 3 + " ".join(map(str, range(20))), "exact_match", "too long"),
        ("a text of ten words that is the reference here", "no", "token_f1", "too short"),
        ("seven", "eight", "exact_match", "another text"),
        ("seven", "eight", "mine", "fails mine"),
        ("I cannot help with that, sorry.", "I cannot help with this, sorry.", "exact_match", "another text"),
    ],
)
def test_other_answers(reference: str, said: str, metric: str, kind: str) -> None:
    assert failure_kind(item(reference), Answer(said, 5, True), metric) == kind


def item(reference: str, number: int = 0) -> Item:
    return Item(id=str(number), example=None, prompt=Prompt((1, 2), frozenset({3})), reference=reference)


def scored(references: list[str], answers: list[str]) -> tuple[list[Item], Scored]:
    items = [item(reference, number) for number, reference in enumerate(references)]
    said = Measured(
        np.full(len(items), np.nan), np.zeros(len(items), np.int64), [Answer(text, 3, True) for text in answers],
        "float32", Path(),
    )  # fmt: skip
    return items, score_items(items, said, said, Given())


def test_the_strictest_metric_that_applies_decides() -> None:
    found = deciding_metric(*scored([REFERENCE, "{}"], [REFERENCE, '{"a": 1}']))
    assert (found.metric, found.right_from, found.right.tolist()) == ("json_match", 1.0, [1, 0])
    found = deciding_metric(*scored(["#### 7", "#### 8"], ["it is 7", "it is 9"]))
    assert (found.metric, found.right.tolist()) == ("numeric_match", [1, 0])
    found = deciding_metric(*scored([f"answer number {n}" for n in range(8)], ["answer number 3"] * 8))
    assert (found.metric, found.why, found.right.sum()) == ("exact_match", "short answers", 1)
    long = [" ".join(f"word{n}-{k}" for k in range(20)) for n in range(4)]
    found = deciding_metric(*scored(long, [long[0], " ".join(long[1].split()[:9]), "no", "no"]))
    assert (found.metric, found.right_from, found.right.tolist()) == ("token_f1", 0.5, [1, 1, 0, 0])


def test_items_that_the_metric_says_nothing_about_are_neither_right_nor_wrong() -> None:
    found = deciding_metric(*scored([REFERENCE, "{}", "prose"], [REFERENCE, "x", "y"]))
    assert found.metric == "json_match"
    np.testing.assert_array_equal(found.right, [1, 0, np.nan])


def test_a_named_metric_decides_and_one_that_cannot_is_refused() -> None:
    items, scores = scored([REFERENCE, "{}"], ["[]", "x"])
    assert deciding_metric(items, scores, "json_valid").right.tolist() == [1, 0]
    for name in ("perplexity", "answer_length", "repetition", "no_such"):
        with pytest.raises(UsageError, match="whether they are right"):
            deciding_metric(items, scores, name)
