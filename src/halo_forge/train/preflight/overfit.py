"""Can this model learn one row by heart, and does it then stop where the row stops? Weights are put back afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halo_forge.artifacts import PreparedData
from halo_forge.chat import Example, prompt_and_reference
from halo_forge.errors import TrainingError
from halo_forge.models import load_trainable_state, trainable_state
from halo_forge.models.compute import release_memory
from halo_forge.runs import RunDirectory
from halo_forge.train.attention import forward_inputs
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import autocast
from halo_forge.train.optimizer import make_optimizer
from halo_forge.train.preflight.mask_check import CHECKED_ROWS, first_rows, trained_spans, trained_turns
from halo_forge.train.preflight.trial import left_unchanged
from halo_forge.train.session import Session
from halo_forge.train.step import train_step

MAX_STEPS = 30
FIRST_RATE, FIRST_RATE_OF_FULL = 2e-3, 1e-4
"""Ten times the default rates: one row, and nothing to keep."""
FASTER = 2.0
PATIENCE_STEPS = 5
"""After so many steps without a quarter less loss the rate rises by FASTER, up to MAX_RATE."""
MAX_RATE = 3e-2
LEARNT_SHARE = 0.5
"""Learnt: the loss is this share of what it was, and the stop token is the likeliest where the answer ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """Losses in nats per supervised token, before and after num_steps."""

    num_steps: int
    first_loss: float
    last_loss: float
    stop_token: str


def check_overfit(session: Session, run: RunDirectory, prepared: PreparedData) -> Learnt:
    """Train on the shortest of the first rows until it is learnt. Raises TrainingError where its loss does not fall,
    or where the model does not stop at the end of the answer. Weights come out bit for bit as they went in."""
    example, stop_ids, where = overfit_row(session, run, prepared)
    batch = examples_to_batch([example], media_inputs=session.media_inputs)
    before = trainable_state(session.model)
    optimizer = make_optimizer(session.model.parameters(), session.config.training)
    try:
        with left_unchanged(session):
            losses, likeliest = _learn(session, batch, optimizer, example, stop_ids)
    finally:
        load_trainable_state(session.model, before)
        del optimizer, before
        release_memory(session.compute.device)
    if not losses[-1] <= LEARNT_SHARE * losses[0]:
        raise TrainingError(
            f"one row cannot be learnt: its loss went from {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps",
            where=where,
            expected=f"at most {LEARNT_SHARE:.0%} of the first loss",
            fix="look at the row with `halo-forge data show`; lora.target_modules all-linear; training.bf16 false",
        )
    words = session.tokenizer.decode([likeliest])
    if likeliest not in stop_ids:
        raise TrainingError(
            f"the model has learnt the answer by heart, and goes on with {words!r} where it should stop",
            where=where,
            expected=f"one of {', '.join(repr(session.tokenizer.decode([stop])) for stop in sorted(stop_ids))}",
            fix="the chat template must end an answer with the token that evaluation and servers stop at",
        )
    return Learnt(num_steps=len(losses), first_loss=losses[0], last_loss=losses[-1], stop_token=words)


def overfit_row(session: Session, run: RunDirectory, prepared: PreparedData) -> tuple[Example, set[int], str]:
    """(the shortest of the first rows, token ids that stop its last answer, where it comes from)."""
    found: list[tuple[Example, set[int], str]] = []
    for conversation, example in first_rows(run, prepared, CHECKED_ROWS):
        source = f"{conversation.source.path}:{conversation.source.line}"
        if conversation.messages[0].role == "document":
            eos = session.tokenizer.eos_token_id
            found.append((example, {int(eos)} if isinstance(eos, int) else set(), source))
        elif trained_turns(conversation, session.config):
            found.append((example, set(prompt_and_reference(conversation, session.tokenizer)[2]), source))
    if not found:
        raise TrainingError("none of the first rows has a trained answer to learn", fix="--set training.preflight=true")
    return min(found, key=lambda row: len(row[0].input_ids))


def _learn(
    session: Session, batch: Batch, optimizer: torch.optim.Optimizer, example: Example, stop_ids: set[int]
) -> tuple[list[float], int]:
    """Losses of the steps, and the likeliest token at the end of the last answer after them."""
    rate = FIRST_RATE_OF_FULL if session.config.training.method == "full" else FIRST_RATE
    losses: list[float] = []
    level = float("inf")
    likeliest = -1
    for step in range(MAX_STEPS):
        result = train_step(session.objective, optimizer, [batch], rate, session.config.training.max_grad_norm)
        losses.append(result.loss)
        if step % PATIENCE_STEPS == PATIENCE_STEPS - 1:
            if result.loss > 0.75 * level:
                rate = min(MAX_RATE, rate * FASTER)
            level = result.loss
        if result.loss <= LEARNT_SHARE * losses[0]:
            likeliest = token_at_the_end(session, batch, example)
            if likeliest in stop_ids:
                break
    return losses, likeliest


@torch.no_grad()
def token_at_the_end(session: Session, batch: Batch, example: Example) -> int:
    """The likeliest token where the row's last trained span has its last token."""
    last = trained_spans(example)[-1][1] - 1
    device = session.compute.device
    session.model.eval()
    try:
        with autocast(device, session.compute.precision):
            logits = session.model(**forward_inputs(batch.to(device)), use_cache=False).logits[0, last - 1]
    finally:
        session.model.train()
    return int(logits.argmax())
