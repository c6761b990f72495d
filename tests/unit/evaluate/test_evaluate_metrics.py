"""The metrics of text: against the rouge-score package, enumeration, and cases by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_forge.errors import UsageError
from halo_forge.evaluate.call_scores import CALL_METRICS
from halo_forge.evaluate.code_scores import COMPILES, PASSES
from halo_forge.evaluate.metrics import METRICS, Answer, Given, ScorerFailed, load_scorers, own_score
from halo_forge.evaluate.metrics.formats import compile_pattern, markdown_problems, regex_match
from halo_forge.evaluate.metrics.json_answers import repaired_json, schema_valid
from halo_forge.evaluate.metrics.labels import class_accuracy, macro_f1, one_hot_labels, why_no_labels
from halo_forge.evaluate.metrics.lengths import conciseness, repetition
from halo_forge.evaluate.metrics.overlap import longest_common_subsequence, rouge_l
from halo_forge.evaluate.self_consistency import METRIC as VOTES
from halo_forge.metrics import METRIC_FACTS, SUITE_METRICS
from halo_forge.texts.json_documents import parse_json
from halo_forge.texts.json_schema import load_schema

# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [  # by rouge-score 0.1.2, RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure
        ("The cat sat on the mat.", "a cat sat on a mat", 2 / 3),
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("don't stop, v1.2!", "do not stop v1 2", 0.6),
        ("one two three four", "four three two one", 0.25),
        ("snake_case is x", "snake case was x", 0.75),
        ("", "words", 0.0),
    ],
)
def test_rouge_l_is_that_of_the_package(text: str, reference: str, expected: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(expected)


def test_rouge_l_of_random_texts_is_that_of_the_package() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    package = rouge_scorer.RougeScorer(["rougeL"])
    generator, words = random.Random(0), ["a", "The", "x1", "is,", "don't", "(b)", "--", "N_o"]
    for _ in range(300):
        said, expected = (" ".join(generator.choices(words, k=generator.randint(1, 40))) for _ in range(2))
        if rouge_l(said, "") == 0 and rouge_l("", expected) == 0:  # both have words
            assert rouge_l(said, expected) == pytest.approx(package.score(expected, said)["rougeL"].fmeasure)


@pytest.mark.parametrize("seed", range(40))
def test_the_subsequence_in_bits_is_that_of_the_table(seed: int) -> None:
    generator = random.Random(seed)
    left, right = (generator.choices(range(2 + seed % 6), k=generator.randint(0, 80)) for _ in range(2))
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(left, right) == table[-1][-1]


def test_words_of_any_script_count() -> None:
    assert rouge_l("Привет, мир", "привет мир") == 1
    assert rouge_l("你好世界", "你好") == pytest.approx(2 / 3)
    assert rouge_l("", "!?") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all of these words differ", 0.0),
        ("", 0.0),
        ("yes yes yes", 0.0),  # three words have no sequence of four
        ("go on now then " * 25, 93 / 97),
        ("a b c d a b c d", 1 / 5),
        ("好" * 20, 16 / 17),
    ],
)
def test_repetition(text: str, expected: float) -> None:
    assert repetition(text) == pytest.approx(expected)


def test_conciseness() -> None:
    assert conciseness("Paris", "Paris") == 1
    assert conciseness("Paris", "It is Paris") == 1  # shorter is not more than whole
    assert conciseness("I think that it is Paris", "It is Paris") == 0.5
    assert conciseness("", "Paris") == 0
    assert conciseness("Paris", "!") is None


# ---------------------------------------------------------------------------------------------- labels


def by_hand(said: Sequence[str], expected: Sequence[str]) -> float:
    scores = []
    for label in sorted(set(expected)):
        hits = sum(a == b == label for a, b in zip(said, expected, strict=True))
        precision = hits / said.count(label) if label in said else 0.0  # type: ignore[attr-defined]
        recall = hits / expected.count(label)  # type: ignore[attr-defined]
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(scores) / len(scores)


def test_macro_f1_is_the_mean_of_the_labels_f1() -> None:
    generator = random.Random(1)
    for _ in range(50):
        expected = [*"abc", *generator.choices("abc", k=30)]
        said = [generator.choice([right, "a", "b", "c", "none"]) for right in expected]
        both = (one_hot_labels(texts, ["a", "b", "c"]) for texts in (said, expected))
        assert macro_f1(np.ones((1, 33)), *both)[0] == pytest.approx(by_hand(said, expected))


def test_a_label_is_read_without_its_wrapping_and_no_further() -> None:
    assert class_accuracy(" **Positive**.\n", "positive") == 1
    assert class_accuracy('"positive"', "Positive") == 1
    assert class_accuracy("It is positive", "positive") == 0


def test_few_short_texts_are_labels_and_others_are_not() -> None:
    assert why_no_labels(["yes", "No."] * 10) is None
    assert "1 distinct" in (why_no_labels(["yes"] * 20) or "")
    assert "at most 4" in (why_no_labels([f"answer {n}" for n in range(20)]) or "")
    assert "longer than 5 words" in (why_no_labels(["yes", "no, because there was never any of it"] * 10) or "")


# ---------------------------------------------------------------------------------------------- form


WELL_FORMED = """# Title

