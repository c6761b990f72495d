"""Contradictory rows and mixed style, over all rows at once."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from halo_forge.chat.records import Conversation, Message, Role, SourceRef, TextPart, ToolCall
from halo_forge.data.rules.consistency import FORMS, find_contradictions, style_features, style_report


def _conversation(*turns: tuple[Role, str]) -> Conversation:
    messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in turns)
    return Conversation(id="0", messages=messages, source=SourceRef(path="a.jsonl", line=1))


def _answer(text: str) -> int:
    return style_features(_conversation(("user", "Q"), ("assistant", text)))


def _keys(values: list[int]) -> np.ndarray:
    return np.array([[value, value * 7 + 1] for value in values], np.uint64)


def test_one_prompt_with_other_answers_is_a_contradiction() -> None:
    prompts = _keys([1, 2, 1, 3, 2, 1, 4])
    answers = _keys([5, 6, 8, 7, 6, 5, 9])
    groups = find_contradictions(prompts, answers, np.ones(7, bool))
    assert [group.tolist() for group in groups] == [[0, 2]]  # row 5 says what row 0 says; 1 and 4 agree


def test_rows_that_are_not_kept_contradict_nobody() -> None:
    prompts, answers = _keys([1, 1, 1]), _keys([2, 3, 4])
    assert [g.tolist() for g in find_contradictions(prompts, answers, np.array([False, True, True]))] == [[1, 2]]
    assert find_contradictions(prompts, answers, np.array([True, False, False])) == []
    assert find_contradictions(prompts[:0], answers[:0], np.zeros(0, bool)) == []


def test_both_halves_of_a_key_count() -> None:
    prompts = np.array([[1, 1], [1, 2], [2, 1], [1, 1]], np.uint64)
    answers = np.array([[1, 1], [9, 9], [8, 8], [1, 2]], np.uint64)
    assert [g.tolist() for g in find_contradictions(prompts, answers, np.ones(4, bool))] == [[0, 3]]


def test_contradictions_agree_with_a_plain_loop() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        num_rows = int(random.integers(1, 60))
        prompts, answers = random.integers(0, 12, num_rows), random.integers(0, 3, num_rows)
        kept = random.random(num_rows) < 0.8
        expected = []
        for prompt in dict.fromkeys(prompts[kept].tolist()):
            rows = [row for row in range(num_rows) if kept[row] and prompts[row] == prompt]
            others = [row for row in rows if answers[row] != answers[rows[0]]]
            expected += [[rows[0], *others]] if others else []
        found = find_contradictions(_keys(prompts.tolist()), _keys(answers.tolist()), kept)
        assert [group.tolist() for group in found] == expected


def test_a_million_rows_take_seconds() -> None:
    random = np.random.default_rng(0)
    prompts = random.integers(0, 2**63, (1_000_000, 2), dtype=np.uint64)
    answers = random.integers(0, 2**63, (1_000_000, 2), dtype=np.uint64)
    prompts[:5000] = prompts[-5000:]
    started = time.process_time()
    groups = find_contradictions(prompts, answers, np.ones(1_000_000, bool))
    assert time.process_time() - started < 8.0  # under 1 s on an idle core
    assert len(groups) == 5000
    assert all(first[0] < second[0] for first, second in pairwise(groups))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("It is Lima.", "plain text"), ('{"a": 1}', "JSON"), ("[1, 2]", "JSON"), ("```py\nx\n```", "a code block"),
        ("Use **this**.", "markdown"), ("- one\n- two", "a list"), ("1. one\n2. two", "a list"),
        ("<p>Hi</p>", "HTML or XML"), ("Text\n\n## Head\nmore", "markdown"),
    ],
)  # fmt: skip
def test_the_form_of_an_answer(text: str, form: str) -> None:
    assert FORMS[_answer(text) & 7] == form


def test_features_fit_32_bits_and_hold_the_length() -> None:
    lengths = [_answer("a" * size) >> 10 & 63 for size in (1, 10, 100, 1000, 10**5, 10**7)]
    assert lengths == sorted(set(lengths))
    loud = _conversation(("system", "x" * 999), ("user", "q"), ("assistant", "?" * 10**6))
    assert 0 <= style_features(loud) < 2**32


def test_features_of_odd_conversations() -> None:
    call = Message(role="assistant", parts=(ToolCall(name="f", arguments={}),))
    conversation = Conversation(id="0", messages=(call,), source=SourceRef(path="a", line=1))
    assert FORMS[style_features(conversation) & 7] == "a tool call"
    assert FORMS[style_features(_conversation(("document", "Once."))) & 7] == "plain text"
    assert FORMS[style_features(_conversation(("user", "only"))) & 7] == "no text"
    assert style_features(_conversation(("system", "\ud800"), ("assistant", "\ud800"))) > 0


def test_features_are_the_same_in_another_process() -> None:
    code = (
        "from halo_forge.chat.records import *\nfrom halo_forge.data.rules.consistency import style_features as f\n"
        "m=lambda r,t: Message(role=r,parts=(TextPart(text=t),))\n"
        "print(f(Conversation(id='0',messages=(m('system','Be brief.'),m('user','Q'),m('assistant','A.')),"
        "source=SourceRef(path='a',line=1))))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = style_features(_conversation(("system", "Be brief."), ("user", "Q"), ("assistant", "A.")))
    assert int(answer.stdout) == ours


def _report(features: list[int], num_tokens: list[int] | None = None) -> list[str]:
    rows = np.array(features, np.uint32)
    tokens = None if num_tokens is None else np.array(num_tokens)
    return list(
        style_report(rows, np.zeros(len(rows), np.int32), ["a.jsonl"], lambda row: f"a.jsonl:{row + 1}", tokens)
    )


def test_a_uniform_source_is_not_spoken_of() -> None:
    assert _report([_answer("The answer is a sentence of words.")] * 100, [10] * 100) == []


def test_a_few_rows_of_another_form_are_named_with_their_places() -> None:
    said = _report([_answer('{"answer": "json"}')] * 95 + [_answer("Plain text here.")] * 5)
    assert "a.jsonl: 95 of 100 answers are JSON, but 5 plain text (a.jsonl:96, a.jsonl:97, a.jsonl:98, ...)" in said


def test_an_even_mix_is_told_in_shares() -> None:
    said = _report([_answer("A sentence.")] * 50 + [_answer("no stop")] * 50)
    assert any(line.startswith("a.jsonl: answers end with mixed: 50 %") for line in said)


def test_varying_system_prompts_are_told() -> None:
    plain = _answer("A sentence.")
    some = style_features(_conversation(("system", "Be brief."), ("user", "Q"), ("assistant", "A sentence.")))
    other = style_features(_conversation(("system", "Be long."), ("user", "Q"), ("assistant", "A sentence.")))
    said = _report([plain] * 90 + [some] * 5 + [other] * 5)
    assert (
        "a.jsonl: 10 of 100 have a system prompt (a.jsonl:91, a.jsonl:92, a.jsonl:93, ...), the others have none"
        in said
    )
    assert "a.jsonl: 2 different system prompts (a.jsonl:91, a.jsonl:96)" in said


def test_lengths_and_their_balance_are_told() -> None:
    features = [_answer("A sentence of some thirty letters.")] * 98 + [_answer("word " * 2000 + ".")] * 2
    said = _report(features, [10] * 98 + [5000] * 2)
    assert any("2 of 100 answers are far longer than the usual" in line and "a.jsonl:99" in line for line in said)
    assert any("the longest 5 of 100 rows hold 9" in line for line in said)


def test_sources_are_told_apart_and_small_ones_left_out() -> None:
    features = np.array([_answer("A sentence.")] * 60 + [_answer('{"a": 1}')] * 60 + [_answer("x")] * 5, np.uint32)
    sources = np.array([0] * 60 + [1] * 60 + [2] * 5)
    assert style_report(features, sources, ["a", "b", "c"], str) == ()
