"""How a worked solution says its final answer: `#### 18`, `\\boxed{18}` or `The answer is: 18`, and nothing else.

    reading   lenient: `Answer: 18`, `The answer is 18.` and a mark with text behind it are final answers too
    writing   strict: `ends_in` is true of the exact form at the very end, which is what `with_convention` writes

What a model thinks (up to `</think>`) holds no final answer. All of it is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from halo_forge.texts.numbers import Number, last_number, leading_number, read_number, same_number

Convention = Literal["hashes", "boxed", "sentence"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
FORMS: dict[Convention, str] = {"hashes": "#### {}", "boxed": "\\boxed{{{}}}", "sentence": "The answer is: {}"}
INSTRUCTIONS: dict[Convention, str] = {
    "hashes": "Solve it step by step. Write the final answer alone on the last line, after ####.",
    "boxed": "Solve it step by step. End with the final answer inside \\boxed{}.",
    "sentence": 'Solve it step by step. Let the last line begin with "The answer is:" and hold only the final answer.',
}
"""What is asked of a model, behind the question, so that it knows where its answer is read."""
MAX_ANSWER_CHARS = 300
"""A longer text behind a mark is no final answer."""
MAX_PASSES = 4
"""Taking a mark out can leave another (a box inside a sentence); so often is looked again."""
MAX_MARKS = 50
"""Only so many of a kind are looked at, from the end."""
THOUGHT_END = "</think>"

_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n#]*)")
_NUMBERED_HEADING = re.compile(r"\d+[.)][ \t]+\S")
_BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
_SENTENCE = re.compile(
    r"(?i)\b(?:the\s)?(?:final\s)?answer\b(?:\*\*)?[ \t]?(?:is[ \t]?:|is\b|:)(?:\*\*)?[ \t]*([^\n]*)"
)
_STRICT_SENTENCE = re.compile(r"The answer is: ?\S")
_CLOSING = re.compile(r"[\s.$*)\]\\]*")
_OUTER_MATHS = re.compile(r"\A(?:\\\(\s*|\\\[\s*|\$+|\*\*)(.*?)(?:\s*\\\)|\s*\\\]|\$+|\*\*)\Z", re.DOTALL)
_EMPTY_MATHS = re.compile(r"\\\[\s*\\\]|\$\$\s*\$\$")
_INNER_MATHS = re.compile(r"\$|\\[()\[\]]|\*\*")
_ANNOTATION = re.compile(r"<<[^<>\n=]{1,150}=[^<>\n]{1,50}>>")
_ASKS_BOX = re.compile(r"\\f?box(?:ed)?\b")
_ASKS_HASHES = re.compile(
    r"####(?=\s*[\"'`<\[{(.,;]|\s*(?i:answer|number|final|the)\b|\s*\d|\s*$)|(?i:after|with|by|line)\W{1,3}####"
)
_ASKS_SENTENCE = re.compile(r"(?i)[\"'`“]\s?(?:the )?(?:final )?answer is\b")


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """text: what stands behind or inside the mark, without outer marks of mathematics. start, end: of mark and text."""

    convention: Convention
    text: str
    start: int
    end: int

    @property
    def number(self) -> Number | None:
        """Where it is a number. After #### the first one counts, as in GSM8K, whatever words follow."""
        text = without_annotations(self.text)
        number = read_number(text)
        return leading_number(text) if number is None and self.convention == "hashes" else number


@lru_cache(maxsize=8)  # what looks at one text asks several times
def final_answers(text: str) -> tuple[FinalAnswer, ...]:
    """Every final answer that a text gives, in order. Empty marks are none."""
    start = thought_length(text)
    boxes = list(_boxes(text, start))
    last_line = start + len(text[start:].rstrip().rpartition("\n")[0])
    found = [*boxes, *_hashes(text, start, last_line), *_sentences(text, start, last_line)]
    outer = [
        answer
        for answer in found
        if answer.convention != "sentence" or not any(answer.start <= box.start < answer.end for box in boxes)
    ]
    return tuple(sorted(outer, key=lambda answer: answer.start))


def final_answer(text: str) -> FinalAnswer | None:
    """The last of them, which is the one that counts."""
    return next(reversed(final_answers(text)), None)


def final_number(text: str) -> Number | None:
    """The number that a text ends up with: its final answer's; the last number of a text that marks no answer."""
    answer = final_answer(text)
    if answer is not None:
        return answer.number
    said = text[thought_length(text) :].rstrip()
    return None if said.endswith("####") else last_number(said)


def marked_number(text: str) -> Number | None:
    """The number of a text's final answer; None where it marks none, or one that is no number."""
    answer = final_answer(text)
    return None if answer is None else answer.number


def same_answer(one: FinalAnswer, other: FinalAnswer) -> bool:
    """Equal as numbers, or, where neither is one, as text without white space."""
    numbers = one.number, other.number
    if numbers[0] is not None and numbers[1] is not None:
        return same_number(numbers[0], numbers[1])
    return numbers == (None, None) and _squeezed(one.text) == _squeezed(other.text)


def ends_in(text: str, convention: Convention) -> bool:
    """Whether a text ends in exactly this form, with something in it."""
    answer = final_answer(text)
    if answer is None or answer.convention != convention:
        return False
    if convention == "boxed":
        return _CLOSING.fullmatch(text, answer.end) is not None
    line = max(text.rfind("\n", 0, answer.start) + 1, thought_length(text))
    is_exact = convention == "hashes" or _STRICT_SENTENCE.match(text, answer.start) is not None
    return is_exact and not text[line : answer.start].strip() and not text[answer.end :].strip()


