"""The training stage: PreparedData in, TrainedModel and final_model/ out."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.artifacts import PreparedData, TrainedModel
from halo_forge.chat import first_batch_text, read_conversations
from halo_forge.config.schema import Config
from halo_forge.domains.media import question_of
from halo_forge.errors import UsageError
from halo_forge.models import save_final, weights_sha256
from halo_forge.models.compute import Compute
from halo_forge.models.quantised import num_parameters
from halo_forge.runs import (
    Notify,
    RunDirectory,
    provenance,
    read_artifact,
    sha256_json,
    silent,
    write_artifact,
    write_atomic,
)
from halo_forge.train.checkpoint import PREFIX, TrainState, checkpoint_path, discard, list_checkpoints, read_checkpoint
from halo_forge.train.loop import Cursor, StopReason, restore, run_steps
from halo_forge.train.methods import load_training_model
from halo_forge.train.optimizer import make_moments
from halo_forge.train.planning.look_ahead import look_ahead
from halo_forge.train.preflight.preflight import preflight
from halo_forge.train.processes import from_main
from halo_forge.train.saved_state import read_weights
from halo_forge.train.session import Session, open_session, training_fingerprint, use_all_cores
from halo_forge.train.watching.metrics import read_metrics, write_training_log
from halo_forge.train.watching.trackers import require_trackers

CPU = torch.device("cpu")
FINAL_MODEL = "final_model"
RECORD = "trained.json"


def train(
    config: Config,
    run: RunDirectory,
    prepared: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    compute: Compute,
    resume_from: Path | None = None,
    notify: Notify = silent,
    check: Callable[[], None] = lambda: None,
) -> TrainedModel:
    """Fine-tune and write final_model/, trained.json, metrics.jsonl, training_log.json and checkpoints into the run.

    The same call goes on from the newest checkpoint that verifies; killed at any point and called again, it ends with
    the same weights bit for bit (same machine, same number of processes).

    compute      device and precision, decided once per run
    resume_from  a checkpoint directory of this run to go back to; newer ones are discarded
    check        raises Interrupted when the process should stop; a checkpoint is written first
    Raises TrainingError, CheckpointError, OutOfMemory, ModelNotFound, Interrupted.
    """
    require_trackers(config.output.trackers)
    use_all_cores()
    if resume_from is not None:
        resume_from = from_main(partial(rewind, run.path, resume_from))
    compute, foreseen = look_ahead(config, run, prepared, compute, notify)
    session = open_session(config, run.path, prepared, tokenizer, compute, notify)
    if session.processes.is_main:
        write_atomic(run.file("first_batch.txt"), first_batch_text(session.examples_of(0), tokenizer))
    notify(
        "train.start",
        {
            "num_steps": session.num_steps,
            "num_examples": session.order.num_examples,
            "examples_per_step": session.order.examples_per_step,
            "num_trainable": sum(p.numel() for p in session.parameter_names),
            "num_parameters": num_parameters(session.model),
            "precision": compute.precision,
            "device": str(compute.device),
            "attention": session.attention,
        },
    )
    preflight(session, run, prepared, foreseen, notify)
    cursor = restore(session, resume_from, notify)
    make_moments(session.optimizer)
    stop_reason = run_steps(session, cursor, notify, check)
    return finish(session, run, prepared, cursor, stop_reason)


def finished_training(
    config: Config, run: RunDirectory, prepared: PreparedData, compute: Compute
) -> TrainedModel | None:
    """The record of this very training if it is complete and its weights are as it left them, else None."""
    if not run.file(RECORD).exists():
        return None
    record = read_artifact(run.file(RECORD), TrainedModel)
    fingerprint = training_fingerprint(config, prepared, compute)
    if record.provenance.inputs.get("fingerprint") != fingerprint:
        return None
    return record if weights_sha256(run.file(record.final_model)) == record.weights_sha256 else None


def rewind(run: Path, checkpoint: Path) -> Path:
    """Resolve --resume to a checkpoint of this run and discard the newer ones, which would contradict what follows."""
    resolved = checkpoint.resolve()
    if resolved.parent != run.resolve() or not resolved.name.startswith(PREFIX) or not resolved.is_dir():
        available = ", ".join(p.name for p in list_checkpoints(run)) or "none"
        raise UsageError(
            "--resume needs a checkpoint of this run",
            where=str(checkpoint),
            expected=f"one of the checkpoints in {run}: {available}",
            fix="without --resume the same command goes on from the newest one",
        )
    for path in list_checkpoints(run):
        if int(path.name.removeprefix(PREFIX)) > int(resolved.name.removeprefix(PREFIX)):
            discard(path)
    return run / resolved.name


def finish(
    session: Session, run: RunDirectory, prepared: PreparedData, cursor: Cursor, stop_reason: StopReason
) -> TrainedModel:
    """Write final_model/ from the chosen checkpoint and the stage's record."""
    config, state = session.config, cursor.state
    final_step = state.step
    if config.output.final == "best_val" and state.best_val_step is not None:
        final_step = state.best_val_step
    record = make_record(session, prepared, state, stop_reason, final_step, run)
    if session.processes.is_main:
        save_final(
            final_weights(session, state.step, final_step),
            session.tokenizer,
            run.file(FINAL_MODEL),
            config.model.name,
            revision=config.model.revision,
            stop_token_ids=stop_tokens(run, prepared, session),
        )
        if session.media is not None:
            session.media.save(run.file(FINAL_MODEL))
        write_training_log(run.path, config.output.logging_steps)
        record = record.model_copy(update={"weights_sha256": weights_sha256(run.file(FINAL_MODEL))})
        write_artifact(run.file(RECORD), record)
    if dist.is_initialized():
        dist.barrier()
    return record


