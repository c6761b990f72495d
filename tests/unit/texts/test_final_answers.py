"""Final answers in the three conventions: read leniently, written exactly, rewritten without a trace of the others."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_forge.texts.final_answers import (
    CONVENTIONS,
    FORMS,
    INSTRUCTIONS,
    Convention,
    asked_conventions,
    convention_of,
    ends_in,
    final_answers,
    final_number,
    with_convention,
    without_annotations,
    without_instruction,
)

# text -> (convention and text of each answer found, the convention that it ends in, its final number)
READ: dict[str, tuple[list[tuple[str, str]], str | None, str | None]] = {
    "48+24 = 72\n#### 72": ([("hashes", "72")], "hashes", "72"),
    "x\n#### 110\nThe answer is: 110": ([("hashes", "110"), ("sentence", "110")], "sentence", "110"),
    "Thus $x = \\boxed{5}$.": ([("boxed", "5")], "boxed", "5"),
    "\\boxed{\\frac{1}{2}}": ([("boxed", "\\frac{1}{2}")], "boxed", "1/2"),
    "\\boxed{\\text{(A) }\\boxed{3}}": ([("boxed", "\\text{(A) }\\boxed{3}")], "boxed", None),
    "Therefore, the answer is 18.": ([("sentence", "18")], None, "18"),
    "The answer is: 18": ([("sentence", "18")], "sentence", "18"),
    "**Answer:** 18 apples": ([("sentence", "18 apples")], None, "18"),
    "The final answer is $\\boxed{18}$. I hope it is correct.": ([("boxed", "18")], None, "18"),
    "The answer is 5 at first.\nThen she eats one.\nThe answer is: 4": ([("sentence", "4")], "sentence", "4"),
    "#### 72\nI hope this helps!": ([("hashes", "72")], None, "72"),
    "#### Step 1\nadd 5\n#### Step 2\nget 7": ([], None, "7"),
    "#### 1. Add\nget 7": ([], None, "7"),
    "#### 5 \\boxed{6}": ([("hashes", "5"), ("boxed", "6")], "boxed", "6"),
    "#### $\\boxed{6}$": ([("boxed", "6")], "boxed", "6"),
    "#### x+1": ([("hashes", "x+1")], "hashes", None),
    "#### 18 dollars a day for 5 days": ([("hashes", "18 dollars a day for 5 days")], "hashes", "18"),
    "#### 3x": ([("hashes", "3x")], "hashes", None),
    "\\boxed{3x}": ([("boxed", "3x")], "boxed", None),
    "so 72 ####": ([], None, None),
    "\\boxed{} is 5": ([], None, "5"),
    "\\boxed{5": ([], None, "5"),
    "no number": ([], None, None),
    "": ([], None, None),
    "<think>maybe \\boxed{4}</think>It is 5.\n#### 5": ([("hashes", "5")], "hashes", "5"),
    "so \\boxed{4}</think>\n#### 5": ([("hashes", "5")], "hashes", "5"),
    "<think>cut off at #### 4": ([], None, None),
}


@pytest.mark.parametrize(("text", "expected"), READ.items())
def test_reading(text: str, expected: tuple[list[tuple[str, str]], str | None, str | None]) -> None:
    number = final_number(text)
    found = [(answer.convention, answer.text) for answer in final_answers(text)]
    assert (found, convention_of(text), None if number is None else str(number.value)) == expected


# what is rewritten -> into hashes
REWRITTEN = {
    "x\n#### 110\nThe answer is: 110": "x\n#### 110",
    "Thus $x = \\boxed{5}$.\nThe answer is: 5": "Thus $x = 5$.\n#### 5",
    "He has 18. Therefore, the answer is 18.": "He has 18.\n#### 18",
    "The final answer is: $\\boxed{18}$. I hope it is correct.": "I hope it is correct.\n#### 18",
    "**Answer:** 18": "#### 18",
    "#### 72\nI hope this helps!": "I hope this helps!\n#### 72",
    "<think>\\boxed{4}?</think>\nThe answer is: 5": "<think>\\boxed{4}?</think>\n#### 5",
    "First 3.\n\n\\[\n\\boxed{5}\n\\]": "First 3.\n#### 5",
    "no answer": "no answer",
    "4 = 4\n#### 4": "4 = 4\n#### 4",
}


@pytest.mark.parametrize(("text", "expected"), REWRITTEN.items())
def test_rewriting_into_hashes(text: str, expected: str) -> None:
    assert with_convention(text, "hashes") == expected


WORDS = st.text(alphabet="abc xyz.,=+123$\n", max_size=40)


ANSWERS = st.sampled_from(["18", "-3.5", "\\frac{1}{2}", "x^2+1", "18 apples"])


@given(WORDS, st.sampled_from(CONVENTIONS), ANSWERS, WORDS, st.sampled_from(CONVENTIONS))
def test_every_convention_becomes_every_other(
    before: str, given_in: Convention, answer: str, after: str, wanted: Convention
) -> None:
    text = f"{before}\n{FORMS[given_in].format(answer)}\n{after}"
    if not final_answers(text):  # words after it: in the middle of a text a mark counts where a number follows
        return
    rewritten = with_convention(text, wanted)
    assert ends_in(rewritten, wanted)
    assert [found.text for found in final_answers(rewritten)] == [final_answers(text)[-1].text]
    assert with_convention(rewritten, wanted) == rewritten, "a second pass changes nothing"


def test_annotations_of_a_calculator_are_taken_out() -> None:
    assert without_annotations("48/2 = <<48/2=24>>24 and $<<12/60=0.2>>0.2") == "48/2 = 24 and $0.2"
    assert without_annotations("1 << 2 >> 3, a<<b\n>>") == "1 << 2 >> 3, a<<b\n>>"


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_an_instruction_asks_for_its_own_convention_and_comes_off_again(convention: Convention) -> None:
    assert asked_conventions(INSTRUCTIONS[convention]) == {convention}
    assert without_instruction(f"Why?\n\n{INSTRUCTIONS[convention]}") == "Why?"
    assert without_instruction(f"Why? {INSTRUCTIONS[convention]} Now.").endswith("Now.")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Please reason step by step, and put your final answer within \\boxed{}.", {"boxed"}),
        ("Answer after '####'.", {"hashes"}),
        ('Finish with "The answer is".', {"sentence"}),
        ("#### Problem\nIf we know the answer to the above question is 36, what is X?", set()),
        ("What is 2+2? End with #### <number> or \\boxed{}", {"hashes", "boxed"}),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, expected: set[str]) -> None:
    assert asked_conventions(prompt) == expected


HOSTILE = (
    "\\boxed{", "#### 5 ", "the answer is ", "answer: 5\n", "####\n", "{", "<<", "</think>", "\\boxed{1}", " ", "\n",
    "answer is 1. ", "$", "<think>", "####", "answer:", "\\boxed{1}####2\nThe answer is: 3\n",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_no_time(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    start = time.process_time()
    final_number(text)
    for convention in CONVENTIONS:
        ends_in(text, convention)
    with_convention(text, "hashes")
    without_annotations(text)
    asked_conventions(text)
    assert time.process_time() - start < 4.0, "0.6 s where it was measured"
