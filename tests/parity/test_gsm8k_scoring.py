"""Our reading of answers against lm-eval's filters for GSM8K (0.4.13), on its own rows and what models make of them.

The two patterns are lm-eval's; where it is installed, they are taken from its task file. Rows: ../shared/data.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from pathlib import Path

import pytest

from halo_forge.evaluate.metrics.overlap import answer_format, numeric_match
from halo_forge.texts.final_answers import (
    CONVENTIONS,
    convention_of,
    final_number,
    with_convention,
    without_annotations,
)

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl"
pytestmark = pytest.mark.skipif(not DATA.is_file(), reason="../shared/data/gsm8k_train.jsonl is not here")
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


@pytest.fixture(scope="module")
def answers() -> list[str]:
    return [json.loads(line)["answer"] for line in DATA.read_text(encoding="utf-8").splitlines()]


def exact_match(said: str, reference: str) -> bool:
    """lm-eval's exact_match with the task's regexes_to_ignore and ignore_case."""
    for pattern in IGNORED:
        said, reference = pattern.sub("", said), pattern.sub("", reference)
    return said.lower() == reference.lower()


def strict(text: str, reference: str) -> bool:
    found = STRICT.findall(text)
    return bool(found) and exact_match(found[0].strip(), reference)


def flexible(text: str, reference: str) -> bool:
    found = FLEXIBLE.findall(text)
    return bool(found) and exact_match(next(filter(None, found[-1]), "").strip(), reference)


def test_the_patterns_are_those_of_lm_eval() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed")
    (place,) = importlib.util.find_spec("lm_eval").submodule_search_locations or []  # type: ignore[union-attr]
    task = (Path(place) / "tasks" / "gsm8k" / "gsm8k.yaml").read_text()
    patterns = [json.loads(line.split(": ", 1)[1]) for line in task.splitlines() if "regex_pattern" in line]
    assert patterns == [STRICT.pattern, FLEXIBLE.pattern]


def test_every_reference_is_read_ends_in_hashes_and_survives_every_convention(answers: list[str]) -> None:
    for answer in answers[::20]:
        assert convention_of(answer) == "hashes"
        number = final_number(answer)
        assert number is not None
        plain = without_annotations(answer)
        assert "<<" not in plain
        for convention in CONVENTIONS:
            rewritten = with_convention(plain, convention)
            assert (convention_of(rewritten), final_number(rewritten)) == (convention, number)
        assert with_convention(with_convention(plain, "boxed"), "hashes") == plain


def variants(answer: str, chance: random.Random) -> list[str]:
    """What a model may make of an answer: right, wrong, cut off, without the mark, with prose behind it."""
    body, _, number = answer.rpartition("\n#### ")
    other = str(chance.randint(1, 500))
    return [
        answer, f"{body}\n#### {other}", body, body[: len(body) // 2], f"{body}\nThe answer is {number}.",
        f"{body}\n#### ${number}.00" if "." not in number else answer, f"so it is {number}",
        f"so it is {other} in all.",
    ]  # fmt: skip


def test_numeric_match_agrees_with_flexible_extract(answers: list[str]) -> None:
    """On real rows and their variants; they part only where the two write the same number differently (72 and 72.00),
    which lm-eval compares as text."""
    chance = random.Random(0)
    num = agree = 0
    apart: list[tuple[str, str]] = []
    for reference in answers[::15]:
        for said in variants(reference, chance):
            num += 1
            ours, theirs = numeric_match(said, reference) == 1, flexible(said, reference)
            agree += ours == theirs
            if ours != theirs and ".00" not in said:
                apart.append((said[-60:], reference[-20:]))
    assert num == 3_992
    assert len(apart) <= 0.005 * num, apart[:5]
    assert agree > 0.8 * num


def test_strict_match_is_format_and_number(answers: list[str]) -> None:
    chance = random.Random(1)
    apart = [
        (said[-60:], reference[-20:])
        for reference in answers[::15]
        for said in variants(reference, chance)
        if ".00" not in said
        and strict(said, reference) != (answer_format(said, reference) == 1 and numeric_match(said, reference) == 1)
    ]
    assert apart == []
