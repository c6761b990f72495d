"""What the model says while it trains: fixed validation prompts, answered greedily at every validation.

Nothing of the training changes by it: no random number is drawn, no weight touched, the mode put back. The time is
bounded: what would cost too much is left out, and that is said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import PreparedData
from halo_forge.chat import Conversation, read_conversations
from halo_forge.domains.media import Media, question_of
from halo_forge.errors import RowError
from halo_forge.models.generate import Generation, Prompt, generate
from halo_forge.runs import Notify, read_artifact, write_atomic
from halo_forge.train.checkpoint import TrainState
from halo_forge.train.loss import autocast
from halo_forge.train.session import Session

FILE = "samples.jsonl"
TIME_SHARE = 0.05
"""Share of the training time so far that all samples together may take."""
FREE_TIME_S = 10.0
"""They may always take this much: a short run is to be seen, too, and nobody waits for it."""
ROWS_READ_PER_PROMPT = 4
"""Rows without a question (plain texts) give no prompt; so many are looked at for each that is wanted."""


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    text: str
    prompt: Prompt
    reference: str


@dataclass(slots=True)
class Sampler:
    """The prompts of one run, and the time that they have taken in this process."""

    path: Path
    prompts: tuple[SamplePrompt, ...]
    max_new_tokens: int
    spent_s: float = 0.0
    longest_s: float = 0.0
    has_told: bool = False


class _OutOfTime(Exception):
    pass


def open_sampler(session: Session, state: TrainState) -> Sampler | None:
    """The first rows of the validation split, never of the holdout. None where none are asked for or there are none.

    samples.jsonl is cut back to the validations that `state` has seen, so that no step stands there twice.
    """
    settings, run = session.config.evaluation, session.directory
    if not settings.sample_prompts or not len(session.validation):
        return None
    split = read_artifact(run / "data" / "manifest.json", PreparedData).splits["validation"]
    rows = read_conversations(run / split.conversations, limit=ROWS_READ_PER_PROMPT * settings.sample_prompts)
    found = [prompt for row in rows if (prompt := _prompt_of(row, session.tokenizer, session.media)) is not None]
    if not found:
        return None
    _cut_back(run / FILE, state.last_validation_step or 0)
    return Sampler(run / FILE, tuple(found[: settings.sample_prompts]), settings.sample_tokens)


def take_samples(
    session: Session, sampler: Sampler, state: TrainState, notify: Notify, check: Callable[[], None]
) -> None:
    """Answer the prompts with the weights as they are and append the answers to samples.jsonl. `check` may raise
    Interrupted before every token; then nothing is written."""
    allowed_s = max(FREE_TIME_S, TIME_SHARE * state.train_time_s) - sampler.spent_s
    if allowed_s <= sampler.longest_s:
        _tell_once(sampler, f"no sample answers at step {state.step}", notify)
        return
    started = time.monotonic()
    answers = _answers(session, sampler, started + allowed_s, check)
    took_s = time.monotonic() - started
    sampler.spent_s += took_s
    sampler.longest_s = max(sampler.longest_s, took_s)
    if len(answers) < len(sampler.prompts):
        _tell_once(sampler, f"{len(answers)} of {len(sampler.prompts)} sample answers at step {state.step}", notify)
    lines = [
        {"step": state.step, "prompt": sample.text, "answer": answers[index].text, "reference": sample.reference,
         "stopped": answers[index].stopped}
        for index, sample in enumerate(sampler.prompts) if index in answers
    ]  # fmt: skip
    with open(sampler.path, "ab") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    notify("train.samples", {"step": state.step, "samples": lines})


def _answers(
    session: Session, sampler: Sampler, deadline: float, stop_if_told: Callable[[], None]
) -> dict[int, Generation]:
    """Prompt number -> answer; those that were not complete by the deadline (monotonic seconds) are missing."""
    answers: dict[int, Generation] = {}

    def check() -> None:
        if not dist.is_initialized():  # one process that leaves alone lets the others wait for it
            stop_if_told()
        if time.monotonic() > deadline:
            raise _OutOfTime

    session.model.eval()
    try:
        with autocast(session.compute.device, session.compute.precision):
            (generate if session.media is None else session.media.generate)(
                session.model,
                [sample.prompt for sample in sampler.prompts],
                decode=lambda ids: _decode(session.tokenizer, ids),
                max_new_tokens=sampler.max_new_tokens,
                batch_size=len(sampler.prompts),
                on_finished=answers.__setitem__,
                check=check,
            )
    except _OutOfTime:
        pass
    finally:
        session.model.train()
    return answers


def _prompt_of(row: Conversation, tokenizer: PreTrainedTokenizerBase, media: Media | None) -> SamplePrompt | None:
    if row.messages[0].role == "document":
        return None
    try:
        token_ids, reference, stop_token_ids, seen = question_of(row, tokenizer, media)
    except RowError:
        return None
    prompt = Prompt(tuple(token_ids), frozenset(stop_token_ids), media=seen)
    return SamplePrompt(_decode(tokenizer, token_ids), prompt, reference)


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _cut_back(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) <= step]
    write_atomic(path, b"".join(lines))


def _step_of(line: bytes) -> float:
    try:
        found: Any = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        found = None
    return found if isinstance(found, int) else float("inf")


def _tell_once(sampler: Sampler, what: str, notify: Notify) -> None:
    if not sampler.has_told:
        sampler.has_told = True
        words = f"they may take {TIME_SHARE:.0%} of the training time and have taken {sampler.spent_s:.1f} s"
        notify("note", {"text": f"{what}: {words} (evaluation.sample_prompts, sample_tokens)"})
