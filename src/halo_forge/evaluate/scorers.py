"""Scores of one answer against its reference, and the table of all metrics.

The scorers are pure functions of text; None means the item says nothing about this metric (its reference is not of
the metric's kind). Answers are taken as they are: no code fence is peeled off, no prefix is forgiven, because what
reads the answer in production will not do so either.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from jsonschema.protocols import Validator

from halo_forge.artifacts import Direction
from halo_forge.evaluate.json_answers import canonical_json, is_json_document, schema_valid

Kind = Literal["rate", "fraction", "count", "perplexity", "general"]
"""rate: 0 or 1 per item. fraction: in [0, 1]. count: any real. perplexity: from likelihoods, not from text.
general: of the general texts, not of the holdout."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said. num_tokens is without the stop token; stopped is False when max_new_tokens cut it."""

    text: str
    num_tokens: int
    stopped: bool


# ------------------------------------------------------------------------------------------------ text x reference


def exact_match(text: str, reference: str) -> float:
    """1 when both strings are equal after stripping white space at the ends. JSON gets no leniency here: `json_match`
    compares values."""
    return float(text.strip() == reference.strip())


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words (multisets), after `words_of`. Two empty texts agree."""
    said, expected = Counter(words_of(text)), Counter(words_of(reference))
    if not said or not expected:
        return float(said == expected)
    overlap = (said & expected).total()
    return 2 * overlap / (said.total() + expected.total())


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_SPACES = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Han, written without spaces
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\s{_NO_SPACES}]+")


def words_of(text: str) -> list[str]:
    """Normalisation after SQuAD's: lower case, without punctuation (ASCII's and Unicode's) and English articles,
    split at white space. Beyond SQuAD, each kana or Han character counts as one word, as no spaces part them."""
    kept = "".join(
        character
        for character in text.lower()
        if character not in string.punctuation and not unicodedata.category(character).startswith("P")
    )
    return _WORD.findall(_ARTICLES.sub(" ", kept))


def json_match(text: str, reference: str) -> float | None:
    """1 when the answer parses to the same JSON value as the reference: key order, white space and 1 against 1.0 do
    not matter, list order and types do. None when the reference is not a JSON object or array."""
    if not is_json_document(reference):
        return None
    said = canonical_json(text)
    return float(said is not None and said == canonical_json(reference))


def json_valid(text: str, reference: str) -> float | None:
    """1 when the answer is one JSON object or array. None when the reference is not."""
    return float(is_json_document(text)) if is_json_document(reference) else None


_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_NUMBER_MARK = "####"


def numeric_match(text: str, reference: str) -> float | None:
    """GSM8K's rule: the number after the reference's last `####` against the number after the answer's last `####`,
    or the answer's last number where it has no `####`. Compared as decimals, so 72, 72.0 and 72.00 agree and
    thousands separators do not matter. None when the reference carries no such number."""
    expected = _marked_number(reference)
    if expected is None:
        return None
    said = _marked_number(text) if _NUMBER_MARK in text else _number(_NUMBER.findall(text)[-1:])
    return float(said == expected)


def _marked_number(text: str) -> Decimal | None:
    _, mark, after = text.rpartition(_NUMBER_MARK)
    return _number(_NUMBER.findall(after)[:1]) if mark else None


def _number(found: list[str]) -> Decimal | None:
    if not found:
        return None
    try:
        return Decimal(found[0].replace(",", ""))
    except InvalidOperation:
        return None


# ------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True, slots=True)
class Metric:
    """score(answer, reference, validator) -> float or None; None in its place for metrics not made from answers.
    inapplicable(references, has_schema) -> why the metric is left out, or None when it is measured."""

    words: str
    direction: Direction
    kind: Kind
    score: Callable[[Answer, str, Validator | None], float | None] | None
    inapplicable: Callable[[Sequence[str], bool], str | None]


def _always(references: Sequence[str], has_schema: bool) -> str | None:
    return None


def _with_schema(references: Sequence[str], has_schema: bool) -> str | None:
    return None if has_schema else "no evaluation.json_schema is given"


def _with_json_references(references: Sequence[str], has_schema: bool) -> str | None:
    num_json = sum(map(is_json_document, references))
    if references and 2 * num_json >= len(references):
        return None
    return f"{num_json} of {len(references)} references are JSON objects or arrays; at least half must be"


def _with_marked_references(references: Sequence[str], has_schema: bool) -> str | None:
    num_marked = sum(_marked_number(reference) is not None for reference in references)
    if references and 2 * num_marked >= len(references):
        return None
    return f"{num_marked} of {len(references)} references end in `#### number`; at least half must"


def _score_schema(answer: Answer, reference: str, validator: Validator | None) -> float | None:
    return None if validator is None else schema_valid(answer.text, validator)


METRICS: dict[str, Metric] = {
    "perplexity": Metric(
        "perplexity of the reference answers: exp of the mean negative log likelihood of their tokens",
        "lower", "perplexity", None, _always,
    ),
    "exact_match": Metric(
        "share of answers equal to the reference but for white space at the ends",
        "higher", "rate", lambda answer, reference, _: exact_match(answer.text, reference), _always,
    ),
    "token_f1": Metric(
        "overlap of words with the reference (F1 after SQuAD's normalisation)",
        "higher", "fraction", lambda answer, reference, _: token_f1(answer.text, reference), _always,
    ),
    "json_valid": Metric(
        "share of answers that are one JSON object or array",
        "higher", "rate", lambda answer, reference, _: json_valid(answer.text, reference), _with_json_references,
    ),
    "json_match": Metric(
        "share of answers with the same JSON value as the reference",
        "higher", "rate", lambda answer, reference, _: json_match(answer.text, reference), _with_json_references,
    ),
    "schema_valid": Metric(
        "share of answers that satisfy evaluation.json_schema",
        "higher", "rate", _score_schema, _with_schema,
    ),
    "numeric_match": Metric(
        "share of answers with the reference's final number (after ####, else the last number)",
        "higher", "rate", lambda answer, reference, _: numeric_match(answer.text, reference), _with_marked_references,
    ),
    "stop_rate": Metric(
        "share of answers that ended by themselves before evaluation.max_new_tokens",
        "higher", "rate", lambda answer, reference, _: float(answer.stopped), _always,
    ),
    "answer_length": Metric(
        "mean length of the answers in tokens, without the stop token",
        "none", "count", lambda answer, reference, _: float(answer.num_tokens), _always,
    ),
    "general_perplexity": Metric(
        "perplexity of 40 general texts that come with halo-forge: what is left of the base's abilities",
        "lower", "general", None, _always,
    ),
    "general_kl": Metric(
        "KL(base || tuned) in nats per token of these texts: how far predictions moved that nobody asked to move",
        "none", "general", None, _always,
    ),
}  # fmt: skip
"""Every metric there is, in the order of the report."""
