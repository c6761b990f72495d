"""The training loop: step, validate, checkpoint, stop. One loop for every method and domain."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from halo_forge.errors import Interrupted, OutOfMemory, StorageError, TrainingError, storage_error
from halo_forge.models.compute import release_memory
from halo_forge.runs import Notify
from halo_forge.train.batches import Batch
from halo_forge.train.checkpoint import (
    TrainState,
    checkpoint_path,
    clean_leftovers,
    newest_checkpoint,
    point,
    read_checkpoint,
    rotate,
    save_checkpoint,
    verify_checkpoint,
)
from halo_forge.train.optimizer import pull_to_start
from halo_forge.train.processes import any_process, from_main
from halo_forge.train.saved_state import read_optimizer, read_weights, write_gathered, write_parts, write_whole
from halo_forge.train.session import Session
from halo_forge.train.sharding import local
from halo_forge.train.step import StepResult, train_step
from halo_forge.train.watching.run_log import RunLog, open_run_log
from halo_forge.train.watching.samples import Sampler, open_sampler, take_samples

STEPS_PER_RELEASE = 10
"""Returning freed memory takes 0.1 s (measured), a step of a small model 2 s."""
NAMED_ROWS = 16
StopReason = Literal["finished", "max_steps", "early_stopping"]


@dataclass(slots=True)
class Cursor:
    """Where the run stands. `state` is replaced, never changed, so a checkpoint always sees one consistent moment."""

    state: TrainState
    metrics: RunLog | None  # only the main process writes
    sampler: Sampler | None = None


def restore(session: Session, resume_from: Path | None, notify: Notify) -> Cursor:
    """Continue from `resume_from`, else from the newest checkpoint that verifies, else from step 0."""
    run = session.directory
    if session.processes.is_main:
        clean_leftovers(run)
    if resume_from is not None:
        found = read_checkpoint(resume_from, session.fingerprint)
    else:
        found, passed_over = from_main(lambda: newest_checkpoint(run, session.fingerprint))
        for line in passed_over:
            notify("note", {"text": line})
    state = TrainState()
    if found is not None:
        state = found.state
        read_weights(found.path, session.model)
        read_optimizer(found.path, session.model, session.optimizer)
        notify("note", {"text": f"resumed from {found.path.name} ({state.step} of {session.num_steps} steps done)"})
    if not session.processes.is_main:
        return Cursor(state, None)
    if found is not None:
        update_pointers(session, state)
    # Answers of a sharded model would need all processes for each token.
    sampler = None if session.compute.shard else open_sampler(session, state)
    return Cursor(state, open_run_log(session, state, notify), sampler)


def run_steps(session: Session, cursor: Cursor, notify: Notify, check: Callable[[], None]) -> StopReason:
    """Train from cursor.state.step to the end; leaves the last state saved. Raises Interrupted, TrainingError.

    check  raises Interrupted when the process was told to stop; called before every micro-batch
    """
    training = session.config.training
    stopped_early = is_out_of_patience(session, cursor.state)
    try:
        if is_unsettled(session, cursor.state):
            stopped_early = settle_step(session, cursor, notify, check)
        for step, batches in session.steps_from(cursor.state.step) if not stopped_early else ():
            result = guarded_step(session, step, batches, check)
            record_step(session, cursor, step, result, notify)
            if (step + 1) % STEPS_PER_RELEASE == 0:
                release_memory(session.compute.device)
            stopped_early = settle_step(session, cursor, notify, check)
            if stopped_early:
                break
    except Interrupted:
        session.optimizer.zero_grad(set_to_none=True)
        save(session, cursor, notify, required=False, scheduled=False)
        raise
    finally:
        if cursor.metrics is not None:
            cursor.metrics.close()
    if stopped_early:
        return "early_stopping"
    return "max_steps" if training.max_steps is not None else "finished"


def settle_step(session: Session, cursor: Cursor, notify: Notify, check: Callable[[], None]) -> bool:
    """What follows the step that was just recorded: samples, validation, a checkpoint. True if patience has run out.

    The validation is recorded last and at once: told to stop before, the state is that of the step alone, and the next
    start does all of this again.
    """
    done = cursor.state.step
    if is_validated(session, done):
        if cursor.sampler is not None:
            take_samples(session, cursor.sampler, cursor.state, notify, check)
        validate(session, cursor, notify, check)
    stopped_early = is_out_of_patience(session, cursor.state)
    is_last = done == session.num_steps or stopped_early
    if is_last or done % session.config.output.save_steps == 0 or is_new_best(cursor.state):
        save(session, cursor, notify, required=is_last)
    return stopped_early


def is_validated(session: Session, done: int) -> bool:
    return done % session.config.training.eval_steps == 0 or done == session.num_steps


def is_unsettled(session: Session, state: TrainState) -> bool:
    """Whether the process was told to stop after the state's step and before its validation was through."""
    is_due = state.step > 0 and len(session.validation) > 0 and is_validated(session, state.step)
    return is_due and state.last_validation_step != state.step


