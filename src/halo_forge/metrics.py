"""Every metric that the evaluation can report: what it is, which way is better, what kind of number it is.

The one place where a metric is declared. It knows no torch and no scorer, so that the gate can check its rules and the
page can name its rows without the evaluation; `evaluate/metrics/table.py` says how those of the holdout are computed,
`evaluate/suites/scoring.py` how those of suites are, and tests hold that all know the same names. Add a metric: a line
here, a scorer there, a row in docs/evaluation-and-gate.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from halo_forge.artifacts import Direction

Kind = Literal[
    "rate", "fraction", "count", "perplexity", "general", "ratio", "classes", "precision", "probability", "errors"
]  # fmt: skip
"""rate: 0 or 1 per item. fraction: in [0, 1] per item. count: any real per item. perplexity: from likelihoods, not from
text. general: of the general texts, not of the holdout. ratio: all items' lengths over all items' lengths. classes: of
the table of labels, not the mean of items. precision: a share of the items that the model itself picked out.
probability: of the probabilities of all items together. errors: all items' edits over all items' words."""


@dataclass(frozen=True, slots=True)
class MetricFact:
    """label: as the page writes it. words: what it measures, as the docs and the gate say it. of: what is measured."""

    label: str
    words: str
    direction: Direction
    kind: Kind
    of: Literal["holdout", "suites"] = "holdout"

    @property
    def is_share(self) -> bool:
        """Whether the value lies between 0 and 1 and is shown in percent."""
        return self.kind in ("rate", "fraction", "classes", "precision", "probability")


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
        "Right final number",
        "share of answers with the reference's final number, however it is written (the marked one, else the last)",
        "higher", "rate",
    ),
    "answer_format": MetricFact(
        "Ends in the answer convention",
        "share of answers that end by themselves and as their reference does (`#### 18`, `\\boxed{18}`, ...)",
        "higher", "rate",
    ),
    "self_consistency": MetricFact(
        "Right by majority of samples",
        "share of prompts whose most frequent number in evaluation.self_consistency samples is the reference's",
        "higher", "rate",
    ),
    "wer": MetricFact(
        "Word error rate (WER)",
        "wrong, missing and added words over the words that were said, after Whisper's normaliser", "lower", "errors",
    ),
    "cer": MetricFact(
        "Character error rate (CER)", "the same for characters", "lower", "errors",
    ),
    "wer_raw": MetricFact(
        "Word error rate as written", "word error rate with case and punctuation counted", "lower", "errors",
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
    "call_match": MetricFact(
        "Right tool calls",
        "share of rows wanting tool calls whose calls have the wanted names and arguments, as BFCL's checker compares",
        "higher", "rate",
    ),
    "call_exact": MetricFact(
        "Exactly the wanted tool calls",
        "share of rows wanting tool calls whose calls are the wanted ones with the same JSON values", "higher", "rate",
    ),
    "call_valid": MetricFact(
        "Tool calls fit their schemas",
        "share of rows wanting tool calls that are answered by calls of offered tools which fit their JSON Schemas",
        "higher", "rate",
    ),
    "irrelevance_accuracy": MetricFact(
        "No call where none is wanted",
        "share of rows offering tools and wanting no call that are answered without one", "higher", "rate",
    ),
    "multi_turn_match": MetricFact(
        "Every turn right",
        "share of rows with several turns and a tool call in which every turn calls what is wanted, or nothing",
        "higher", "rate",
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
    "harmful_refusal_rate": MetricFact(
        "Refuses harmful requests", "share of `harmful` prompts whose answer refuses", "higher", "rate", "suites",
    ),
    "jailbreak_refusal_rate": MetricFact(
        "Refuses disguised harmful requests", "share of `jailbreak` prompts whose answer refuses",
        "higher", "rate", "suites",
    ),
    "over_refusal_rate": MetricFact(
        "Refuses harmless requests", "share of `harmless` prompts whose answer refuses", "lower", "rate", "suites",
    ),
    "toxicity_rate": MetricFact(
        "Toxic answers", "share of `toxicity` prompts whose answer has a toxic sentence (lexical score, English)",
        "lower", "rate", "suites",
    ),
    "pii_leak_rate": MetricFact(
        "Leaks private data", "share of `pii` prompts whose answer tells what it was to keep",
        "lower", "rate", "suites",
    ),
    "policy_violation_rate": MetricFact(
        "Breaks a rule of the user", "share of `policy` prompts whose answer breaks one of their rules",
        "lower", "rate", "suites",
    ),
    "instruction_following": MetricFact(
        "Follows instructions", "share of `instruction` prompts whose answer passes every check",
        "higher", "rate", "suites",
    ),
    "instruction_checks": MetricFact(
        "Follows single instructions", "mean share of the checks of an `instruction` prompt that pass",
        "higher", "fraction", "suites",
    ),
    "abstention_recall": MetricFact(
        "Says so where it cannot know", "share of `unanswerable` prompts whose answer abstains",
        "higher", "rate", "suites",
    ),
    "abstention_precision": MetricFact(
        "Abstains only where it cannot know",
        "share of the abstaining answers, to `answerable` and `unanswerable` prompts, that are right to abstain",
        "higher", "precision", "suites",
    ),
    "answerable_accuracy": MetricFact(
        "Answers what it can know", "share of `answerable` prompts whose answer has an accepted answer in it",
        "higher", "rate", "suites",
    ),
    "choice_accuracy": MetricFact(
        "Likeliest choice is right", "share of `choice` prompts whose likeliest choice is the right one",
        "higher", "rate", "suites",
    ),
    "ece": MetricFact(
        "Calibration error (ECE)",
        "expected calibration error of the likeliest choice: 10 bins of equal width over its probability",
        "lower", "probability", "suites",
    ),
    "brier": MetricFact(
        "Brier score", "mean over `choice` prompts of the squared distance of the probabilities from the truth, 0 to 2",
        "lower", "count", "suites",
    ),
    "suite_concise_rate": MetricFact(
        "Concise answers", "share of `open` prompts answered in their `max_words` or fewer, and ended",
        "higher", "rate", "suites",
    ),
    "suite_stop_rate": MetricFact(
        "Suite answers that end", "share of `open` prompts whose answer ended by itself", "higher", "rate", "suites",
    ),
    "suite_repetition_rate": MetricFact(
        "Answers that repeat themselves", "share of `open` prompts whose answer says a third of its words again",
        "lower", "rate", "suites",
    ),
    "suite_answer_length": MetricFact(
        "Length of suite answers", "mean length in tokens of the answers to `open` prompts", "none", "count", "suites",
    ),
}  # fmt: skip
"""Every metric there is, in the order of the report; those of suites are of prompts of one kind (suites/suite.py)."""
SUITE_METRICS = {name: fact for name, fact in METRIC_FACTS.items() if fact.of == "suites"}
TREE_VARIABLE = "HALO_FORGE_BENCHMARKS"
"""Environment variable that names a local tree of benchmarks."""
BENCH_PREFIX = "bench."
"""How the metrics of benchmarks begin, and no others: a scorer's name is a Python name, which has no dot."""
JUDGED_METRIC = "judge_win_rate"
"""The judge's, a share; it stands in a file of its own beside the report."""


def scorer_names(places: Sequence[str]) -> list[str]:
    """The metrics that evaluation.scorers add: of each `path/to/file.py:function`, the function."""
    return [place.rpartition(":")[2] for place in places]
