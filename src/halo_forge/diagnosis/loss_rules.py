"""Rules over the training loss: flat, rising, level, swinging, spiking, suspiciously low, cut short.

A rule speaks only where the numbers leave no doubt: differences of window means are held against their standard errors.
Silence therefore means "not shown", never "healthy". Each rule: (curves, facts) -> a finding or None.
"""

from __future__ import annotations

import numpy as np

from halo_forge.diagnosis.curves import Curves, Floats, Series, fall_between, trailing_medians, warmup_end
from halo_forge.diagnosis.findings import RunFacts, TrainingFinding

SURE = 3.0
"""Standard errors that count as no doubt: 1 false alarm in 700 looks at pure noise."""
SURE_OF_EXTREMES = 4.0
"""The same where the lowest or highest of many windows is looked at, which noise alone drives apart."""
FLAT_FALL = 0.05
"""A loss that has fallen by less than this share of its level is flat. Runs that learn anything fall by a tenth or more
within their first tenth; a well-tuned start on data it already knows is flat too, and that is worth knowing."""
FLAT_MIN_STEPS = 40
"""Steps after warm-up before flatness is judged: thirds of fewer are too short to average the batches out."""
FLAT_MIN_PROGRESS = 0.1
"""Share of the planned steps before it is judged: slow starts at low rates are not yet flat runs."""
START_STEPS = 5
"""Steps that show where the loss started. More would average a fast start away."""
RISE = 0.1
"""Share of its level by which a loss must have risen from its lowest to be called rising."""
DIVERGED = 1.4
"""Three of four recent steps at this many times the first two: worse than before training, not a hard batch. Batch
noise of 25 % without any learning gets there once in 1,000 looks."""
DIVERGED_WINDOW = 10
DIVERGED_MIN_STEPS = 10
LEVEL_FALL = 0.02
"""Over its second half, a loss that fell by less than this share of its level has stopped falling."""
LEVEL_MIN_STEPS = 100
"""Quarters of fewer steps cannot show 2 % at usual batch noise (5 to 10 %)."""
NUM_BLOCKS = 16
"""Blocks whose means are followed for swings: enough for several swings, few enough to average batches out."""
MIN_BLOCK_STEPS = 5
SWING = 0.1
"""Share of the level that the block means must move, up and down, to be a swing."""
ALTERNATION = -0.85
"""Correlation of successive changes of the loss: -0.5 for independent batches, -1 for a strict up and down."""
ALTERNATION_MIN_STEPS = 100
"""With fewer, independent batches reach -0.85 by chance."""
SPIKE_SIGMAS = 8.0
"""A spike stands this many robust deviations, of the logarithm, above the median of the steps before it. The deviation
itself is off by a third over so few steps, so 8 guards what 5 would if it were known."""
SPIKE_WINDOW = 30
SPIKE_MIN_BEFORE = 15
SPIKE_SHARE = 0.5
"""... and this share of that median ..."""
SPIKE_OF_START = 0.1
"""... and this share of where the loss started: near zero, any hard row doubles the loss."""
MANY_SPIKES = 3
"""One spike is a row to look at; this many are a setting to change."""
NEAR_ZERO = 0.1
"""Nats: more than 90 % probability for each target before anything was learned. No untrained answer is that certain."""
STILL_FALLING = 0.15
"""Share of the whole fall that came in the last quarter. A straight line has 0.25; a run of one time constant 0.165; of
two or more (it has settled) under 0.1."""
STILL_FALLING_LEVEL = 0.01
"""A last quarter that brought less than this share of the loss is not worth more steps."""