def guarded_step(session: Session, step: int, batches: list[Batch], check: Callable[[], None]) -> StepResult:
    """One step under its own random numbers: a function of (seed, step, rank), so a resume needs no saved state."""
    seed = f"{session.config.training.seed}/{step}/{session.processes.rank}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
    training, rate = session.config.training, session.schedule.rate(step)
    try:
        result = train_step(
            session.objective,
            session.optimizer,
            batches,
            rate,
            training.max_grad_norm,
            check,
        )
        if session.start and result.applied:
            pull_to_start(list(session.parameter_names), session.start, rate, training.l2_to_start)
        return result
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device ran out of memory in step {step + 1}: {error}",
            fix="`halo-forge plan CONFIG` lists what would fit, and what each change costs",
        ) from None


def record_step(session: Session, cursor: Cursor, step: int, result: StepResult, notify: Notify) -> None:
    """Move the state past a finished step, log it, and stop the run after too many non-finite ones."""
    state, limit = cursor.state, session.config.training.max_nonfinite_steps
    ids = [example.conversation_id for example in session.examples_of(step)]
    chain = hashlib.sha256((state.samples_sha256 + "".join(ids)).encode()).hexdigest()
    weight = result.num_supervised_tokens if result.applied else 0
    cursor.state = state.advanced(
        step=step + 1,
        num_tokens=state.num_tokens + result.num_tokens,
        num_supervised_tokens=state.num_supervised_tokens + result.num_supervised_tokens,
        train_time_s=state.train_time_s + result.time_s,
        recent_loss_sum=state.recent_loss_sum + (result.loss * weight if weight else 0.0),
        recent_loss_weight=state.recent_loss_weight + weight,
        nonfinite_in_a_row=0 if result.applied else state.nonfinite_in_a_row + 1,
        samples_sha256=chain,
    )
    if cursor.metrics is not None:
        cursor.metrics.append(
            kind="train",
            step=step + 1,
            epoch=round((step + 1) / session.order.steps_per_epoch, 6),
            loss=result.loss,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            num_supervised_tokens=result.num_supervised_tokens,
            num_tokens=result.num_tokens,
            time_s=round(result.time_s, 6),
            applied=result.applied,
            **({"by_source": result.by_source} if result.by_source else {}),
        )
    done = cursor.state
    notify(
        "train.step",
        {
            "step": done.step,
            "num_steps": session.num_steps,
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens_per_s": result.num_tokens / result.time_s,
            "eta_s": done.train_time_s / done.num_tokens * _tokens_left(session, done),
            "is_logged": done.step % session.config.output.logging_steps == 0,
        },
    )
    rows = ", ".join(name[:12] for name in ids[:NAMED_ROWS]) + (", ..." if len(ids) > NAMED_ROWS else "")
    if not result.applied:
        words = "loss or gradient is not finite; nothing was changed by it"
        notify("note", {"text": f"step {done.step}: {words} (rows {rows})"})
    if done.nonfinite_in_a_row >= limit:
        raise TrainingError(
            f"{limit} steps in a row had a loss or gradient that is not finite; the weights are those before them",
            where=f"step {done.step}, rows {rows}",
            fix="lower training.learning_rate, or look at these rows with `halo-forge data show`",
        )


def _tokens_left(session: Session, state: TrainState) -> float:
    return state.num_tokens / state.step * (session.num_steps - state.step)


def validate(session: Session, cursor: Cursor, notify: Notify, check: Callable[[], None]) -> None:
    losses = session.validation_loss(check)
    if losses is None:
        return
    loss, by_source = losses.mean, losses.by_source()
    state, training = cursor.state, session.config.training
    best = state.best_validation_loss if state.best_validation_loss is not None else math.inf
    compared = loss if math.isfinite(loss) else math.inf
    improved, counts = compared < best, compared < best - training.early_stopping_threshold
    if not math.isfinite(loss):
        words = "it is nobody's best, and counts as no improvement"
        notify("note", {"text": f"step {state.step}: the validation loss is not finite; {words}"})
    cursor.state = state.advanced(
        last_validation_loss=loss,
        last_validation_step=state.step,
        best_validation_loss=loss if improved else state.best_validation_loss,
        best_val_step=state.step if improved else state.best_val_step,
        validations_without_improvement=0 if counts else state.validations_without_improvement + 1,
    )
    if cursor.metrics is not None:
        told = {"by_source": by_source} if by_source else {}
        cursor.metrics.append(kind="validation", step=state.step, loss=loss, **told)
    notify("train.validation", {"step": state.step, "loss": loss, "is_best": improved, "by_source": by_source})


