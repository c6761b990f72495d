"""Checks of instructions: each with an answer that passes and one that does not, and against IFEval's own checkers."""

from __future__ import annotations

from typing import Any

import pytest

from halo_forge.suites.instruction_checks import CHECKS, check_in_words, passes

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("max_words", {"count": 3}, "one two three", "one two three four"),
    ("min_words", {"count": 3}, "one two three", "one two"),
    ("sentences", {"count": 2}, "It rains. We stay in!", "It rains and 3.5 mm fall."),
    ("max_sentences", {"count": 1}, "It rains", "It rains. It pours."),
    ("paragraphs", {"count": 2}, "One.\n\nTwo.", "One.\nTwo."),
    ("bullets", {"count": 2}, "- one\n- two", "- one\n- two\n* three"),
    ("numbered", {"count": 2}, "1. one\n2) two", "1 one\n2 two"),
    ("lines", {"count": 2}, "one\n\ntwo\n", "one two"),
    ("highlights", {"count": 2}, "*one* and **two**", "* one\n* two"),
    ("placeholders", {"count": 2}, "Dear [name], on [date]", "Dear [name]"),
    ("contains", {"words": ["Sun", "sea"]}, "the SUN and the sea", "the sun"),
    ("excludes", {"words": ["hot"]}, "a hotel", "it is HOT."),
    ("word_at_least", {"word": "trust", "count": 2}, "Trust is trust.", "trusted trust"),
    ("letter_at_least", {"letter": "z", "count": 2}, "Zigzag", "zebra"),
    ("no_comma", {}, "one and two", "one, two"),
    ("lowercase", {}, "all small. 1!", "Not small"),
    ("uppercase", {}, "ALL LARGE. 1!", "NOT LARGe"),
    ("starts_with", {"phrase": "Dear reader"}, " dear reader, hello", "Hello dear reader"),
    ("ends_with", {"phrase": "That is all."}, 'So. "That is all."', "That is all. Or not"),
    ("quoted", {}, ' "yes" ', '"yes'),
    ("title", {}, "<<Sea>>\nwaves", "<< >>\nwaves"),
    ("postscript", {}, "Bye.\nP.S. Call me.", "Bye. PS Call me."),
    ("json", {}, '```json\n{"a": 1}\n```', '{"a": NaN}'),
    ("one_of", {"words": ["yes", "no"]}, "Yes.", "yes, I think"),
    ("language", {"code": "de"}, "Das ist der Wald und die Wiese.", "This is the wood and the meadow."),
]


def test_every_check_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_a_check_tells_good_from_bad(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert passes(good, name, arguments)
    assert not passes(bad, name, arguments)
    assert not passes("  \n", name, arguments), "no empty answer passes"
    assert check_in_words(name, arguments).startswith(name)


@pytest.mark.parametrize("name", list(CHECKS))
def test_no_answer_breaks_a_check(name: str) -> None:
    arguments = next(arguments for case, arguments, *_ in CASES if case == name)
    for text in ("[" * 3000, "\ud800", "*" * 3000, "\x00", "<<" * 2000, '"', "((((" * 500):
        assert passes(text, name, arguments) in (True, False)


TEXTS = [
    "The sea is blue, and the sky is blue too.\n\nP.S. Bring a towel, [name].",
    "- one\n- two\n- three",
    "* one\n* two",
    "**Bold** words and *slim* ones, <<A title>>",
    "all small letters here and not a comma in sight",
    "ALL LARGE LETTERS HERE. TRUST TRUST TRUST.",
    '"A quoted answer, with z, zz and zzz."',
    '{"name": "Ana", "age": 30}',
    '```json\n{"a": [1, 2]}\n```',
    "Dear Ana. Trust me: trust is all that we have. See you soon",
    "word " * 40,
    "- [date] and [place] * x",
    "That is all.",
]
SHARED: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("bullets", {"count": 3}, "detectable_format:number_bullet_lists", {"num_bullets": 3}),
    ("bullets", {"count": 2}, "detectable_format:number_bullet_lists", {"num_bullets": 2}),
    ("min_words", {"count": 20}, "length_constraints:number_words", {"num_words": 20, "relation": "at least"}),
    ("max_words", {"count": 19}, "length_constraints:number_words", {"num_words": 20, "relation": "less than"}),
    ("contains", {"words": ["blue", "sea"]}, "keywords:existence", {"keywords": ["blue", "sea"]}),
    ("excludes", {"words": ["blue", "all"]}, "keywords:forbidden_words", {"forbidden_words": ["blue", "all"]}),
    ("no_comma", {}, "punctuation:no_comma", {}),
    ("quoted", {}, "startend:quotation", {}),
    ("title", {}, "detectable_format:title", {}),
    ("placeholders", {"count": 1}, "detectable_content:number_placeholders", {"num_placeholders": 1}),
    ("placeholders", {"count": 2}, "detectable_content:number_placeholders", {"num_placeholders": 2}),
    ("highlights", {"count": 2}, "detectable_format:number_highlighted_sections", {"num_highlights": 2}),
    ("json", {}, "detectable_format:json_format", {}),
    ("ends_with", {"phrase": "That is all."}, "startend:end_checker", {"end_phrase": "That is all."}),
    ("letter_at_least", {"letter": "z", "count": 3}, "keywords:letter_frequency",
     {"letter": "z", "let_frequency": 3, "let_relation": "at least"}),
    ("postscript", {}, "detectable_content:postscript", {"postscript_marker": "P.S."}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "theirs", "given"), SHARED, ids=[f"{c[0]}-{n}" for n, c in enumerate(SHARED)]
)
def test_shared_checks_agree_with_ifeval(
    name: str, arguments: dict[str, Any], theirs: str, given: dict[str, Any]
) -> None:
    """IFEval's own checkers, as lm-eval carries them (it needs langdetect, immutabledict and nltk beside it)."""
    for module in ("langdetect", "immutabledict", "nltk"):
        pytest.importorskip(module)
    registry = pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry")
    checker = registry.INSTRUCTION_DICT[theirs](theirs)
    checker.build_description(**given)
    for text in TEXTS:
        assert passes(text, name, arguments) == bool(checker.check_following(text)), (text, theirs)