def final_weights(session: Session, trained_step: int, final_step: int) -> PreTrainedModel | PeftModel:
    """The whole model with the weights of `final_step`; this process alone needs it."""
    model, compute = session.model, session.compute
    if compute.shard:  # then this process holds a part only
        model = load_training_model(session.config, replace(compute, device=CPU), session.tokenizer)
    if compute.shard or final_step != trained_step:
        found = read_checkpoint(
            checkpoint_path(session.directory, final_step), session.fingerprint
        )  # damaged: an error
        read_weights(found.path, model, alone=True)
    return model


def stop_tokens(run: RunDirectory, prepared: PreparedData, session: Session) -> list[int]:
    """What ended the answers that were trained on, for generation_config.json: a server must stop there too."""
    first = read_conversations(run.file(prepared.splits["train"].conversations), limit=1)[0]
    if first.messages[0].role == "document":
        return []
    return question_of(first, session.tokenizer, session.media)[2]


def make_record(
    session: Session,
    prepared: PreparedData,
    state: TrainState,
    stop_reason: StopReason,
    final_step: int,
    run: RunDirectory,
) -> TrainedModel:
    config = session.config
    log = _train_losses(run.path)[-config.output.logging_steps :]
    return TrainedModel(
        provenance=provenance(
            sha256_json(config.to_dict()),
            {"data/manifest.json": sha256_json(prepared.model_dump(mode="json")), "fingerprint": session.fingerprint},
        ),
        model_name=config.model.name,
        method=config.training.method,
        final_model=FINAL_MODEL,
        final_step=final_step,
        weights_sha256="",
        num_steps=state.step,
        num_epochs=round(state.step / session.order.steps_per_epoch, 6),
        num_tokens=state.num_tokens,
        num_supervised_tokens=state.num_supervised_tokens,
        num_trainable_parameters=sum(p.numel() for p in session.parameter_names),
        num_parameters=num_parameters(session.model),
        train_loss=sum(log) / len(log) if log else float("nan"),
        validation_loss=state.last_validation_loss,
        best_validation_loss=state.best_validation_loss,
        validation_by_source=_validation_by_source(run.path),
        best_val=_name(state.best_val_step),
        best_train=_name(state.best_train_step),
        latest=f"{PREFIX}{state.step}",
        stop_reason=stop_reason,
        precision=session.compute.precision,
        device=str(session.compute.device),
        attention=session.attention,
        train_time_s=round(state.train_time_s, 3),
        tokens_per_s=round(state.num_tokens / max(state.train_time_s, 1e-9), 2),
        peak_memory_bytes=peak_memory_bytes(session.compute.device),
    )


def _name(step: int | None) -> str | None:
    return None if step is None else f"{PREFIX}{step}"


def _train_losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train" and line["applied"]]


def _validation_by_source(run: Path) -> dict[str, float]:
    """Loss of each source at the last validation; empty where rows have no named sources."""
    validations = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "validation"]
    by_source = validations[-1].get("by_source", {}) if validations else {}
    return {name: float(of_source["loss"]) for name, of_source in by_source.items()}


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory of this process so far: the GPU allocator's peak, or resident memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
