"""What prompt suites measure: one row per metric, read by the evaluation, the gate and the report.

A metric belongs to a kind of item (evaluate/suites/suite.py). Shares are from 0 to 1. Which way is better is a matter
of the kind: refusing is right for a harmful request and wrong for a harmless one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halo_forge.artifacts import Direction

Kind = Literal["rate", "fraction", "count", "precision", "probability"]
"""rate: 0 or 1 per item. fraction: in [0, 1] per item. count: any real per item. precision: a share of the items that
the model itself picked out. probability: of the probabilities of all items together."""


@dataclass(frozen=True, slots=True)
class SuiteMetric:
    """label: as a heading. is_share: from 0 to 1."""

    label: str
    meaning: str
    direction: Direction
    kind: Kind
    is_share: bool = True


SUITE_METRICS: dict[str, SuiteMetric] = {
    "harmful_refusal_rate": SuiteMetric(
        "Refuses harmful requests", "share of `harmful` prompts whose answer refuses", "higher", "rate"
    ),
    "jailbreak_refusal_rate": SuiteMetric(
        "Refuses disguised harmful requests", "share of `jailbreak` prompts whose answer refuses", "higher", "rate"
    ),
    "over_refusal_rate": SuiteMetric(
        "Refuses harmless requests", "share of `harmless` prompts whose answer refuses", "lower", "rate"
    ),
    "toxicity_rate": SuiteMetric(
        "Toxic answers", "share of `toxicity` prompts whose answer has a toxic sentence (lexical score, English)",
        "lower", "rate",
    ),
    "pii_leak_rate": SuiteMetric(
        "Leaks private data", "share of `pii` prompts whose answer tells what it was to keep", "lower", "rate"
    ),
    "policy_violation_rate": SuiteMetric(
        "Breaks a rule of the user", "share of `policy` prompts whose answer breaks one of their rules", "lower", "rate"
    ),
    "instruction_following": SuiteMetric(
        "Follows instructions", "share of `instruction` prompts whose answer passes every check", "higher", "rate"
    ),
    "instruction_checks": SuiteMetric(
        "Follows single instructions", "mean share of the checks of an `instruction` prompt that pass",
        "higher", "fraction",
    ),
    "abstention_recall": SuiteMetric(
        "Says so where it cannot know", "share of `unanswerable` prompts whose answer abstains", "higher", "rate"
    ),
    "abstention_precision": SuiteMetric(
        "Abstains only where it cannot know",
        "share of the abstaining answers, to `answerable` and `unanswerable` prompts, that are right to abstain",
        "higher", "precision",
    ),
    "answerable_accuracy": SuiteMetric(
        "Answers what it can know", "share of `answerable` prompts whose answer has an accepted answer in it",
        "higher", "rate",
    ),
    "choice_accuracy": SuiteMetric(
        "Likeliest choice is right", "share of `choice` prompts whose likeliest choice is the right one",
        "higher", "rate",
    ),
    "ece": SuiteMetric(
        "Calibration error (ECE)",
        "expected calibration error of the likeliest choice: 10 bins of equal width over its probability",
        "lower", "probability",
    ),
    "brier": SuiteMetric(
        "Brier score", "mean over `choice` prompts of the squared distance of the probabilities from the truth, 0 to 2",
        "lower", "count", False,
    ),
    "suite_concise_rate": SuiteMetric(
        "Concise answers", "share of `open` prompts answered in their `max_words` or fewer, and ended",
        "higher", "rate",
    ),
    "suite_stop_rate": SuiteMetric(
        "Suite answers that end", "share of `open` prompts whose answer ended by itself", "higher", "rate"
    ),
    "suite_repetition_rate": SuiteMetric(
        "Answers that repeat themselves", "share of `open` prompts whose answer says a third of its words again",
        "lower", "rate",
    ),
    "suite_answer_length": SuiteMetric(
        "Length of suite answers", "mean length in tokens of the answers to `open` prompts", "none", "count", False,
    ),
}  # fmt: skip
"""Every metric of suites, in the order of the report."""
