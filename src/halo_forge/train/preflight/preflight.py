"""What is tried before a run costs anything: masks, one real step, and on request learning one row by heart.

Each check is a function that raises TrainingError with the reason and the remedy. What they found is kept in
preflight.json, so that a start that is repeated does not repeat them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import torch

from halo_forge.artifacts import PreparedData
from halo_forge.chat import Example
from halo_forge.errors import OutOfMemory, TrainingError
from halo_forge.models.compute import release_memory
from halo_forge.models.machine import resident_bytes
from halo_forge.runs import Notify, RunDirectory, write_json
from halo_forge.train.checkpoint import list_checkpoints
from halo_forge.train.planning.forecast import Forecast, device_bytes
from halo_forge.train.planning.memory import ALLOCATOR_SHARE
from halo_forge.train.planning.remedies import cheapest_fix
from halo_forge.train.preflight.mask_check import check_masks
from halo_forge.train.preflight.overfit import check_overfit
from halo_forge.train.preflight.trial import Trial, trial_step
from halo_forge.train.session import Session

RECORD = "preflight.json"
TRIAL_BUDGET_S = 2.0
"""A trial that is foreseen to take longer is run on fewer rows, unless memory is the question (below): imports, rows
and weights take about 7 s of the 10 s that the first step should begin in."""
CLOSE_SHARE = 0.5
"""Above this share of the memory that is free, the largest micro-batch is tried whatever it takes: below, twice the
predicted memory would still fit, and no prediction has been off by more than a quarter (docs/plan.md)."""
REFUSED_SHARE = 1.25
"""A prediction this far above what is free is refused unmeasured: on a CPU the system would kill the process."""
USUAL_SPEED = {"cpu": 2e10, "cuda": 1e13}
"""Weights x tokens a second, where nothing was measured: 150 tokens/s of a 135M model on one core (measured); for a GPU
a guess on the slow side."""


def preflight(session: Session, run: RunDirectory, prepared: PreparedData, foreseen: Forecast, notify: Notify) -> None:
    """Run all checks, unless they are off, were passed before, or the run already has checkpoints.

    Raises TrainingError or OutOfMemory. The run that follows has the same numbers as without it, bit for bit.
    """
    if not session.config.training.preflight or list_checkpoints(run.path):
        return
    earlier = _read_record(run)
    if earlier.get("fingerprint") == session.fingerprint and earlier.get("status") == "passed":
        return
    refuse_hopeless(foreseen)
    check_trainable(session)
    num_masks = check_masks(run, prepared, session.config, session.tokenizer)
    rows, is_largest = trial_rows(session, foreseen)
    if session.processes.is_main:
        if earlier.get("status") == "trying":
            notify("note", {"text": _killed_words(foreseen)})
        # Killed in the middle, the process leaves this behind: the only trace of a CPU's exhausted memory.
        write_json(run.file(RECORD), {"status": "trying", "fingerprint": session.fingerprint})
    trial = try_step(session, [session.train[row] for row in rows], foreseen)
    check_gradients(trial, session)
    record = {
        "status": "passed",
        "fingerprint": session.fingerprint,
        "num_masks_checked": num_masks,
        "trial": asdict(trial) | {"is_largest_micro_batch": is_largest},
        "predicted_growth_bytes": predicted_growth(foreseen) if is_largest else None,
    }
    words = [f"masks of {num_masks} rows hold", trial_words(trial, foreseen, session, is_largest)]
    if session.config.training.preflight == "overfit":
        learnt = check_overfit(session, run, prepared)
        words.append(f"one row learnt in {learnt.num_steps} steps, and it stops")
        record["overfit"] = asdict(learnt)
    if session.processes.is_main:
        write_json(run.file(RECORD), record)
        notify("note", {"text": "pre-flight: " + "; ".join(words)})


def refuse_hopeless(foreseen: Forecast) -> None:
    """Raise OutOfMemory where even a prediction that is off by a quarter would not fit."""
    plan = foreseen.plan
    if plan.usable_bytes is None or plan.peak_bytes <= REFUSED_SHARE * plan.usable_bytes:
        return
    raise OutOfMemory(
        f"this run needs about {plan.peak_bytes / 1e9:.1f} GB ({plan.largest_phase.name})",
        where=f"{plan.usable_bytes / 1e9:.1f} GB are free on {plan.device}",
        expected="a run that fits: `halo-forge plan CONFIG` lists what each change saves and costs",
        fix=cheapest_fix(foreseen.changes) + ", or --set training.preflight=false to try it all the same",
    )


def trial_rows(session: Session, foreseen: Forecast) -> tuple[list[int], bool]:
    """(numbers of the rows to try, whether they are the largest micro-batch)."""
    rows = list(foreseen.plan.workload.largest_rows)
    if session.max_tokens is None:
        rows = rows[: session.examples_per_batch]
    plan = foreseen.plan
    is_close = plan.usable_bytes is not None and plan.phases[0].num_bytes > CLOSE_SHARE * plan.usable_bytes
    speed = plan.tokens_per_s or USUAL_SPEED[plan.device] / plan.model.num_parameters
    budget = int(speed * TRIAL_BUDGET_S)
    if is_close or sum(len(session.train[row].input_ids) for row in rows) <= budget:
        return rows, True
    # A short row without an image would let a tower that is trained look as if no gradient reached it.
    near = range(min(len(session.train), 50)) if session.media is None else ()
    lengths = {row: len(session.train[row].input_ids) for row in [*near, *rows]}
    fewer = [min(lengths, key=lambda row: lengths[row])]
    for row in sorted(set(rows) - set(fewer), key=lambda row: lengths[row]):
        if sum(lengths[r] for r in [*fewer, row]) > budget:
            break
        fewer.append(row)
    return fewer, False


def try_step(session: Session, examples: list[Example], foreseen: Forecast) -> Trial:
    try:
        return trial_step(session, examples)
    except (torch.OutOfMemoryError, MemoryError) as error:
        release_memory(session.compute.device)
        num_tokens = sum(len(example.input_ids) for example in examples)
        raise OutOfMemory(
            f"the largest micro-batch ({num_tokens} tokens) does not fit: {_first_line(error)}",
            where="the trial step before the first",
            expected=f"about {foreseen.plan.peak_bytes / 1e9:.1f} GB were foreseen",
            fix=_shrinking(foreseen),
        ) from None


def check_trainable(session: Session) -> None:
    if not any(parameter.requires_grad for parameter in session.parameter_names):
        raise TrainingError(
            "nothing is trainable: every weight is frozen",
            where=f"training.method {session.config.training.method}",
            expected="adapters, or weights that take a gradient",
            fix="training.method lora with lora.target_modules all-linear, or training.method full",
        )


def check_gradients(trial: Trial, session: Session) -> None:
    """A gradient for every trained tensor, a finite loss, and something to learn."""
    where = f"the trial step, {trial.num_tokens} tokens"
    if not math.isfinite(trial.loss):
        raise TrainingError(
            f"the loss of the untrained model is {trial.loss}", where=where, expected="a finite loss",
            fix="--set training.bf16=false; if it stays, the base model's weights are damaged",
        )  # fmt: skip
    # A token passes few of a layer's experts: those that none of the trial's tokens chose say nothing.
    lost = [name for name in trial.without_gradient if "expert" not in name]
    if lost:
        raise TrainingError(
            f"{len(lost)} of {len(session.parameter_names)} trainable tensors get no gradient: {', '.join(lost[:3])}"
            + (", ..." if len(lost) > 3 else ""),
            where=where,
            expected="a gradient in every trainable tensor",
            fix="lora.target_modules without these layers, or --set training.preflight=false if it is meant",
        )
    if trial.all_zero:
        raise TrainingError(
            "nothing would be learnt: no gradient reaches any trainable weight", where=where,
            expected="a gradient in every trainable tensor",
            fix="loss weights above 0 (`halo-forge data show`), and a model that computes its loss from its weights",
        )  # fmt: skip


def predicted_growth(foreseen: Forecast) -> int:
    """What one micro-batch needs beyond what is loaded. The optimizer's moments come with the first real step, and the
    first gradients take the place of the activations that they are made from."""
    parts = foreseen.plan.phases[0].parts
    activations, logits = parts["activations"], parts["logits"]
    share = ALLOCATOR_SHARE[foreseen.plan.device] * (activations + logits)
    return round(parts.get("bfloat16 copy", 0) + logits + max(activations, parts["gradients"]) + share)


def trial_words(trial: Trial, foreseen: Forecast, session: Session, is_largest: bool) -> str:
    what = "largest micro-batch" if is_largest else "trial step"
    words = f"{what} ({trial.num_tokens} tokens) took {trial.time_s:.1f} s"
    if not is_largest:
        return words
    words += f" and {trial.grown_bytes / 1e9:.2f} GB, foreseen {predicted_growth(foreseen) / 1e9:.2f} GB"
    free = device_bytes(session.compute.device)
    still_to_come = foreseen.plan.phases[0].parts.get("optimizer", 0) + trial.grown_bytes
    held = session_bytes(session)
    if free is not None and held + still_to_come > free:
        fix = cheapest_fix(foreseen.changes) if foreseen.changes else _shrinking(foreseen)
        words += f"; with the optimizer's moments that is more than is free, try {fix}"
    return words


def session_bytes(session: Session) -> int:
    device = session.compute.device
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def _shrinking(foreseen: Forecast) -> str:
    """Advice where the prediction saw no problem and so planned no change."""
    if foreseen.changes:
        return cheapest_fix(foreseen.changes)
    half = foreseen.plan.workload.largest.num_tokens // 2
    return f"--set training.micro_batch_tokens={half}, then --set training.gradient_checkpointing=true"


def _killed_words(foreseen: Forecast) -> str:
    return (
        "the last start ended inside the trial step without a word, which is how a CPU runs out of memory; "
        f"if this one does too: {_shrinking(foreseen)}"
    )


def _read_record(run: RunDirectory) -> dict[str, Any]:
    try:
        found = json.loads(run.file(RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
