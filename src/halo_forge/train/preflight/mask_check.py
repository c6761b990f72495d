"""Do the loss weights of real rows train the answers and nothing else? Asked of the first rows of every run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import PreparedData
from halo_forge.chat import Conversation, Example, read_conversations, read_examples
from halo_forge.config.schema import Config
from halo_forge.domains.media import Media, open_media, question_of
from halo_forge.errors import TrainingError
from halo_forge.runs import RunDirectory

CHECKED_ROWS = 50
"""A wrong template or mask is wrong in the first rows; fifty take 0.1 s."""


def check_masks(run: RunDirectory, prepared: PreparedData, config: Config, tokenizer: PreTrainedTokenizerBase) -> int:
    """Hold the first rows against their conversations; returns how many. Raises TrainingError that names the row.

    Only where answers alone are trained (data.train_on assistant or last_assistant): there every trained span must end
    with a token that stops it, and nothing before the first trained answer may be trained.
    """
    if config.data.train_on not in ("assistant", "last_assistant"):
        return 0
    count, media = 0, open_media(config, tokenizer)
    for conversation, example in first_rows(run, prepared, CHECKED_ROWS):
        if conversation.messages[0].role != "document":
            check_row(conversation, example, config, tokenizer, media)
            count += 1
    return count


def first_rows(run: RunDirectory, prepared: PreparedData, limit: int) -> Iterator[tuple[Conversation, Example]]:
    """Conversations of the training split, each with its example."""
    split = prepared.splits["train"]
    examples = read_examples(run.file(split.examples))
    found = {examples[i].conversation_id: examples[i] for i in range(min(limit, len(examples)))}
    for conversation in read_conversations(run.file(split.conversations), limit=limit):
        if conversation.id in found:
            yield conversation, found[conversation.id]


def check_row(
    conversation: Conversation,
    example: Example,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    media: Media | None = None,
) -> None:
    where = f"{conversation.source.path}:{conversation.source.line}"
    turns = trained_turns(conversation, config)
    if not turns:
        return
    prompt, _, stop_ids, _ = question_of(_until(conversation, turns[0]), tokenizer, media)
    same = common_prefix(prompt, example.input_ids)
    early = np.flatnonzero(example.loss_weights[:same] > 0)
    if len(early):
        raise TrainingError(
            f"token {early[0]} of this row is trained, and it belongs to the prompt: "
            f"{tokenizer.decode([int(example.input_ids[early[0]])])!r}",
            where=where,
            expected="loss weights of 0 up to the first trained answer",
            fix="prepare the rows again in a new --output; if it stays, report the chat template",
        )
    stops = {*stop_ids, *tokenizer.all_special_ids}
    for start, end in trained_spans(example):
        is_cut = end == len(example.input_ids) and config.data.overlong == "truncate"
        last = int(example.input_ids[end - 1])
        if not is_cut and last not in stops:
            raise TrainingError(
                f"the trained tokens {start} to {end - 1} of this row end with {tokenizer.decode([last])!r}: "
                "the model would not learn to stop",
                where=where,
                expected=f"one of {', '.join(repr(tokenizer.decode([stop])) for stop in stop_ids)}",
                fix="prepare the rows again in a new --output; if it stays, report the chat template",
            )


def trained_turns(conversation: Conversation, config: Config) -> list[int]:
    """Numbers of the assistant messages that are trained and have something before them."""
    turns = [number for number, message in enumerate(conversation.messages) if message.role == "assistant"]
    chosen = turns if config.data.train_on == "assistant" else turns[-1:]
    wanted = []
    for turn in turns:
        weight = conversation.messages[turn].weight
        if (turn in chosen if weight is None else weight > 0) and turn > 0:
            wanted.append(turn)
    return wanted


def trained_spans(example: Example) -> list[tuple[int, int]]:
    """Runs of tokens with a loss weight above 0: (first, one past the last)."""
    trained = np.concatenate(([False], example.loss_weights > 0, [False]))
    edges = np.flatnonzero(trained[1:] != trained[:-1]).tolist()
    return [(start, end) for start, end in list(pairwise(edges))[::2]]


def common_prefix(prompt: list[int], input_ids: np.ndarray) -> int:
    """Tokens that the prompt shares with the row. A token across the border of prompt and answer is not among them."""
    length = min(len(prompt), len(input_ids))
    different = np.flatnonzero(np.asarray(prompt[:length]) != input_ids[:length])
    return int(different[0]) if len(different) else length


def _until(conversation: Conversation, turn: int) -> Conversation:
    return Conversation(
        id=conversation.id,
        messages=conversation.messages[: turn + 1],
        source=conversation.source,
        tools=conversation.tools,
    )
