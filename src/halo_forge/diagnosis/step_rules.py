"""Rules over gradients, skipped steps, supervised tokens, the schedule, validation and single sources."""

from __future__ import annotations

import numpy as np

from halo_forge.diagnosis.curves import Curves, Floats, fall_between, trailing_medians
from halo_forge.diagnosis.findings import RunFacts, TrainingFinding
from halo_forge.diagnosis.loss_rules import SURE, is_flat, may_judge_flatness

EXPLOSION = 10.0
"""A gradient norm this many times the median of the steps before it has exploded; hard batches reach 3 to 5 times."""
EXPLOSION_OF_START = 2.0
"""... and this many times the median of the first steps: late in training, where gradients are small, one hard row is
ten times the usual without harm."""
EXPLOSION_WINDOW = 50
EXPLOSION_MIN_BEFORE = 10
MANY_EXPLOSIONS = 3
VANISHED = 1e-3
"""A gradient norm that fell to this share of where it started while the loss did not fall to half: the signal is gone,
not used up. Converged runs stay above 1e-2."""
VANISHING_STEPS = 20
FEW_TOKENS = 64
"""Supervised tokens of the median step. With a per-token spread of 1 to 2 nats, a mean over 64 is off by 0.1 to 0.25:
as much as a good run still has to learn."""
MIN_STEPS_FOR_TOKENS = 5
OVERFIT_RISE = 0.02
"""Share by which the validation loss must have risen from its best; smaller differences change no answer."""
OVERFIT_CLEAR_RISE = 0.1
"""With a rise like this, two validations after the best are enough."""
OVERFIT_MIN_AFTER = 3
"""Validations after the best one, all above it: one or two may be chance."""
GAP_SHARE, GAP_NATS = 0.5, 0.1
"""A validation loss this share and this much above the training loss: the model knows its rows better than the task.
Fresh rows of the same kind lie within 10 to 20 %."""
GAP_MIN_STEPS = 20
LEARNED_ELSEWHERE = 0.1
"""Share by which the other sources must have fallen for a flat one to stand out."""
MAX_NONFINITE_SHARE = 0.01
"""More skipped steps than this are not accidents."""