Some *text* with **bold**, `code with ** inside`, a [link](https://example.org/a_(b) "title") and 2**3.

| a | b |
|---|:-:|
| 1 | `x|y` |

```python
print("** [not](a link")
| no | table
```

---
* * *
1. one
"""


def test_well_formed_markdown_has_no_problem() -> None:
    assert markdown_problems(WELL_FORMED) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```python\nprint(1)", "fence"),
        ("````\n```\n", "fence"),
        ("| a | b |\n|---|---|\n| 1 |", "1 rows of a table"),
        ("| a | b |\n|---|---|---|\n", "1 rows of a table"),
        ("see [here](https://example.org", "link"),
        ("this is **bold", "bold"),
        ("a `code span\n\nnext`", "code span"),
        ("##Heading", "heading"),
    ],
)
def test_torn_markdown_is_named(text: str, told: str) -> None:
    problems = markdown_problems(text)
    assert problems
    assert told in problems[0]


def test_a_user_expression_is_searched_and_a_bad_one_refused() -> None:
    pattern = compile_pattern(r"^\[\d+\]$")
    assert (regex_match("[12]", pattern), regex_match("x [12]", pattern)) == (1, 0)
    with pytest.raises(UsageError, match="no regular expression"):
        compile_pattern("(")


def test_an_expression_that_backtracks_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halo_forge.evaluate.metrics.formats.REGEX_TIMEOUT_S", 0.05)
    with pytest.raises(TimeoutError):
        regex_match("a" * 5000 + "!", compile_pattern(r"^(a|a?)+$"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        ('Sure!\n```\n{"a": [1, 2,],}\n```\nDone.', '{"a": [1, 2]}'),
        ('Here it is: {"a": "}, ]"} I hope it helps {', '{"a": "}, ]"}'),
        ('{"a": [1, 2, ], }', '{"a": [1, 2 ] }'),
        ('{"a": ",]"}x', '{"a": ",]"}'),
    ],
)
def test_the_three_repairs(text: str, expected: str) -> None:
    assert repaired_json(text) == expected


@pytest.mark.parametrize("text", ['{"a": 1', "{'a': 1}", '{"a": 1 "b": 2}', "", "no JSON", '```json\n{"a": '])
def test_nothing_is_added_by_a_repair(tmp_path: Path, text: str) -> None:
    schema = tmp_path / "s.json"
    schema.write_text("{}")
    assert schema_valid(repaired_json(text), load_schema(str(schema), "here")) == 0


@given(st.text(alphabet='{}[]",:\\`\n a1', max_size=80))
def test_a_repair_of_any_text_ends_and_leaves_json_alone(text: str) -> None:
    repaired = repaired_json(text)
    assert repaired == text or (parse_json(repaired) is not None and len(repaired) < len(text))
    assert repaired_json(repaired) == repaired


def test_strict_and_repaired_are_two_numbers(tmp_path: Path) -> None:
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "object"}')
    tools = Given(validator=load_schema(str(schema), "here"))
    fenced = Answer('```json\n{"a": 1}\n```', 1, True)
    scores = {name: METRICS[name].score for name in ("schema_valid", "schema_repaired")}
    assert [score(fenced, "", tools) for score in scores.values() if score] == [0, 1]


def test_every_metric_is_declared_once() -> None:
    assert [*METRICS, *SUITE_METRICS] == list(METRIC_FACTS)
    for name, metric in METRICS.items():
        of_items = (PASSES, COMPILES, VOTES, *CALL_METRICS)
        of_texts = metric.kind not in ("perplexity", "general", "ratio", "classes") and name not in of_items
        assert (metric.score is not None) == of_texts, name


# ---------------------------------------------------------------------------------------------- the user's own


SCORERS = """
def polite(answer, reference, row):
    return None if row["slices"].get("domain") == "law" else "please" in answer

def loud(answer, reference, row):
    return answer.count("!")
loud.direction = "lower"

def broken(answer, reference, row):
    raise RuntimeError("no such brand\\nand more")

def endless(answer, reference, row):
    return float("inf")

def wordy(answer, reference, row):
    return "0.5"

def exact_match(answer, reference, row):
    return 1.0

sideways = lambda answer, reference, row: 1
sideways.direction = "up"
over_refusal_rate = judge_win_rate = exact_match
"""
ROW = {"id": "r7", "source": "rows.jsonl", "line": 3, "prompt": "Q", "slices": {}}


@pytest.fixture
def scorer_file(tmp_path: Path) -> Path:
    path = tmp_path / "brand.py"
    path.write_text(SCORERS)
    return path


def test_a_users_function_scores(scorer_file: Path) -> None:
    polite, loud = load_scorers([f"{scorer_file}:polite", f"{scorer_file}:loud"])
    assert (polite.name, polite.direction, loud.direction) == ("polite", "higher", "lower")
    assert own_score(polite, "please wait", "", ROW) == 1.0
    assert math.isnan(own_score(polite, "please wait", "", ROW | {"slices": {"domain": "law"}}))
    assert own_score(loud, "no!!", "", ROW) == 2.0


@pytest.mark.parametrize(("name", "told"), [
    ("broken", "brand.py:broken raised on item r7: RuntimeError: no such brand"),
    ("endless", "brand.py:endless gave 'inf' for item r7, which is no finite number"),
    ("wordy", "brand.py:wordy gave '0.5' for item r7"),
])  # fmt: skip
def test_a_failing_scorer_names_file_function_and_item(scorer_file: Path, name: str, told: str) -> None:
    (scorer,) = load_scorers([f"{scorer_file}:{name}"])
    with pytest.raises(ScorerFailed) as raised:
        own_score(scorer, "x", "", ROW)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "told"), [
    ("missing", "has no function missing"), ("exact_match", "there is a metric 'exact_match' already"),
    ("over_refusal_rate", "there is a metric 'over_refusal_rate' already"), ("judge_win_rate", "already"),
    ("sideways", "direction is 'up'"), ("not a name", "a Python file and a function"),
])  # fmt: skip
def test_a_scorer_that_cannot_be_used_is_refused_before_anything_runs(scorer_file: Path, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as raised:
        load_scorers([f"{scorer_file}:{name}"])
    assert str(scorer_file) in (raised.value.where or "")


def test_a_scorers_file_that_is_not_there_or_does_not_run(tmp_path: Path, scorer_file: Path) -> None:
    with pytest.raises(UsageError, match="file is not there"):
        load_scorers([f"{tmp_path / 'none.py'}:f"])
    with pytest.raises(UsageError, match="already"):
        load_scorers([f"{scorer_file}:polite"] * 2)
    scorer_file.write_text("import no_such_module_anywhere")
    with pytest.raises(UsageError, match="cannot be run: ModuleNotFoundError"):
        load_scorers([f"{scorer_file}:polite"])


def test_the_scorer_of_the_examples_scores_their_rows() -> None:
    examples = Path(__file__).resolve().parents[3] / "examples"
    (scorer,) = load_scorers([f"{examples / 'scorers.py'}:arguments_named"])
    row = json.loads((examples / "docstring_json.jsonl").read_text().splitlines()[0])
    reference = row["messages"][-1]["content"]
    assert own_score(scorer, reference, reference, ROW) == 1.0
    assert own_score(scorer, '{"args": ["dir"]}', reference, ROW) == 0.5
    assert own_score(scorer, "It has two arguments.", reference, ROW) == 0.0