def near_zero_at_start(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    loss = curves.loss
    if len(loss) < START_STEPS or loss.values[:START_STEPS].mean() >= NEAR_ZERO:
        return None
    start = float(loss.values[:START_STEPS].mean())
    return TrainingFinding(
        code="near_zero_at_start",
        severity="warning",
        title="The loss was near zero before anything was learned",
        evidence=f"{start:.3g} nats over the first {START_STEPS} steps: each trained token had {np.exp(-start):.0%} "
        "probability already",
        next_action="look at what is trained (first_batch.txt, `halo-forge data show`): answers that stand in the "
        "prompt, a mask that trains only fixed text, or rows that this model was trained on before",
        first_step=int(loss.steps[0]),
        last_step=int(loss.steps[START_STEPS - 1]),
        numbers={"loss": start},
    )


def is_flat(values: Floats) -> bool:
    """Whether it is beyond doubt that the values fell by less than FLAT_FALL from their first to their last third, and
    no drop at the very start hides in the first third."""
    third = len(values) // 3
    head, tail = values[:third], values[-third:]
    small = FLAT_FALL * float(head.mean())
    fall, error = fall_between(head, tail)
    start = float(values[:START_STEPS].mean())
    start_error = (
        start * float(tail.std() / tail.mean()) / START_STEPS**0.5
    )  # its own spread would hold the drop itself
    return bool(fall + SURE * error < small and start - float(tail.mean()) - SURE * start_error < small)


def may_judge_flatness(series: Series, curves: Curves, facts: RunFacts) -> bool:
    """Enough steps after warm-up, and enough of the run."""
    warm = int(np.searchsorted(series.steps, warmup_end(curves)))
    enough = len(series) - warm >= max(FLAT_MIN_STEPS, len(series) // 3)
    return enough and curves.last_step >= FLAT_MIN_PROGRESS * (facts.num_steps or 0)


def loss_flat(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    loss = curves.loss
    if not may_judge_flatness(loss, curves, facts) or not is_flat(loss.values):
        return None
    third = len(loss) // 3
    head, tail = float(loss.values[:third].mean()), float(loss.values[-third:].mean())
    return TrainingFinding(
        code="loss_flat",
        severity="error",
        title="The loss does not fall",
        evidence=f"{head:.3g} nats over the first {third} steps, {tail:.3g} over the last {third}",
        next_action=f"raise training.learning_rate{_now(facts)} three- to tenfold; if it stays flat, look at the "
        "rows and at what of them is trained (`halo-forge data show`), and check that model.name is the model you mean",
        first_step=int(loss.steps[0]),
        last_step=int(loss.steps[-1]),
        numbers={"first_third": head, "last_third": tail},
    )


def loss_rising(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    turn = _turn_upwards(curves.loss)
    if turn is None:
        return None
    level, place = turn
    last = curves.loss.values[-DIVERGED_WINDOW:]
    start = float(curves.loss.values[:2].mean())
    has_diverged = float(np.median(last)) > start
    step = int(curves.loss.steps[place])
    return TrainingFinding(
        code="loss_rising",
        severity="error" if has_diverged else "warning",
        title="The training loss rises" + (": the run has diverged" if has_diverged else ""),
        evidence=f"from {level:.3g} nats at step {step} to {float(np.median(last)):.3g}, the median of the last "
        f"{len(last)} steps; it started at {start:.3g}",
        next_action=f"lower training.learning_rate{_now(facts)} to a third and give it more warm-up "
        "(training.warmup_ratio: 0.1)"
        + (f"; --resume a checkpoint before step {step} loses least" if place > 1 else ""),
        first_step=step,
        last_step=int(curves.loss.steps[-1]),
        numbers={"lowest": level, "last": float(np.median(last)), "start": start},
    )


def _turn_upwards(loss: Series) -> tuple[float, int] | None:
    """(level, index) from which the loss has risen beyond doubt, either above where it started or from its lowest."""
    values = loss.values
    if len(values) >= DIVERGED_MIN_STEPS:
        recent = values[max(2, len(values) - DIVERGED_WINDOW) :]
        if np.quantile(recent, 0.25) > DIVERGED * values[:2].max():
            return float(values[:2].mean()), 1
    window = max(10, len(values) // 5)
    if len(values) < 3 * window:
        return None
    stride, tail = max(1, window // 2), values[-window:]
    blocks = [values[first : first + window] for first in range(0, len(values) - 2 * window + 1, stride)]
    lowest = min(range(len(blocks)), key=lambda index: float(blocks[index].mean()))
    fall, error = fall_between(blocks[lowest], tail)
    level = float(blocks[lowest].mean())
    if -fall < max(RISE * level, SPIKE_OF_START / 2 * float(values[:START_STEPS].mean()), SURE_OF_EXTREMES * error):
        return None
    return level, lowest * stride + window - 1


def plateau(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    loss = curves.loss
    num = len(loss)
    if num < LEVEL_MIN_STEPS or curves.last_step < 0.5 * (facts.num_steps or 0) or is_flat(loss.values):
        return None
    before, after = loss.values[num // 2 : 3 * num // 4], loss.values[3 * num // 4 :]
    level = float(after.mean())
    fall, error = fall_between(before, after)
    if abs(fall) + SURE * error >= LEVEL_FALL * level or _is_validation_falling(curves, int(loss.steps[num // 2])):
        return None
    since = int(loss.steps[num // 2])
    return TrainingFinding(
        code="plateau",
        severity="note",
        title="The loss has stopped falling",
        evidence=f"{float(before.mean()):.3g} nats in the third quarter of the steps, {level:.3g} in the last",
        next_action="more steps of the same will hardly help: fewer training.num_train_epochs would do as well, and "
        "better or more varied rows, a higher training.learning_rate or a larger lora.r could bring it lower",
        first_step=since,
        last_step=int(loss.steps[-1]),
        numbers={"third_quarter": float(before.mean()), "last_quarter": level},
    )


def _is_validation_falling(curves: Curves, since: int) -> bool:
    later = curves.validation.values[curves.validation.steps >= since]
    return len(later) >= 2 and bool(later[-1] < (1 - LEVEL_FALL / 2) * later[0])


def oscillation(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    warm = int(np.searchsorted(curves.loss.steps, warmup_end(curves)))
    steps, values = curves.loss.steps[warm:], curves.loss.values[warm:]
    swings = _num_swings(values, float(curves.loss.values[:START_STEPS].mean())) if len(values) else 0
    recent = values[-2 * ALTERNATION_MIN_STEPS :]
    if swings >= 2:
        evidence = f"its mean went up and down again {swings} times by a tenth or more, beyond what batches explain"
        numbers = {"swings": float(swings)}
    elif _is_alternating(recent):
        evidence = f"over the last {len(recent)} steps nearly every rise was followed by a fall of the same size"
        numbers = {"steps": float(len(recent))}
        steps = steps[-len(recent) :]
    else:
        return None
    return TrainingFinding(
        code="oscillation",
        severity="warning",
        title="The training loss swings up and down",
        evidence=evidence,
        next_action=f"lower training.learning_rate{_now(facts)} to a half or a third; if it still swings, use more "
        "examples in each step (training.gradient_accumulation_steps)",
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        numbers=numbers,
    )


def _num_swings(values: Floats, start: float) -> int:
    """How often the block means rose and fell again (a full swing), each move larger than doubt and SWING."""
    if len(values) < NUM_BLOCKS * MIN_BLOCK_STEPS:
        return 0
    blocks = np.array_split(values, NUM_BLOCKS)
    direction, turns, extreme = -1, 0, 0  # a loss is expected to fall
    for index in range(1, len(blocks)):
        move, error = fall_between(blocks[extreme], blocks[index])
        least = max(SURE_OF_EXTREMES * error, SWING * float(blocks[extreme].mean()), SPIKE_OF_START / 2 * start)
        if -move * direction > 0 or move == 0:
            extreme = index  # further in the same direction
        elif abs(move) >= least:
            direction, turns, extreme = -direction, turns + 1, index
    return turns // 2


def _is_alternating(values: Floats) -> bool:
    if len(values) < ALTERNATION_MIN_STEPS:
        return False
    changes = np.diff(values)
    if np.abs(changes).mean() < SWING * float(values.mean()):
        return False
    return bool(np.corrcoef(changes[:-1], changes[1:])[0, 1] < ALTERNATION)


def loss_spikes(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    loss = curves.loss
    if len(loss) <= SPIKE_MIN_BEFORE:
        return None
    usual = trailing_medians(loss.values, SPIKE_WINDOW)
    start = float(loss.values[:START_STEPS].mean())
    # Batch losses are skewed: their logarithms are near normal, so deviations are counted there.
    logs = np.log(np.maximum(loss.values, SPIKE_OF_START * start / 10))
    usual_log = trailing_medians(logs, SPIKE_WINDOW)
    spread = np.concatenate([[np.nan], 1.4826 * trailing_medians(np.abs(logs - usual_log)[1:], SPIKE_WINDOW)])
    height = loss.values - usual
    with np.errstate(invalid="ignore"):
        is_spike = logs - usual_log > np.maximum(SPIKE_SIGMAS * spread, np.log1p(SPIKE_SHARE))
        is_spike &= height > SPIKE_OF_START * start
    is_spike[:SPIKE_MIN_BEFORE] = False
    places = np.flatnonzero(is_spike)
    if not len(places):
        return None
    worst = int(places[np.argmax(height[places])])
    times = "once" if len(places) == 1 else f"{len(places)} times"
    return TrainingFinding(
        code="loss_spikes",
        severity="warning" if len(places) >= MANY_SPIKES else "note",
        title=f"The training loss spiked {times}",
        evidence=f"at step {int(loss.steps[worst])} it was {loss.values[worst]:.3g} nats where {usual[worst]:.3g} was "
        "usual",
        next_action=f"look at the rows of step {int(loss.steps[worst])} (wrong answers, another language, cut texts)"
        + (f"; lower training.learning_rate{_now(facts)}" if len(places) >= MANY_SPIKES else ""),
        first_step=int(loss.steps[places[0]]),
        last_step=int(loss.steps[places[-1]]),
        numbers={"spikes": float(len(places)), "highest": float(loss.values[worst]), "usual": float(usual[worst])},
    )


def run_too_short(curves: Curves, facts: RunFacts) -> TrainingFinding | None:
    loss = curves.loss
    num = len(loss)
    if not facts.is_finished or num < FLAT_MIN_STEPS:
        return None
    before, after = loss.values[num // 2 : 3 * num // 4], loss.values[3 * num // 4 :]
    fall, error = fall_between(before, after)
    total, total_error = fall_between(loss.values[:START_STEPS], after)
    least = max(SURE * error, STILL_FALLING * (total + SURE * total_error), STILL_FALLING_LEVEL * float(after.mean()))
    if total <= 0 or fall < least:
        return None
    return TrainingFinding(
        code="run_too_short",
        severity="warning",
        title="The run ended while the loss was still falling",
        evidence=f"{float(before.mean()):.3g} nats in the third quarter of the steps, {float(after.mean()):.3g} in the "
        f"last: {fall / total:.0%} of the whole fall",
        next_action=f"train longer: training.num_train_epochs{_now_epochs(facts)}, or a higher training.learning_rate"
        f"{_now(facts)}",
        first_step=int(loss.steps[num // 2]),
        last_step=int(loss.steps[-1]),
        numbers={"third_quarter": float(before.mean()), "last_quarter": float(after.mean()), "share": fall / total},
    )


def _now(facts: RunFacts) -> str:
    return f" (now {facts.learning_rate:g})" if facts.learning_rate else ""


def _now_epochs(facts: RunFacts) -> str:
    return f" (now {facts.num_epochs:g})" if facts.num_epochs else ""