def nonfinite_steps(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    steps = curves.nonfinite_steps
    if not steps:
        return None
    is_many = len(steps) > max(1, MAX_NONFINITE_SHARE * curves.last_step)
    told = ", ".join(str(step) for step in steps[:5]) + (", ..." if len(steps) > 5 else "")
    return TrainingFinding(
        code="nonfinite_steps",
        severity="error" if is_many else "warning",
        title="Steps had a loss or gradient that is not finite",
        evidence=f"{len(steps)} of {curves.last_step} (step {told}); they changed nothing",
        next_action="lower training.learning_rate, or training.bf16: false; look at the rows of these steps",
        first_step=steps[0],
        last_step=steps[-1],
        numbers={"steps": float(len(steps))},
    )


def gradient_explosion(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    norms = curves.grad_norm
    if len(norms) <= EXPLOSION_MIN_BEFORE:
        return None
    usual = trailing_medians(norms.values, EXPLOSION_WINDOW)
    start = float(np.median(norms.values[:EXPLOSION_MIN_BEFORE]))
    with np.errstate(invalid="ignore"):
        exploded = (norms.values > EXPLOSION * usual) & (norms.values > EXPLOSION_OF_START * start)
    exploded[:EXPLOSION_MIN_BEFORE] = False
    places = np.flatnonzero(exploded)
    if not len(places):
        return None
    worst = int(places[np.argmax(norms.values[places])])
    return TrainingFinding(
        code="gradient_explosion",
        severity="error" if len(places) >= MANY_EXPLOSIONS else "warning",
        title="The gradient exploded" + (f" {len(places)} times" if len(places) > 1 else " once"),
        evidence=f"norm {norms.values[worst]:.3g} at step {int(norms.steps[worst])} where {usual[worst]:.3g} was usual",
        next_action="keep training.max_grad_norm at 1.0 or lower, lower training.learning_rate, lengthen the warm-up "
        "(training.warmup_ratio: 0.1), and look at the rows of that step",
        first_step=int(norms.steps[places[0]]),
        last_step=int(norms.steps[places[-1]]),
        numbers={"steps": float(len(places)), "highest": float(norms.values[worst]), "usual": float(usual[worst])},
    )


def vanishing_gradient(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    norms, loss = curves.grad_norm.values, curves.loss.values
    if len(norms) < VANISHING_STEPS or not len(loss):
        return None
    now = float(np.median(norms[-VANISHING_STEPS:]))
    start = float(np.median(norms[:VANISHING_STEPS]))
    has_learned = np.median(loss[-VANISHING_STEPS:]) < 0.5 * np.median(loss[:VANISHING_STEPS])
    if now > 0 and (now > VANISHED * start or has_learned):
        return None
    first = curves.grad_norm.steps[-VANISHING_STEPS]
    return TrainingFinding(
        code="vanishing_gradient",
        severity="error",
        title="The gradient has vanished" if now else "The gradient is zero",
        evidence=f"median norm {now:.3g} over the last {VANISHING_STEPS} steps, {start:.3g} over the first",
        next_action="check that something is trained: lora.target_modules, what of the rows is supervised (`halo-forge "
        "data show`), and weights that were frozen or are not finite; training.bf16: false rules rounding out",
        first_step=int(first),
        last_step=int(curves.grad_norm.steps[-1]),
        numbers={"now": now, "start": start},
    )


def few_supervised_tokens(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    tokens = curves.supervised_tokens
    if len(tokens) < MIN_STEPS_FOR_TOKENS or np.median(tokens.values) >= FEW_TOKENS:
        return None
    median = float(np.median(tokens.values))
    return TrainingFinding(
        code="few_supervised_tokens",
        severity="warning",
        title="Each step learns from few tokens",
        evidence=f"the median step has {median:.0f} supervised tokens"
        + (f" in {facts.examples_per_step} examples" if facts.examples_per_step else ""),
        next_action="raise training.gradient_accumulation_steps until a step has a few hundred; if answers should be "
        "longer, look at what of the rows is trained (`halo-forge data show`)",
        first_step=int(tokens.steps[0]),
        last_step=int(tokens.steps[-1]),
        numbers={"median_tokens": median},
    )


def warmup_unfinished(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    rates = curves.learning_rate.values
    if not facts.is_finished or len(rates) < 3 or not (rates[-1] > rates[-2] > rates[-3]):
        return None
    return TrainingFinding(
        code="warmup_unfinished",
        severity="warning",
        title="The run ended in warm-up",
        evidence=f"the learning rate was still rising at the last step ({rates[-1]:.3g})",
        next_action="train for more steps, or lower training.warmup_steps (training.warmup_ratio: 0.03 to 0.1)",
        first_step=int(curves.learning_rate.steps[0]),
        last_step=int(curves.learning_rate.steps[-1]),
        numbers={"learning_rate": float(rates[-1])},
    )


# ---------------------------------------------------------------------------------------------- validation


def overfitting(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    """The validation loss has risen from its best, for longer and by more than its own noise, and the training loss
    has not."""
    steps, values = curves.validation.steps, curves.validation.values
    if len(values) < 3:
        return None
    best = int(np.argmin(values))
    after = values[best + 1 :]
    if len(after) < 2:
        return None
    rise = float(np.median(after[-3:]) / values[best] - 1)
    enough = len(after) >= OVERFIT_MIN_AFTER or rise >= OVERFIT_CLEAR_RISE
    if not enough or rise < OVERFIT_RISE or rise * values[best] < SURE * _noise_of(values[best:]):
        return None
    train_best, train_now = _train_level(curves, int(steps[best])), _train_level(curves, int(steps[-1]))
    if train_now is None or train_best is None or train_now > train_best:
        return None
    regular = "raise lora.dropout" if facts.method == "lora" else "raise training.weight_decay"
    return TrainingFinding(
        code="overfitting",
        severity="warning",
        title="Overfitting: the validation loss rises while the training loss falls",
        evidence=f"validation {values[best]:.4g} at step {steps[best]}, {values[-1]:.4g} at step {steps[-1]}; training "
        f"{train_best:.3g}, then {train_now:.3g}",
        next_action=f"go back to step {steps[best]} (output.final: best_val does); train fewer epochs, with "
        f"training.early_stopping: true; add varied rows; {regular}",
        first_step=int(steps[best]),
        last_step=int(steps[-1]),
        numbers={"best_validation": float(values[best]), "best_step": float(steps[best]), "last": float(values[-1])},
        curve="validation",
    )


def _noise_of(values: Floats) -> float:
    """Robust standard deviation around a straight line, from second differences; 0 where there are too few."""
    if len(values) < 3:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(values, 2))) / np.sqrt(6))


def _train_level(curves: Curves, step: int) -> float | None:
    """Mean training loss of the steps up to this one: a tenth of them, 5 to 50."""
    values = curves.loss.up_to(step).values
    return float(values[-min(50, max(5, len(values) // 10)) :].mean()) if len(values) else None


def validation_gap(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    validation, train = curves.validation, _train_level(curves, curves.last_step)
    if not len(validation) or train is None or len(curves.loss) < GAP_MIN_STEPS:
        return None
    step, last = int(validation.steps[-1]), float(validation.values[-1])
    train = _train_level(curves, step)
    if train is None or last - train < max(GAP_SHARE * train, GAP_NATS):
        return None
    if len(validation) > 1 and last < validation.values[-2]:
        return None  # it still falls: what is learned carries over
    return TrainingFinding(
        code="validation_gap",
        severity="warning",
        title="The model knows its training rows far better than new ones",
        evidence=f"validation {last:.3g} nats, training {train:.3g} at step {step}",
        next_action="train fewer epochs, or add rows that are more varied; if validation rows are of another kind than "
        "the training rows (data.validation_file, data.split_by), the gap measures that difference",
        first_step=step,
        last_step=step,
        numbers={"validation": last, "train": train},
        curve="validation",
    )


# ---------------------------------------------------------------------------------------------- sources


def flat_sources(curves: Curves, facts: RunFacts) -> list[TrainingFinding]:
    """Sources on which nothing was learned while the others' loss fell."""
    if len(curves.sources) < 2:
        return []
    fallen = {name for name, series in curves.sources.items() if _has_fallen(series.values)}
    findings = []
    for name, series in sorted(curves.sources.items()):
        if not fallen - {name} or not may_judge_flatness(series, curves, facts) or not is_flat(series.values):
            continue
        third = len(series) // 3
        head, tail = float(series.values[:third].mean()), float(series.values[-third:].mean())
        findings.append(
            TrainingFinding(
                code="source_flat",
                severity="warning",
                title=f"Nothing is learned from {name}",
                evidence=f"its loss was {head:.3g} nats over its first {third} steps and {tail:.3g} over its last "
                f"{third}, while {', '.join(sorted(fallen)[:3])} fell",
                next_action="look at its rows and what of them is trained (`halo-forge data show`): noise, answers "
                "that do not follow from the prompts, or text the model knows; raise its loss_weight or share, or "
                "leave it out",
                first_step=int(series.steps[0]),
                last_step=int(series.steps[-1]),
                numbers={"first_third": head, "last_third": tail},
                source=name,
            )
        )
    return findings


def _has_fallen(values: Floats) -> bool:
    third = len(values) // 3
    if third < 2:
        return False
    fall, error = fall_between(values[:third], values[-third:])
    return fall > SURE * error and fall > LEARNED_ELSEWHERE * float(values[:third].mean())
