"""The answers of both models under every metric: scores per item, and what whole sets of answers are measured by.

Axes: N items, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from halo_forge.artifacts import Direction
from halo_forge.evaluate.call_scores import score_calls
from halo_forge.evaluate.code_scores import score_code
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.measure import Measured
from halo_forge.evaluate.metrics import METRICS, Answer, Given, Metric, OwnScorer, ScorerFailed, own_score
from halo_forge.evaluate.metrics.formats import REGEX_TIMEOUT_S
from halo_forge.evaluate.metrics.labels import label_of, one_hot_labels
from halo_forge.evaluate.metrics.lengths import num_words
from halo_forge.evaluate.metrics.transcripts import ERROR_RATES, units
from halo_forge.evaluate.self_consistency import score_votes
from halo_forge.texts.final_answers import marked_number

FloatArray = npt.NDArray[np.float64]
ItemKind = Literal["rate", "fraction", "count"]

Sides = tuple[list[Answer | None], list[Answer | None]]
Scores = dict[str, FloatArray]
"""metric -> score per item [N]; nan where an item says nothing about the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """All items under all metrics.

    inapplicable  metric -> why it is not measured on this holdout
    failed        metric -> what went wrong while it was measured
    unmeasured    metric -> why it applies and could not be measured here
    own           metric of a user's scorer -> which way is better
    words         of base, tuned and reference, [N] each; nan where an item has no answer
    units         metric of error rates -> words or characters of each reference [N]
    labels        of base, tuned and reference, one-hot [N, L] each, in answered items; None without labels
    """

    base: Scores
    tuned: Scores
    inapplicable: dict[str, str]
    failed: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    own: dict[str, Direction] = field(default_factory=dict)
    words: tuple[FloatArray, FloatArray, FloatArray]
    labels: tuple[FloatArray, FloatArray, FloatArray] | None = None
    units: dict[str, FloatArray] = field(default_factory=dict)

    def kind(self, name: str) -> ItemKind:
        """Of a metric made of items' scores. A user's scorer is what its scores are: yes/no, in [0, 1], or any."""
        if name in METRICS:
            kind = METRICS[name].kind
            assert kind in ("rate", "fraction", "count", "errors")
            if kind == "errors":  # of one item it is a number from 0 up
                return "count"
            return kind  # type: ignore[return-value]
        both = np.concatenate([self.base[name], self.tuned[name]])
        both = both[~np.isnan(both)]
        if np.isin(both, (0, 1)).all():
            return "rate"
        return "fraction" if ((both >= 0) & (both <= 1)).all() else "count"


def score_items(
    items: Sequence[Item],
    base: Measured,
    tuned: Measured,
    given: Given,
    own: Sequence[OwnScorer] = (),
    earlier: Sides = ([], []),
) -> Scored:
    """Every metric on every item that has an answer (likelihoods are in Measured). `earlier`: what both said in the
    turns before the last, as the items' tasks name them."""
    answered = [index for index, item in enumerate(items) if item.prompt is not None]
    references = [items[index].reference for index in answered]
    inapplicable, failed = {}, {}
    scores: tuple[Scores, Scores] = ({}, {})
    sides = (base.answers, tuned.answers)
    for name, metric in METRICS.items():
        reason = metric.inapplicable(references, given)
        if reason is not None:
            inapplicable[name] = reason
        elif metric.score is not None:
            _score_all(name, _of_table(metric, given), items, sides, scores, failed)
    for scorer in own:
        _score_all(scorer.name, _of_user(scorer), items, sides, scores, failed)
    code, votes = score_code(items, *sides), score_votes(items, base, tuned)
    calls = score_calls(items, (base.answers, earlier[0]), (tuned.answers, earlier[1]))
    return Scored(
        base=scores[0] | code.base | votes.base | calls.base,
        tuned=scores[1] | code.tuned | votes.tuned | calls.tuned,
        inapplicable=inapplicable | code.inapplicable | votes.inapplicable | calls.inapplicable,
        failed=failed,
        unmeasured=code.unmeasured,
        notes=(*code.notes, *calls.notes, *_unread_numbers(references, inapplicable)),
        own={scorer.name: scorer.direction for scorer in own},
        words=_words(items, sides),
        units=_units(items, given),
        labels=None if "macro_f1" in inapplicable else _labels([items[i] for i in answered], answered, sides),
    )


def _unread_numbers(references: Sequence[str], inapplicable: Mapping[str, str]) -> list[str]:
    """How many rows say nothing about numeric_match where it is measured."""
    num = sum(marked_number(reference) is None for reference in references)
    if not num or "numeric_match" in inapplicable:
        return []
    return [f"numeric_match: {num} of {len(references)} references have no final number that can be read"]


ScoreItem = Callable[[Answer, Item], float | None]


def _score_all(
    name: str,
    score: ScoreItem,
    items: Sequence[Item],
    sides: Sides,
    scores: tuple[Scores, Scores],
    failed: dict[str, str],
) -> None:
    """Both models' scores of one metric, or the reason why it failed. A scorer that fails on one item has no number:
    a mean over the others would be of another set for each model."""
    found = []
    try:
        for answers in sides:
            values = [
                None if answer is None else score(answer, item) for item, answer in zip(items, answers, strict=True)
            ]
            found.append(np.array([np.nan if value is None else value for value in values], dtype=np.float64))
    except ScorerFailed as error:
        failed[name] = str(error)
        return
    scores[0][name], scores[1][name] = found


def _of_table(metric: Metric, given: Given) -> ScoreItem:
    assert metric.score is not None
    scorer = metric.score

    def score(answer: Answer, item: Item) -> float | None:
        try:
            return scorer(answer, item.reference, given)
        except TimeoutError:
            raise ScorerFailed(
                f"evaluation.regex takes longer than {REGEX_TIMEOUT_S:g} s on the answer to item {item.id}"
            ) from None

    return score


def _of_user(scorer: OwnScorer) -> ScoreItem:
    return lambda answer, item: own_score(scorer, answer.text, item.reference, item.row)


def _words(items: Sequence[Item], sides: Sides) -> tuple[FloatArray, FloatArray, FloatArray]:
    base, tuned = (
        np.array([np.nan if answer is None else num_words(answer.text) for answer in answers], dtype=np.float64)
        for answers in sides
    )
    reference = np.array(
        [np.nan if item.prompt is None else num_words(item.reference) for item in items], dtype=np.float64
    )  # fmt: skip
    return base, tuned, reference


def _units(items: Sequence[Item], given: Given) -> dict[str, FloatArray]:
    if given.speech is None:
        return {}
    return {
        name: np.array([units(name, item.reference, given.speech) for item in items], dtype=np.float64)
        for name in ERROR_RATES
    }


def _labels(items: Sequence[Item], answered: Sequence[int], sides: Sides) -> tuple[FloatArray, FloatArray, FloatArray]:
    names = sorted({label_of(item.reference) for item in items})
    num_items = len(sides[0])
    texts = [
        *([answer.text for index in answered if (answer := answers[index]) is not None] for answers in sides),
        [item.reference for item in items],
    ]
    found = []
    for side in texts:
        whole = np.zeros((num_items, len(names)))
        whole[answered] = one_hot_labels(side, names)
        found.append(whole)
    return found[0], found[1], found[2]
