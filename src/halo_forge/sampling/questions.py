"""Where prompts come from, and which of them may not be used: held-out ones, and those asked twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from halo_forge.artifacts import PreparedData
from halo_forge.chat.records import Conversation
from halo_forge.chat.store import read_conversations
from halo_forge.config.schema import DataSection, RowFormat
from halo_forge.data.conversion.formats import convert, detect, detection_head
from halo_forge.data.conversion.identity import prompt_key
from halo_forge.data.files.rows import Row, shown_path
from halo_forge.data.files.sources import expand_paths, read_rows
from halo_forge.data.rules.answer_convention import with_instruction
from halo_forge.data.split import SplitName
from halo_forge.errors import DataError, RowError
from halo_forge.runs import Notify, RunDirectory, silent

MAX_UNREADABLE_ROWS = 100_000
NO_ANSWER = "-"
"""Stands in for the answer of a row that only asks, so that every reader can read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One prompt. `key` is blind to case, white space and system message; `answered` False: the row only asks."""

    conversation: Conversation
    key: str
    answered: bool = True


@dataclass(slots=True, kw_only=True)
class Asking:
    """Prompts to ask, in input order; read == asked + repeated + held out + in train + the sum of `unusable`."""

    prompts: list[Asked] = field(default_factory=list)
    read: int = 0
    repeated: int = 0
    in_holdout: int = 0
    in_train: int = 0
    unusable: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, Any]:
        return {
            "read": self.read, "asked": len(self.prompts), "repeated": self.repeated, "in_holdout": self.in_holdout,
            "in_train": self.in_train, "unusable": dict(self.unusable),
        }  # fmt: skip


def question_key(conversation: Conversation) -> str:
    """Equal for conversations that ask the same, whatever their system message."""
    return prompt_key([turn for turn in conversation.messages if turn.role != "system"])


def prompts_of_files(
    names: Sequence[str],
    row_format: RowFormat = "auto",
    system_prompt: str | None = None,
    notify: Notify = silent,
) -> Iterator[Asked | str]:
    """Each row of the files as a prompt, or the code of why it is none. Rows without an answer are prompts too
    (`prompt`, `question` or `instruction` alone; `messages` that end with the user's)."""
    for path in expand_paths(list(names)):
        rows = read_rows(path, lambda text: notify("note", {"text": text}))
        head = [_with_answer(row) for row in detection_head(rows, MAX_UNREADABLE_ROWS)]
        values = [row.value for row, _ in head if row.value is not None]
        if not values:
            raise DataError("the file holds no rows that can be read", where=shown_path(path))
        verdict = detect(shown_path(path), values, row_format)
        notify("note", {"text": verdict.render(shown_path(path))})
        for row, answered in chain(head, map(_with_answer, rows)):
            yield _asked(row, answered, verdict.format, system_prompt)


def _with_answer(row: Row) -> tuple[Row, bool]:
    """The row as its readers expect it, and whether it came with an answer."""
    value = row.value
    if value is None:
        return row, False
    messages = value.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        if messages[-1].get("role") not in ("user", "tool"):
            return row, True
        return replace(
            row, value={**value, "messages": [*messages, {"role": "assistant", "content": NO_ANSWER}]}
        ), False
    for asks, answer, others in (
        ("prompt", "completion", ("completion", "response", "chosen", "message_tree_id")),
        ("question", "answer", ("answer",)),
        ("instruction", "output", ("output", "response", "completion", "answer")),
    ):
        if asks in value and not any(value.get(name) for name in others):
            return replace(row, value={**value, answer: NO_ANSWER}), False
    return row, True


def _asked(row: Row, answered: bool, row_format: RowFormat, system_prompt: str | None) -> Asked | str:
    if row.problem is not None:
        return row.problem.code
    try:
        conversation = convert(row, row_format, system_prompt, mixed=True).conversation
    except RowError as problem:
        return problem.code
    except UnicodeEncodeError:
        return "lone_surrogate"
    if conversation.messages[0].role == "document":
        return "no_prompt"
    return Asked(conversation=conversation, key=question_key(conversation), answered=answered)


def asking_as_trained(asked: Asked | str, data: DataSection) -> Asked | str:
    """A prompt with the instruction that the run's own questions carry (data.final_answer). Its key stays."""
    if isinstance(asked, str) or data.final_answer == "keep" or not data.answer_instruction:
        return asked
    return replace(asked, conversation=with_instruction(asked.conversation, data.final_answer, asks_all=True))


def prompts_of_split(run: RunDirectory, prepared: PreparedData, split: SplitName) -> Iterator[Asked | str]:
    """Each row of a run's split as a prompt."""
    for conversation in split_rows(run, prepared, split):
        if conversation.messages[0].role == "document":
            yield "no_prompt"
        else:
            yield Asked(conversation=conversation, key=question_key(conversation))


def split_rows(run: RunDirectory, prepared: PreparedData, split: SplitName) -> list[Conversation]:
    report = prepared.splits.get(split)
    return read_conversations(run.file(report.conversations)) if report is not None and report.rows else []


def choose_prompts(
    found: Iterator[Asked | str], holdout: frozenset[str], train: frozenset[str] = frozenset(), limit: int | None = None
) -> Asking:
    """The prompts that may be asked: each once, none of those held out (or trained on). Raises DataError where none
    is left."""
    asking = Asking()
    seen: set[str] = set()
    for item in found:
        asking.read += 1
        if isinstance(item, str):
            asking.unusable[item] += 1
        elif item.key in holdout:
            asking.in_holdout += 1
        elif item.key in train:
            asking.in_train += 1
        elif item.key in seen:
            asking.repeated += 1
        else:
            seen.add(item.key)
            asking.prompts.append(item)
        if limit is not None and len(asking.prompts) == limit:
            break
    if not asking.prompts:
        counts = ", ".join(f"{name} {count}" for name, count in asking.counts().items() if count)
        raise DataError(
            "no prompt is left to ask", where=counts or "the input is empty",
            expected="prompts that are not held out", fix="give other prompts",
        )  # fmt: skip
    return asking
