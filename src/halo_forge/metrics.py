"""Every metric that the evaluation can report: what it is, which way is better, what kind of number it is.

The one place where a metric is declared. It knows no torch and no scorer, so that the gate can check its rules and the
page can name its rows without the evaluation; `evaluate/metrics/table.py` says how each is computed, and a test holds
that both know the same names. Add a metric: a line here, a scorer there, a row in docs/evaluation-and-gate.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from halo_forge.artifacts import Direction

Kind = Literal["rate", "fraction", "count", "perplexity", "general", "ratio", "classes"]
"""rate: 0 or 1 per item. fraction: in [0, 1] per item. count: any real per item. perplexity: from likelihoods, not from
text. general: of the general texts, not of the holdout. ratio: all items' lengths over all items' lengths. classes: of
the table of labels, not the mean of items."""


@dataclass(frozen=True, slots=True)
class MetricFact:
    """label: as the page writes it. words: what it measures, as the docs and the gate say it."""

    label: str
    words: str
    direction: Direction
    kind: Kind

    @property
    def is_share(self) -> bool:
        """Whether the value lies between 0 and 1 and is shown in percent."""
        return self.kind in ("rate", "fraction", "classes")


METRIC_FACTS: dict[str, MetricFact] = {
    "perplexity": MetricFact(
        "Perplexity",
        "perplexity of the reference answers: exp of the mean negative log likelihood of their tokens",
        "lower", "perplexity",
    ),
    "exact_match": MetricFact(
        "Exact match", "share of answers equal to the reference but for white space at the ends", "higher", "rate",
    ),
    "token_f1": MetricFact(
        "Word overlap (F1)", "overlap of words with the reference (F1 after SQuAD's normalisation)",
        "higher", "fraction",
    ),
    "rouge_l": MetricFact(
        "Longest common sequence (ROUGE-L)", "F1 of the longest common subsequence of words with the reference",
        "higher", "fraction",
    ),
    "class_accuracy": MetricFact(
        "Right label", "share of answers that are the reference's label, where references are few labels",
        "higher", "rate",
    ),
    "macro_f1": MetricFact(
        "F1 over labels (macro)", "mean of the labels' F1, each label counting alike", "higher", "classes",
    ),
    "numeric_match": MetricFact(
        "Right final number", "share of answers with the reference's final number (after ####, else the last number)",
        "higher", "rate",
    ),
    "json_valid": MetricFact(
        "Valid JSON", "share of answers that are one JSON object or array", "higher", "rate",
    ),
    "json_match": MetricFact(
        "Same JSON value", "share of answers with the same JSON value as the reference", "higher", "rate",
    ),
    "schema_valid": MetricFact(
        "Fits the JSON schema", "share of answers that satisfy evaluation.json_schema", "higher", "rate",
    ),
    "schema_repaired": MetricFact(
        "Fits the JSON schema after repair",
        "share of answers that satisfy evaluation.json_schema once fence, prose around and trailing commas are off",
        "higher", "rate",
    ),
    "regex_match": MetricFact(
        "Matches the expression", "share of answers in which evaluation.regex is found", "higher", "rate",
    ),
    "pass_at_1": MetricFact(
        "Code passes its tests (pass@1)", "share of answers whose code passes the row's `tests`, run in the sandbox",
        "higher", "rate",
    ),
    "compile_rate": MetricFact(
        "Code compiles", "share of answers to rows with `tests` whose Python compiles", "higher", "rate",
    ),
    "markdown_valid": MetricFact(
        "Well-formed Markdown", "share of answers whose code fences, tables, links and bold marks are closed and whole",
        "higher", "rate",
    ),
    "stop_rate": MetricFact(
        "Ends by itself", "share of answers that ended by themselves before evaluation.max_new_tokens",
        "higher", "rate",
    ),
    "repetition": MetricFact(
        "Repeated four-word sequences", "share of an answer's four-word sequences that it has said before",
        "lower", "fraction",
    ),
    "conciseness": MetricFact(
        "Concise as the reference", "words of the reference over words of the answer, at most 1", "higher", "fraction",
    ),
    "answer_length": MetricFact(
        "Answer length in tokens", "mean length of the answers in tokens, without the stop token", "none", "count",
    ),
    "length_to_reference": MetricFact(
        "Length against the references", "words of all answers over words of their references; 1 is as long as asked",
        "none", "ratio",
    ),
    "length_to_base": MetricFact(
        "Length against the base's answers", "words of all tuned answers over words of all base answers",
        "none", "ratio",
    ),
    "general_perplexity": MetricFact(
        "Perplexity of general texts",
        "perplexity of 40 general texts that come with halo-forge: what is left of the base's abilities",
        "lower", "general",
    ),
    "general_kl": MetricFact(
        "Distance from the base on general texts (KL)",
        "KL(base || tuned) in nats per token of these texts: how far predictions moved that nobody asked to move",
        "none", "general",
    ),
}  # fmt: skip
"""Every metric there is, in the order of the report."""


def scorer_names(places: Sequence[str]) -> list[str]:
    """The metrics that evaluation.scorers add: of each `path/to/file.py:function`, the function."""
    return [place.rpartition(":")[2] for place in places]
