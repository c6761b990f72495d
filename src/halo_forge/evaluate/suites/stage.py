"""Suites beside the holdout: their items are asked with the holdout's, by the same models, into the same cache.

A question is one prompt to be answered, or, of a `choice` item, one example per choice whose likelihood is measured.
What a killed evaluation had answered is therefore never asked again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import Comparison, SuiteReport
from halo_forge.chat import ChatEncoder, Conversation, Message, SourceRef, TextPart, prompt_and_reference
from halo_forge.errors import RowError
from halo_forge.evaluate.compare import not_compared
from halo_forge.evaluate.items import Item as Question
from halo_forge.evaluate.items import decode
from halo_forge.evaluate.measure import Measured
from halo_forge.evaluate.statistics import Resampling
from halo_forge.evaluate.suites.calibration import choice_probabilities
from halo_forge.evaluate.suites.comparing import compare_judged
from halo_forge.evaluate.suites.scoring import Judged, judge_answer, judge_choice
from halo_forge.metrics import SUITE_METRICS
from halo_forge.models.generate import Prompt
from halo_forge.runs import RunDirectory, sha256_json, write_atomic
from halo_forge.suites.suite import Choice, Item, Suite

ANSWERS = "eval/suites"
MIN_GROUP_ITEMS = 5
"""A group of a suite has numbers of its own from so many items on."""
_DRAFT = "."


@dataclass(frozen=True, slots=True)
class Asked:
    """One item and where its questions stand: one place, or one per choice."""

    suite: str
    item: Item
    places: tuple[int, ...]
    prompt_text: str


@dataclass(frozen=True, slots=True)
class Questions:
    """questions [M] for `measure_model`; notes: items that this model's template cannot write."""

    suites: tuple[Suite, ...]
    questions: tuple[Question, ...]
    asked: tuple[Asked, ...]
    notes: tuple[str, ...]


def suite_questions(suites: Sequence[Suite], tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> Questions:
    """Every item of the suites in the words of this model's template. max_seq_length limits choices, which are read
    whole; answers end at the model's own context."""
    encoder = ChatEncoder(tokenizer, max_seq_length=max_seq_length, train_on="last_assistant", overlong="drop")
    questions: list[Question] = []
    asked: list[Asked] = []
    lost: Counter[str] = Counter()
    for suite in suites:
        for item in suite.items:
            try:
                of_item = list(_questions_of(suite, item, tokenizer, encoder))
            except RowError as error:
                lost[f"{suite.name} ({error.code})"] += 1
                continue
            places = tuple(range(len(questions), len(questions) + len(of_item)))
            asked.append(Asked(suite.name, item, places, of_item[0].prompt_text))
            questions += of_item
    notes = tuple(f"{count} items of the suite {name} could not be asked" for name, count in lost.items())
    return Questions(tuple(suites), tuple(questions), tuple(asked), notes)


def _questions_of(
    suite: Suite, item: Item, tokenizer: PreTrainedTokenizerBase, encoder: ChatEncoder
) -> Iterator[Question]:
    token_ids, _, stop_token_ids = prompt_and_reference(_conversation(suite, item, _DRAFT), tokenizer)
    text = decode(tokenizer, token_ids)
    name = f"{suite.name}/{item.id}"
    if not isinstance(item, Choice):
        prompt = Prompt(tuple(token_ids), frozenset(stop_token_ids))
        yield Question(id=name, example=None, prompt=prompt, prompt_text=text)
        return
    for choice in item.choices:
        example = encoder.encode(_conversation(suite, item, choice)).example
        yield Question(id=name, example=example, prompt=None, prompt_text=text)


def _conversation(suite: Suite, item: Item, answer: str) -> Conversation:
    said = [(turn.role, turn.content) for turn in item.turns] + [("assistant", answer)]
    messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in said)  # type: ignore[arg-type]
    return Conversation(id=sha256_json(said), messages=messages, source=SourceRef(path=suite.source, line=1))


def split_measured(measured: Measured, num_items: int) -> tuple[Measured, Measured]:
    """What was measured of the holdout's items, and of the questions that were asked after them."""
    parts = [
        replace(
            measured,
            nll_sums=measured.nll_sums[part],
            num_tokens=measured.num_tokens[part],
            answers=measured.answers[part],
            samples=measured.samples[part],
        )
        for part in (slice(None, num_items), slice(num_items, None))
    ]
    return parts[0], parts[1]


