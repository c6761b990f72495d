"""Holdout rows -> items: what is asked, what is expected, and the tokens whose likelihood counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import PreparedData, SplitReport
from halo_forge.chat import ChatEncoder, Conversation, Example, read_conversations
from halo_forge.chat.call_format import call_format_of
from halo_forge.config.schema import Config
from halo_forge.domains.media import Encoder, Media, question_of
from halo_forge.errors import DataError, RowError
from halo_forge.evaluate.call_turns import CallTask, EarlierTurn, call_task, with_prompts
from halo_forge.models.generate import Prompt
from halo_forge.runs import RunDirectory, sha256_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """example None: the row's answer cannot be measured. prompt None: no answer is generated (a plain text, a row
    without a question, or one beyond evaluation.max_prompts); then prompt_text and reference are empty.
    labels: the row's slices, its source among them; source and line: where the row was read; tests: what it verifies
    generated code by (verify/row_tests.py); task: which calls it wants in which turns, None without tools."""

    id: str
    example: Example | None
    prompt: Prompt | None
    prompt_text: str = ""
    reference: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    line: int = 0
    tests: Mapping[str, Any] | None = None
    task: CallTask | None = None

    @property
    def row(self) -> dict[str, Any]:
        """What a scorer is told of it."""
        return {
            "id": self.id, "source": self.source, "line": self.line, "prompt": self.prompt_text,
            "slices": dict(self.labels),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """The items; what could not be measured, in words; whether evaluation.max_prompts left rows unanswered; the turns
    before the last of rows with tools, which are answered beside the items."""

    items: list[Item]
    notes: list[str]
    is_subsampled: bool
    earlier: list[EarlierTurn] = field(default_factory=list)


def read_holdout(run: RunDirectory, prepared: PreparedData) -> list[Conversation]:
    """The frozen holdout rows. DataError when the file is gone or is no longer the one that was frozen."""
    split = prepared.splits.get("holdout")
    if split is None or not split.rows:
        return []
    check_unchanged(run, split)
    return read_conversations(run.file(split.conversations))


def check_unchanged(run: RunDirectory, split: SplitReport) -> None:
    path = run.file(split.conversations)
    found = sha256_file(path) if path.is_file() else "no such file"
    if found != split.sha256:
        raise DataError(
            "the holdout is not the one that was frozen when the data was prepared, so nothing measured on it would "
            f"be comparable: found {found}",
            where=str(path),
            expected=f"sha256 {split.sha256}",
            fix="restore the file, or prepare the data again in a new output directory",
        )


def conversations_to_items(
    conversations: Sequence[Conversation],
    config: Config,
    prepared: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    media: Media | None = None,
) -> Asked:
    """One item per row, in order.

    The likelihood counts the last answer of each row (all of a plain text). When evaluation.max_prompts cuts the rows
    that are answered, the ones with the smallest content hash are taken: the same ones in any order of the file.
    """
    lost: Counter[str] = Counter()
    if media is None:
        encoder = ChatEncoder(
            tokenizer,
            max_seq_length=prepared.max_seq_length,
            train_on="last_assistant",
            overlong="truncate" if config.data.overlong == "truncate" else "drop",
        )
        examples = [_example(conversation, encoder, lost) for conversation in conversations]
    else:
        examples = _examples_with_media(conversations, media.encoder(config.data, "last_assistant"), lost)
    asked = [index for index, row in enumerate(conversations) if row.messages[0].role != "document"]
    asked.sort(key=lambda index: conversations[index].id)
    chosen = set(asked[: config.evaluation.max_prompts])
    items: list[Item] = []
    earlier: list[EarlierTurn] = []
    for index, conversation in enumerate(conversations):
        question = _question(conversation, tokenizer, media, lost) if index in chosen else None
        prompt, reference = question or (None, "")
        task = _task(conversation, tokenizer, earlier, lost) if prompt is not None else None
        items.append(
            Item(
                id=conversation.id,
                example=examples[index],
                prompt=prompt,
                prompt_text=decode(tokenizer, list(prompt.token_ids)) if prompt is not None else "",
                reference=reference,
                labels=conversation.slices,
                source=conversation.source.path,
                line=conversation.source.line,
                tests=conversation.tests,
                task=task,
            )
        )
    notes = [f"{count} holdout rows could not be used: {code}" for code, count in lost.items()]
    return Asked(items, notes, len(chosen) < len(asked), earlier)


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Text of tokens exactly as they are: special tokens shown, spaces untouched."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _task(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    earlier: list[EarlierTurn],
    lost: Counter[str],
) -> CallTask | None:
    if not conversation.tools and not any(message.tool_calls for message in conversation.messages):
        return None
    task = call_task(conversation, call_format_of(tokenizer))
    return task and with_prompts(task, conversation, tokenizer, earlier, lost)


def _example(conversation: Conversation, encoder: ChatEncoder, lost: Counter[str]) -> Example | None:
    try:
        return encoder.encode(conversation).example
    except RowError as error:
        lost[f"likelihood ({error.code})"] += 1
        return None


def _examples_with_media(
    conversations: Sequence[Conversation], encoder: Encoder, lost: Counter[str]
) -> list[Example | None]:
    encoded = encoder.encode_batch(conversations)
    lost.update(f"likelihood ({problem.code})" for problem in encoded.problems.values())
    return [encoded.example(row, conversation.id) for row, conversation in enumerate(conversations)]


def _question(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, media: Media | None, lost: Counter[str]
) -> tuple[Prompt, str] | None:
    try:
        token_ids, reference, stop_token_ids, seen = question_of(conversation, tokenizer, media)
    except RowError as error:
        lost[f"answer ({error.code})"] += 1
        return None
    return Prompt(tuple(token_ids), frozenset(stop_token_ids), media=seen), reference