def is_out_of_patience(session: Session, state: TrainState) -> bool:
    training = session.config.training
    return training.early_stopping and state.validations_without_improvement >= training.early_stopping_patience


def is_new_best(state: TrainState) -> bool:
    return state.best_val_step == state.step


def save(session: Session, cursor: Cursor, notify: Notify, *, required: bool, scheduled: bool = True) -> None:
    """Checkpoint the current state, move the pointers, then delete what is surplus.

    A save that fails for want of space is told and tried again at the next one; only a required save stops the run.
    An unscheduled one (a signal) leaves the running train-loss window open, so that a killed and an uninterrupted run
    choose the same best_train. Of a sharded model all processes save together, else the main one does alone.
    """
    state, together = cursor.state, session.compute.shard
    once: Callable[[Callable[[], Any]], Any] = from_main if together else lambda act: act()
    if state.step == 0 or not (session.processes.is_main or together):
        return
    if not scheduled and once(lambda: verify_checkpoint(checkpoint_path(session.directory, state.step))) is None:
        return
    if scheduled and state.recent_loss_weight:
        recent = state.recent_loss_sum / state.recent_loss_weight
        if state.best_train_loss is None or recent < state.best_train_loss:
            state = state.advanced(best_train_loss=recent, best_train_step=state.step)
        state = state.advanced(recent_loss_sum=0.0, recent_loss_weight=0.0)
    state = state.advanced(metrics_bytes=cursor.metrics.sync() if cursor.metrics else 0)
    try:
        once(lambda: require_free_space(session))
        refuse_nonfinite_weights(session, state.step)
        write = write_parts if session.compute.sharded_checkpoints else write_gathered if together else write_whole
        save_checkpoint(
            session.directory,
            state,
            lambda directory: write(directory, session.model, session.optimizer),
            session.fingerprint,
            once,
        )
    except OSError as error:
        if required:
            told = storage_error(error, session.directory)
            raise StorageError(
                f"the checkpoint of step {state.step} could not be written: {told.what if told else error}",
                where=str(session.directory),
                fix=told.fix if told else "the same command goes on from the last checkpoint",
            ) from None
        notify("note", {"text": f"checkpoint at step {state.step} not written ({error}); trying again at the next"})
        return
    cursor.state = state
    if not session.processes.is_main:
        return
    update_pointers(session, state)
    kept = [s for s in (state.best_val_step, state.best_train_step, state.step) if s is not None]
    rotate(session.directory, kept, session.config.output.save_total_limit)
    notify("train.save", {"step": state.step, "path": str(checkpoint_path(session.directory, state.step))})


def update_pointers(session: Session, state: TrainState) -> None:
    steps = {"best_val": state.best_val_step, "best_train": state.best_train_step, "latest": state.step}
    for name, step in steps.items():
        if step is not None and checkpoint_path(session.directory, step).is_dir():
            point(session.directory, name, step)


def require_free_space(session: Session) -> None:
    """Raise ENOSPC before anything is written if the checkpoint cannot fit: weights and two moments in float32."""
    num_trainable = sum(parameter.numel() for parameter in session.parameter_names)
    num_saved = num_trainable
    if session.config.training.method == "full":  # frozen weights are saved, too
        num_saved = sum(parameter.numel() for parameter in session.model.parameters())
    needed = (num_trainable * 2 + num_saved) * 4 + 16_000_000
    free = shutil.disk_usage(session.directory).free
    if free < needed:
        words = f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free"
        raise OSError(errno.ENOSPC, words, os.fspath(session.directory))


def refuse_nonfinite_weights(session: Session, step: int) -> None:
    for parameter, name in session.parameter_names.items():
        is_bad = not bool(torch.isfinite(local(parameter)).all())
        if any_process(is_bad, session.compute.device) if session.compute.shard else is_bad:
            raise TrainingError(
                f"weight {name} is not finite after step {step}; no checkpoint is written from it",
                where=str(session.directory),
                fix="the last checkpoint is sound: lower training.learning_rate and start over with --fresh",
            )