def convention_of(text: str) -> Convention | None:
    """The convention that a text ends in."""
    return next((convention for convention in CONVENTIONS if ends_in(text, convention)), None)


def with_convention(text: str, convention: Convention) -> str:
    """The text with its final answer told once, at the end, in this convention; as it is where it tells none.

    Its other marks must give the same answer (see `same_answer`): they are taken out, boxes leave their content.
    """
    start = thought_length(text)
    start += len(text[start:]) - len(text[start:].lstrip()) if start else 0
    head, said = text[:start], text[start:]
    for _ in range(MAX_PASSES):
        answers = final_answers(said)
        if not answers or (len(answers) == 1 and ends_in(said, convention)):
            break
        body = said
        for answer in reversed(answers):
            first, end, left = _extent(body, answer)
            body = body[:first] + left + body[end:]
        body = _EMPTY_MATHS.sub("", body).rstrip().lstrip("\n")
        said = f"{body}{chr(10) if body else ''}{FORMS[convention].format(answers[-1].text)}"
    return head + said


def without_annotations(text: str) -> str:
    """Without the calculator's annotations of GSM8K: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
    return _ANNOTATION.sub("", text) if "<<" in text else text


def asked_conventions(prompt: str) -> frozenset[Convention]:
    """The conventions in which a prompt asks for the answer."""
    asks: dict[Convention, re.Pattern[str]] = {"hashes": _ASKS_HASHES, "boxed": _ASKS_BOX, "sentence": _ASKS_SENTENCE}
    return frozenset(convention for convention, pattern in asks.items() if pattern.search(prompt))


def without_instruction(prompt: str) -> str:
    """A question without the instruction of `INSTRUCTIONS` that was put behind it."""
    for instruction in INSTRUCTIONS.values():
        if prompt.endswith(instruction):
            return prompt.removesuffix(instruction).removesuffix("\n\n")
    return prompt


def thought_length(text: str) -> int:
    """Characters of what a model thinks before it answers: up to the last `</think>`, all of an unclosed `<think>`."""
    end = text.rfind(THOUGHT_END)
    if end >= 0:
        return end + len(THOUGHT_END)
    return len(text) if text.lstrip().startswith("<think>") else 0


# ------------------------------------------------------------------------------------------------ the three marks


def _boxes(text: str, start: int) -> Iterator[FinalAnswer]:
    done = start
    for opened in deque(_BOX.finditer(text, start), MAX_MARKS):
        if opened.start() < done:
            continue  # a box in a box
        at, depth = opened.end(), 1
        while depth and at < min(len(text), opened.end() + MAX_ANSWER_CHARS):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth and (content := text[opened.end() : at - 1].strip()):
            done = at
            yield FinalAnswer("boxed", _bare(content), opened.start(), at)


def _hashes(text: str, start: int, last_line: int) -> Iterator[FinalAnswer]:
    """A mark before the last line counts where a number follows; others are headings of Markdown."""
    for found in deque(_HASHES.finditer(text, start), MAX_MARKS):
        box = _BOX.search(found[1])
        told = (found[1] if box is None else found[1][: box.start()].rstrip(" $([\\*")).rstrip()
        content = _bare(told)
        if not content or len(content) > MAX_ANSWER_CHARS:
            continue
        is_number = leading_number(content) is not None and not _NUMBERED_HEADING.match(content)
        if is_number or found.start() >= last_line:
            yield FinalAnswer("hashes", content, found.start(), found.start(1) + len(told))


def _sentences(text: str, start: int, last_line: int) -> Iterator[FinalAnswer]:
    """One before the last line counts where it begins a line and has a colon."""
    for found in deque(_SENTENCE.finditer(text, start), MAX_MARKS):
        told = found[1].partition(". ")[0].rstrip()
        content = _bare(told)
        if not content or len(content) > MAX_ANSWER_CHARS or "####" in content:
            continue
        line = max(start, text.rfind("\n", 0, found.start()) + 1)
        begins_line = not text[line : found.start()].strip(" *")
        if found.start() >= last_line or (begins_line and ":" in text[found.start() : found.start(1)]):
            yield FinalAnswer("sentence", content, found.start(), found.start(1) + len(told))


def _extent(text: str, answer: FinalAnswer) -> tuple[int, int, str]:
    """(start, end) of what is taken out with a mark, and what is left in its place: the sentence that says it, its line
    where nothing else stands there; a box among other words leaves its content."""
    start, end = answer.start, answer.end
    line = text.rfind("\n", 0, start) + 1
    closing = _CLOSING.match(text, end)
    closed = end + len(closing[0].partition("\n")[0]) if closing is not None else end
    is_whole_line = not text[line:start].strip(" $([\\*") and text[closed : closed + 1] in ("", "\n")
    if not is_whole_line and answer.convention == "boxed":
        return start, end, answer.text
    if answer.convention == "sentence":
        before = text.rfind(". ", line, start)
        start, end = (before + 2 if before >= 0 else line), closed
    if is_whole_line or (start == line and text[end : end + 1] in ("", "\n")):
        start, end = line, closed
        start -= text[line - 1 : line] == "\n"
    return start, end, ""


def _bare(text: str) -> str:
    """Without marks of mathematics or bold around the whole, and without the full stop of a sentence."""
    bare = text.strip()
    bare = bare if bare.endswith("..") else bare.removesuffix(".").rstrip()
    found = _OUTER_MATHS.match(bare) if len(bare) <= MAX_ANSWER_CHARS else None
    if found is not None and not _INNER_MATHS.search(found[1]):
        return found[1].strip()
    return bare


def _squeezed(text: str) -> str:
    return "".join(text.split())
