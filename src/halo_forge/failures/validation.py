"""The validation rows of a run, and what its model says to them. The holdout cannot come in here: one function reads
rows, it reads the validation split, and it stops where one of its rows is held out too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from halo_forge.chat import Conversation, read_conversations
from halo_forge.data.conversion.identity import prompt_key
from halo_forge.errors import DataError
from halo_forge.evaluate import check_evaluation
from halo_forge.evaluate.answer_cache import shared_directory
from halo_forge.evaluate.items import Item, check_unchanged, conversations_to_items
from halo_forge.evaluate.measure import Measured, Measuring, measure_model
from halo_forge.evaluate.score import Scored, score_items
from halo_forge.evaluate.stage import memory_told_in_words
from halo_forge.evaluate.suites.stage import split_measured
from halo_forge.models.compute import recall_compute
from halo_forge.models.new_tokens import tokenizer_of
from halo_forge.pipeline import model_pair
from halo_forge.runs import Notify
from halo_forge.sampling.run import RunFacts

SPLIT = "validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Items [N] in the split's order, with what was asked as a person wrote it. notes: what could not be asked."""

    items: Sequence[Item]
    prompts: Sequence[str]
    systems: Sequence[str | None]
    measured: Measured
    scored: Scored
    notes: tuple[str, ...]
    is_subsampled: bool


def validation_rows(run: RunFacts) -> list[Conversation]:
    """Raises DataError where the run has no validation rows, where they changed since, or where one of them is also
    held out: what is shown and written against would then be what the result is measured on."""
    split = run.prepared.splits.get(SPLIT)
    where = str(run.directory.path)
    if split is None or not split.rows:
        raise DataError(
            "this run has no validation rows, so there is nothing to inspect", where=where,
            expected="data.validation_split above 0, or data.validation_file",
            fix="prepare and train again with --set data.validation_split=0.1",
        )  # fmt: skip
    check_unchanged(run.directory, split)
    rows = read_conversations(run.directory.file(split.conversations))
    ids, prompts = _held_out(run)
    for row in rows:
        if row.id in ids or prompt_key(row.messages) in prompts:
            raise DataError(
                "a row that would be inspected is held out", where=f"{row.source.path}:{row.source.line}",
                expected="validation rows that share no prompt with the holdout, which is only ever measured on",
                fix="prepare the data again in a new output directory",
            )  # fmt: skip
    return rows


def _held_out(run: RunFacts) -> tuple[frozenset[str], frozenset[str]]:
    """Hashes of what must not be seen here: of whole rows, and of their prompts."""
    split = run.prepared.splits.get("holdout")
    rows = read_conversations(run.directory.file(split.conversations)) if split is not None and split.rows else []
    return frozenset(row.id for row in rows), frozenset(prompt_key(row.messages) for row in rows)


def answer_validation(run: RunFacts, cache: Path, notify: Notify, check: Callable[[], None]) -> Answered:
    """The run's final model on its validation rows, under every metric of the run's evaluation. Answers are kept in
    `cache` as they come, by the hash of what was asked: after a kill nothing is asked twice."""
    rows = validation_rows(run)
    config, trained = run.config, run.trained
    _ = run.final_model  # raises where nothing was trained
    assert trained is not None
    given, own = check_evaluation(config)
    tokenizer = tokenizer_of(config.model, notify)
    asked = conversations_to_items(rows, config, run.prepared, tokenizer)
    compute = recall_compute(run.directory, config.training.bf16, notify)
    pair = model_pair(config, run.directory, trained, compute, notify)
    how = Measuring(
        settings=config.evaluation, precision=trained.precision, tokenizer=tokenizer, cache_directory=cache,
        shared_cache=shared_directory(otherwise=cache), notify=notify, check=check,
    )  # fmt: skip
    with memory_told_in_words(), pair.tuned() as model:
        whole = measure_model(model, "tuned", [*asked.items, *asked.earlier], how)
    pair.close()
    measured, turns = split_measured(whole, len(asked.items))
    # One model: it stands on both sides.
    scored = score_items(asked.items, measured, measured, given, own, (turns.answers, turns.answers))
    return Answered(
        items=asked.items,
        prompts=[_question(row) for row in rows],
        systems=[row.messages[0].text if row.messages[0].role == "system" else None for row in rows],
        measured=measured,
        scored=scored,
        notes=tuple(note.replace("holdout rows", "validation rows") for note in asked.notes) + scored.notes,
        is_subsampled=asked.is_subsampled,
    )


def _question(row: Conversation) -> str:
    """All turns before the last answer but the system message; several turns with their roles."""
    last = max((at for at, turn in enumerate(row.messages) if turn.role == "assistant"), default=len(row.messages))
    turns = [turn for turn in row.messages[:last] if turn.role != "system"]
    return turns[0].text if len(turns) == 1 else "\n".join(f"{turn.role}: {turn.text}" for turn in turns)