def judge(asked: Asked, said: Measured) -> Judged:
    if isinstance(asked.item, Choice):
        return judge_choice(asked.item, choice_probabilities(said.nll_sums[list(asked.places)].tolist()))
    answer = said.answers[asked.places[0]]
    if answer is None:
        raise RuntimeError(f"{asked.suite}/{asked.item.id} was asked and has no answer")
    return judge_answer(asked.item, answer)


@dataclass(frozen=True, slots=True)
class SuiteResults:
    """judged: every item with what base and tuned scored. comparisons: over all suites together, as the gate reads
    them. files: path -> content, to be written before the report that names them."""

    judged: tuple[tuple[Asked, Judged, Judged], ...]
    comparisons: tuple[Comparison, ...]
    reports: tuple[SuiteReport, ...]
    files: dict[str, str]


def compare_suites(
    questions: Questions, base: Measured, tuned: Measured, resampling: Resampling, wanted: Collection[str] = ()
) -> SuiteResults:
    """wanted: metrics that a gate rule reads; one that no item measures is there as not measured, with the reason."""
    judged = tuple((asked, judge(asked, base), judge(asked, tuned)) for asked in questions.asked)
    pooled = compare_judged([pair for _, *pair in judged], resampling)  # type: ignore[misc]
    there = {row.metric for row in pooled}
    pooled += [
        not_compared(name, "not_measured", "no item of evaluation.suites measures it")
        for name in SUITE_METRICS
        if name in wanted and name not in there
    ]
    reports, files = [], {}
    for suite in questions.suites:
        rows = [row for row in judged if row[0].suite == suite.name]
        path = f"{ANSWERS}/{suite.name}.jsonl"
        files[path] = "".join(_line(*row, base, tuned) for row in rows)
        reports.append(
            SuiteReport(
                name=suite.name,
                sha256=suite.sha256,
                num_items=len(suite.items),
                kinds=suite.kinds,
                failed_base=sum(row[1].failed for row in rows),
                failed_tuned=sum(row[2].failed for row in rows),
                answers=path,
                comparisons=tuple(_of_suite(rows, resampling)),
            )
        )
    return SuiteResults(judged, tuple(pooled), tuple(reports), files)


def write_suite_answers(run: RunDirectory, results: SuiteResults) -> None:
    """The answers of these suites and of no others."""
    for path, content in results.files.items():
        write_atomic(run.file(path), content)
    for path in run.file(ANSWERS).glob("*.jsonl"):
        if f"{ANSWERS}/{path.name}" not in results.files:
            path.unlink()


def _of_suite(rows: Sequence[tuple[Asked, Judged, Judged]], resampling: Resampling) -> Iterator[Comparison]:
    """The suite's own numbers, then those of its groups."""
    yield from compare_judged([(base, tuned) for _, base, tuned in rows], resampling)
    sizes = Counter((asked.item.kind, asked.item.group) for asked, _, _ in rows if asked.item.group)
    for (kind, group), size in sizes.items():
        if size >= MIN_GROUP_ITEMS:
            pairs = [(b, t) for asked, b, t in rows if (asked.item.kind, asked.item.group) == (kind, group)]
            yield from compare_judged(pairs, resampling, f"group={group}")


def _line(asked: Asked, base_judged: Judged, tuned_judged: Judged, base: Measured, tuned: Measured) -> str:
    item = asked.item
    line: dict[str, Any] = {
        "id": item.id, "kind": item.kind, "group": item.group, "language": item.language,
        "prompt": asked.prompt_text, "question": item.turns[-1].content,
        "base": _said(asked, base_judged, base), "tuned": _said(asked, tuned_judged, tuned),
    }  # fmt: skip
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: only the escaped form can carry it
        text = json.dumps(line, allow_nan=False)
    return text + "\n"


def _said(asked: Asked, judged: Judged, measured: Measured) -> dict[str, Any]:
    told = {"scores": judged.scores, "reason": judged.reason}
    answer = measured.answers[asked.places[0]]
    if answer is not None:
        return {"text": answer.text, "stopped": answer.stopped, "num_tokens": answer.num_tokens, **told}
    assert isinstance(asked.item, Choice)
    probabilities = choice_probabilities(measured.nll_sums[list(asked.places)].tolist()).tolist()
    return {"probabilities": dict(zip(asked.item.choices, probabilities, strict=True)), **told}
