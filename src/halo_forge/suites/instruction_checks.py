"""Checks of instructions that a program can verify, after the idea of IFEval (Zhou et al. 2023); the code is our own.

A check is a pure function of the answer and its arguments. Counting follows IFEval where both have a check, so that
tests can hold them against it: a word is a run of letters, digits and underscores, keywords are found whatever the
case, a bullet is a line that begins with `* ` or `- `.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from halo_forge.texts.languages import LANGUAGES, seeming_language

_WORD = re.compile(r"\w+")
_BULLET = re.compile(r"^\s*(?:\*(?!\*)|-)\s*\S", re.M)
_NUMBERED = re.compile(r"^\s*\d{1,3}[.)]\s+\S", re.M)
_SENTENCE_END = re.compile(r"[.!?。！？]+(?=[\s\"'”)\]]|$)")
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$", re.I)
_TITLE = re.compile(r"<<[^\n]+>>")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_HIGHLIGHT = re.compile(r"(?<!\*)\*(?!\*)[^\n*]*[^\s*][^\n*]*\*(?!\*)|\*\*[^\n*]*[^\s*][^\n*]*\*\*")
_POSTSCRIPT = re.compile(r"^\s*p\.\s?s\..*$", re.I | re.M)


def num_words(text: str) -> int:
    return len(_WORD.findall(text))


def num_sentences(text: str) -> int:
    """Ends of sentences; a text without any is one sentence, no text none."""
    ends = len(_SENTENCE_END.findall(text.strip()))
    return max(ends, 1) if text.strip() else 0


def num_paragraphs(text: str) -> int:
    """Blocks of text with an empty line between them."""
    return len([block for block in re.split(r"\n\s*\n", text) if block.strip()])


def _times(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I))


def _is_json(text: str) -> bool:
    try:
        json.loads(_FENCE.sub("", text.strip()).strip(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _bare(text: str) -> str:
    return text.strip().strip("\"'").strip().rstrip(".").lower()


@dataclass(frozen=True, slots=True)
class Check:
    """passes(text, **arguments). arguments: name -> type of a value (int, str, or list for a list of texts)."""

    passes: Callable[..., bool]
    arguments: Mapping[str, type]
    meaning: str


_COUNT: Mapping[str, type] = {"count": int}
_WORDS: Mapping[str, type] = {"words": list}
_PHRASE: Mapping[str, type] = {"phrase": str}
CHECKS: dict[str, Check] = {
    "max_words": Check(lambda text, count: num_words(text) <= count, _COUNT, "at most so many words"),
    "min_words": Check(lambda text, count: num_words(text) >= count, _COUNT, "at least so many words"),
    "sentences": Check(lambda text, count: num_sentences(text) == count, _COUNT, "exactly so many sentences"),
    "max_sentences": Check(lambda text, count: num_sentences(text) <= count, _COUNT, "at most so many sentences"),
    "paragraphs": Check(
        lambda text, count: num_paragraphs(text) == count, _COUNT, "exactly so many paragraphs, empty lines between"
    ),
    "bullets": Check(lambda text, count: len(_BULLET.findall(text)) == count, _COUNT, "exactly so many bullet points"),
    "numbered": Check(
        lambda text, count: len(_NUMBERED.findall(text)) == count, _COUNT, "exactly so many numbered points"
    ),
    "lines": Check(
        lambda text, count: sum(bool(line.strip()) for line in text.splitlines()) == count, _COUNT,
        "exactly so many lines that are not empty",
    ),
    "highlights": Check(
        lambda text, count: len(_HIGHLIGHT.findall(text)) >= count, _COUNT, "at least so many *highlighted* parts"
    ),
    "placeholders": Check(
        lambda text, count: len(_PLACEHOLDER.findall(text)) >= count, _COUNT, "at least so many [placeholders]"
    ),
    "contains": Check(
        lambda text, words: all(word.lower() in text.lower() for word in words), _WORDS, "has all of these in it"
    ),
    "excludes": Check(
        lambda text, words: not any(_times(text, word) for word in words), _WORDS, "has none of these words in it"
    ),
    "word_at_least": Check(
        lambda text, word, count: _times(text, word) >= count, {"word": str, "count": int}, "a word so often or more"
    ),
    "letter_at_least": Check(
        lambda text, letter, count: text.lower().count(letter.lower()) >= count, {"letter": str, "count": int},
        "a letter so often or more",
    ),
    "no_comma": Check(lambda text: "," not in text, {}, "no comma"),
    "lowercase": Check(lambda text: text == text.lower() and bool(text.strip()), {}, "no capital letter"),
    "uppercase": Check(lambda text: text == text.upper() and bool(text.strip()), {}, "no small letter"),
    "starts_with": Check(
        lambda text, phrase: text.strip().lower().startswith(phrase.lower()), _PHRASE, "begins with this"
    ),
    "ends_with": Check(
        lambda text, phrase: text.strip().strip('"').lower().endswith(phrase.strip().lower()), _PHRASE,
        "ends with this",
    ),
    "quoted": Check(
        lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"', {},
        "the whole answer in double quotation marks",
    ),
    "title": Check(
        lambda text: any(match.strip("<>").strip() for match in _TITLE.findall(text)), {}, "a <<title>>"
    ),
    "postscript": Check(lambda text: _POSTSCRIPT.search(text) is not None, {}, "a line that begins with P.S."),
    "json": Check(_is_json, {}, "one JSON value, bare or in one code fence"),
    "one_of": Check(
        lambda text, words: _bare(text) in {word.lower().rstrip(".") for word in words}, _WORDS,
        "one of these and nothing else",
    ),
    "language": Check(
        lambda text, code: seeming_language(text) == code, {"code": str}, "written in this language"
    ),
}  # fmt: skip
"""Every check there is."""


def argument_problem(name: str, arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with a check's arguments, or None. `name` is a check of CHECKS."""
    wanted = CHECKS[name].arguments
    if set(arguments) != set(wanted):
        told = ", ".join(wanted) or "nothing"
        return f"the check {name} takes {told}, found {', '.join(arguments) or 'nothing'}"
    for key, kind in wanted.items():
        value = arguments[key]
        if kind is int and (type(value) is not int or value < 0):
            return f"{name}: {key} is a whole number from 0 up, found {value!r}"
        if kind is str and not (isinstance(value, str) and value):
            return f"{name}: {key} is a text, found {value!r}"
        if kind is list and not (isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)):
            return f"{name}: {key} is a list of texts, found {value!r}"
    if name == "language" and arguments["code"] not in LANGUAGES:
        return f"language: code is one of {', '.join(sorted(LANGUAGES))}, found {arguments['code']!r}"
    return None


def passes(text: str, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an answer passes; no answer that is empty passes anything."""
    return bool(text.strip()) and CHECKS[name].passes(text, **arguments)


def check_in_words(name: str, arguments: Mapping[str, Any]) -> str:
    """`max_words 50`, for reasons."""
    told = (", ".join(value) if isinstance(value, list) else str(value) for value in arguments.values())
    return " ".join((name, *told))
