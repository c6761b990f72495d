"""How each metric of `halo_forge.metrics` is computed from one answer, and when it applies at all.

The scorers are pure functions of text; None means the item says nothing about this metric (its reference is not of
the metric's kind). Answers are taken as they are: no code fence is peeled off, no prefix is forgiven, because what
reads the answer in production will not do so either; what a repair would change stands under a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import regex
from jsonschema.protocols import Validator

from halo_forge.artifacts import Direction
from halo_forge.evaluate.metrics.formats import MARKS, markdown_valid, regex_match
from halo_forge.evaluate.metrics.json_answers import json_match, json_valid, repaired_json, schema_valid
from halo_forge.evaluate.metrics.labels import class_accuracy, why_no_labels
from halo_forge.evaluate.metrics.lengths import conciseness, repetition
from halo_forge.evaluate.metrics.overlap import answer_format, exact_match, numeric_match, rouge_l, token_f1
from halo_forge.evaluate.metrics.transcripts import ERROR_RATES, Normalising, error_rate
from halo_forge.metrics import METRIC_FACTS, Kind, MetricFact
from halo_forge.texts.final_answers import convention_of, marked_number
from halo_forge.texts.json_documents import is_json_document


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said. num_tokens is without the stop token; stopped is False when max_new_tokens cut it."""

    text: str
    num_tokens: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Given:
    """What the user gave to score by. speech: how transcripts are normalised, None where the model hears nothing."""

    validator: Validator | None = None
    pattern: regex.Pattern[str] | None = None
    speech: Normalising | None = None


Score = Callable[[Answer, str, Given], float | None]
Applies = Callable[[Sequence[str], Given], str | None]


@dataclass(frozen=True, slots=True)
class Metric:
    """score(answer, reference, given) -> float or None; None in its place for metrics not made from single answers.
    inapplicable(references, given) -> why the metric is left out, or None when it is measured."""

    fact: MetricFact
    score: Score | None
    inapplicable: Applies

    @property
    def direction(self) -> Direction:
        return self.fact.direction

    @property
    def kind(self) -> Kind:
        return self.fact.kind


def _always(references: Sequence[str], given: Given) -> str | None:
    return None


def _with_schema(references: Sequence[str], given: Given) -> str | None:
    return None if given.validator is not None else "no evaluation.json_schema is given"


def _with_pattern(references: Sequence[str], given: Given) -> str | None:
    return None if given.pattern is not None else "no evaluation.regex is given"


def _of_speech(references: Sequence[str], given: Given) -> str | None:
    return None if given.speech is not None else "the model hears no speech"


def _for_labels(references: Sequence[str], given: Given) -> str | None:
    return why_no_labels(references)


def _where_half(is_of_its_kind: Callable[[str], bool], words: str) -> Applies:
    """Applies where at least half of the references are of its kind."""

    def inapplicable(references: Sequence[str], given: Given) -> str | None:
        num = sum(map(is_of_its_kind, references))
        if references and 2 * num >= len(references):
            return None
        return f"{num} of {len(references)} references {words}; at least half must"

    return inapplicable


_json_references = _where_half(is_json_document, "are JSON objects or arrays")
_marked_references = _where_half(
    lambda reference: marked_number(reference) is not None,
    "mark a final number (`#### 18`, `\\boxed{18}`, `The answer is: 18`)",
)
_concluded_references = _where_half(
    lambda reference: convention_of(reference) is not None,
    "end in an answer convention (`#### 18`, `\\boxed{18}`, `The answer is: 18`)",
)
_markdown_references = _where_half(
    lambda reference: MARKS.search(reference) is not None and not is_json_document(reference), "have marks of Markdown"
)


def _schema(answer: Answer, reference: str, given: Given) -> float | None:
    return None if given.validator is None else schema_valid(answer.text, given.validator)


def _schema_repaired(answer: Answer, reference: str, given: Given) -> float | None:
    return None if given.validator is None else schema_valid(repaired_json(answer.text), given.validator)


def _regex(answer: Answer, reference: str, given: Given) -> float | None:
    return None if given.pattern is None else regex_match(answer.text, given.pattern)


def _errors(metric: str) -> Score:
    def score(answer: Answer, reference: str, given: Given) -> float | None:
        return None if given.speech is None else error_rate(metric, answer.text, reference, given.speech)

    return score


def _ended_format(answer: Answer, reference: str, given: Given) -> float | None:
    """An answer that was cut off has not ended, whatever its last characters are."""
    score = answer_format(answer.text, reference)
    return score if score is None or answer.stopped else 0.0


def _of_text(score: Callable[[str, str], float | None]) -> Score:
    return lambda answer, reference, _: score(answer.text, reference)


_SCORING: dict[str, tuple[Score | None, Applies]] = {
    "perplexity": (None, _always),
    "exact_match": (_of_text(exact_match), _always),
    "token_f1": (_of_text(token_f1), _always),
    "rouge_l": (_of_text(rouge_l), _always),
    "class_accuracy": (_of_text(class_accuracy), _for_labels),
    "macro_f1": (None, _for_labels),
    "numeric_match": (_of_text(numeric_match), _marked_references),
    "answer_format": (_ended_format, _concluded_references),
    "self_consistency": (None, _always),  # of several answers an item: self_consistency.py
    **{name: (_errors(name), _of_speech) for name in ERROR_RATES},
    "json_valid": (_of_text(json_valid), _json_references),
    "json_match": (_of_text(json_match), _json_references),
    "schema_valid": (_schema, _with_schema),
    "schema_repaired": (_schema_repaired, _with_schema),
    "regex_match": (_regex, _with_pattern),
    "pass_at_1": (None, _always),  # of items, not of texts: code_scores.py
    "compile_rate": (None, _always),
    "call_match": (None, _always),  # of turns and tools: call_scores.py
    "call_exact": (None, _always),
    "call_valid": (None, _always),
    "irrelevance_accuracy": (None, _always),
    "multi_turn_match": (None, _always),
    "markdown_valid": (lambda answer, reference, _: markdown_valid(answer.text), _markdown_references),
    "stop_rate": (lambda answer, reference, _: float(answer.stopped), _always),
    "repetition": (lambda answer, reference, _: repetition(answer.text), _always),
    "conciseness": (_of_text(conciseness), _always),
    "answer_length": (lambda answer, reference, _: float(answer.num_tokens), _always),
    "length_to_reference": (None, _always),
    "length_to_base": (None, _always),
    "general_perplexity": (None, _always),
    "general_kl": (None, _always),
}

METRICS: dict[str, Metric] = {
    name: Metric(fact, *_SCORING[name]) for name, fact in METRIC_FACTS.items() if fact.of == "holdout"
}
"""Every metric of the holdout, in the order of the report."""
