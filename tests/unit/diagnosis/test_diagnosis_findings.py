"""Each finding on a curve that has the fault, with its step range; the same curve without the fault gives none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halo_forge.diagnosis import RunFacts, TrainingFinding, curves_of, diagnose, finding_of, metrics_lines
from synthetic_curves import Run, codes_while_training, falling, findings_of, healthy_run, noisy, schedule

CURVES = Path(__file__).parents[2] / "golden" / "loss_curves.json"
REAL_RUN = Path(__file__).parents[2] / "golden" / "demo_metrics.jsonl"


def only(findings: list[TrainingFinding]) -> TrainingFinding:
    assert len(findings) == 1, [f"{finding.code}: {finding.evidence}" for finding in findings]
    return findings[0]


def test_a_healthy_run_has_none() -> None:
    assert codes_while_training(healthy_run()) == set()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_frozen_curves_of_real_training_have_none(method: str) -> None:
    losses = json.loads(CURVES.read_text())["curves"][method]
    lines = [{"kind": "train", "step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    for done in range(1, len(lines) + 1):
        facts = RunFacts(num_steps=len(lines), is_finished=done == len(lines))
        assert diagnose(curves_of(lines[:done]), facts) == []


def test_a_real_run_of_a_real_model_has_none_at_any_step() -> None:
    """The demo: 64 steps of a 135M model, from 2.1 to 0.02 nats, with gradient norms between 1.9 and 0.1."""
    lines = metrics_lines(REAL_RUN)
    assert len(lines) == 67
    for done in range(1, len(lines) + 1):
        facts = RunFacts(num_steps=64, is_finished=done == len(lines), learning_rate=5e-4)
        assert diagnose(curves_of(lines[:done]), facts) == []


# ---------------------------------------------------------------------------------------------- the loss


def flat_run(num_steps: int = 300, noise: float = 0.06) -> Run:
    run = healthy_run(num_steps, mean=np.full(num_steps, 2.0), noise=noise)
    return replace(run, grad_norm=np.full(num_steps, 1.0))


def test_a_flat_loss() -> None:
    finding = only(findings_of(flat_run(), is_finished=False))
    assert (finding.code, finding.severity) == ("loss_flat", "error")
    assert (finding.first_step, finding.last_step) == (1, 300)
    assert "training.learning_rate (now 0.0002)" in finding.next_action
    assert finding.numbers["first_third"] == pytest.approx(2.0, rel=0.02)


def test_a_flat_loss_is_told_early_but_not_in_warm_up() -> None:
    run = flat_run(num_steps=1000, noise=0.02)
    assert findings_of(run, is_finished=False, up_to=90) == []  # 50 steps of warm-up, 40 after
    assert only(findings_of(run, is_finished=False, up_to=160)).code == "loss_flat"


def test_a_loss_that_falls_slowly_is_not_flat() -> None:
    """A tenth in 400 steps, hardly to be seen in single steps."""
    assert "loss_flat" not in {finding.code for finding in findings_of(healthy_run(mean=np.linspace(2.0, 1.8, 400)))}


def test_a_fast_start_that_is_long_over_is_not_flat() -> None:
    """5 steps of falling, 3,000 at the floor: the thirds are equal, and the run has learned everything."""
    mean = np.concatenate([np.linspace(2, 0.3, 5), np.full(2995, 0.3)])
    told = codes_while_training(healthy_run(3000, mean=mean, noise=0.1))
    assert "loss_flat" not in told
    assert told <= {"plateau"}


def test_a_rising_loss_and_where_it_turned() -> None:
    at = np.arange(400)
    mean = np.where(at < 200, falling(400, 2.2, 0.9, 0.2), falling(400, 2.2, 0.9, 0.2)[200] * (1 + (at - 200) / 250))
    finding = only(findings_of(healthy_run(mean=mean, num_validations=1)))
    assert (finding.code, finding.severity) == ("loss_rising", "warning")
    assert 150 <= finding.first_step <= 260
    diverged = np.where(at < 200, mean, mean * np.exp((at - 200) / 100))
    worse = next(f for f in findings_of(healthy_run(mean=diverged, num_validations=1)) if f.code == "loss_rising")
    assert worse.severity == "error"
    assert "diverged" in worse.title


def test_a_loss_that_has_stopped_falling() -> None:
    mean = np.maximum(falling(4000, 2.2, 0.9, 0.05), 0.9)
    mean[1000:] = 0.9
    finding = only(findings_of(healthy_run(4000, mean=mean)))
    assert (finding.code, finding.severity, finding.first_step) == ("plateau", "note", 2001)
    still = {f.code for f in findings_of(healthy_run(4000, mean=mean, num_validations=8), up_to=1800)}
    assert "plateau" not in still  # less than half of the run is no plateau yet


def test_a_plateau_is_not_told_while_validation_still_falls() -> None:
    mean = np.full(4000, 0.9)
    mean[:1000] = np.linspace(2.2, 0.9, 1000)
    run = healthy_run(4000, mean=mean)
    better = {step: 1.5 - step / 8000 for step in run.validation}
    assert findings_of(replace(run, validation=better)) == []


def test_slow_swings() -> None:
    at = np.arange(600)
    mean = falling(600, 2.2, 0.9, 0.2) * (1 + 0.35 * np.sin(at / 30))
    finding = next(f for f in findings_of(healthy_run(600, mean=mean)) if f.code == "oscillation")
    assert finding.numbers["swings"] >= 2
    assert finding.first_step == 30  # the first step after warm-up


def test_every_other_step() -> None:
    run = healthy_run(300)
    finding = next(
        f for f in findings_of(run.with_loss(run.loss * (1 + 0.3 * (-1) ** np.arange(300)))) if f.code == "oscillation"
    )
    assert "nearly every rise" in finding.evidence


@pytest.mark.parametrize(("places", "severity"), [([150], "note"), ([120, 180, 240, 300], "warning")])
def test_spikes(places: list[int], severity: str) -> None:
    run = healthy_run()
    run.loss[places] *= 4
    finding = only(findings_of(run))
    assert (finding.code, finding.severity) == ("loss_spikes", severity)
    assert (finding.first_step, finding.last_step) == (places[0] + 1, places[-1] + 1)
    assert finding.numbers["spikes"] == len(places)


def test_a_loss_near_zero_from_the_start() -> None:
    finding = findings_of(healthy_run(mean=falling(400, 0.05, 0.02, 0.2)), up_to=10, is_finished=False)
    assert only(finding).code == "near_zero_at_start"
    assert only(finding).last_step == 5


def test_a_run_that_ended_too_early() -> None:
    mean = np.linspace(2.2, 1.4, 400)
    finding = only(findings_of(healthy_run(mean=mean, num_validations=2)))
    assert finding.code == "run_too_short"
    assert finding.numbers["share"] > 0.15
    assert "training.num_train_epochs (now 2)" in finding.next_action
    assert findings_of(healthy_run(mean=mean, num_validations=2), is_finished=False, up_to=399) == []


# ---------------------------------------------------------------------------------------------- steps


def test_steps_that_are_not_finite() -> None:
    run = healthy_run()
    run.loss[[9, 10]] = np.nan
    finding = only(findings_of(run))
    assert (finding.code, finding.severity, finding.first_step, finding.last_step) == (
        "nonfinite_steps",
        "warning",
        10,
        11,
    )
    run.loss[20:30] = np.inf
    assert only(findings_of(run)).severity == "error"


@pytest.mark.parametrize(("num", "severity"), [(1, "warning"), (4, "error")])
def test_an_exploding_gradient(num: int, severity: str) -> None:
    run = healthy_run()
    run.grad_norm[200 : 200 + num] = 40.0
    finding = only(findings_of(run))
    assert (finding.code, finding.severity, finding.first_step) == ("gradient_explosion", severity, 201)


@pytest.mark.parametrize("scale", [1e-5, 0.0])
def test_a_vanished_gradient(scale: float) -> None:
    run = flat_run()
    run.grad_norm[100:] *= scale
    finding = only(findings_of(run, is_finished=False))
    assert (finding.code, finding.severity) == ("vanishing_gradient", "error")
    assert finding.numbers["now"] == scale


def test_a_converged_run_has_small_gradients_and_no_finding() -> None:
    run = healthy_run(mean=falling(400, 2.2, 0.02, 0.1))
    run.grad_norm[200:] *= 1e-4
    assert "vanishing_gradient" not in codes_while_training(run)


def test_few_supervised_tokens() -> None:
    run = replace(healthy_run(), tokens=np.full(400, 20.0))
    finding = only(findings_of(run))
    assert finding.code == "few_supervised_tokens"
    assert finding.numbers["median_tokens"] == 20


def test_a_run_that_ends_in_warm_up() -> None:
    run = replace(healthy_run(), rate=np.linspace(1e-6, 2e-4, 400))
    assert only(findings_of(run)).code == "warmup_unfinished"
    assert findings_of(run, is_finished=False, up_to=399) == []


# ---------------------------------------------------------------------------------------------- validation


def test_overfitting_names_the_step_to_go_back_to() -> None:
    run = healthy_run(num_validations=8)
    rising = {50: 1.7, 100: 1.3, 150: 1.2, 200: 1.21, 250: 1.25, 300: 1.31, 350: 1.36, 400: 1.42}
    finding = only(findings_of(replace(run, validation=rising)))
    assert (finding.code, finding.curve, finding.first_step, finding.last_step) == (
        "overfitting",
        "validation",
        150,
        400,
    )
    assert "go back to step 150" in finding.next_action


def test_one_worse_validation_is_not_overfitting() -> None:
    run = healthy_run(num_validations=8)
    bump = {50: 1.7, 100: 1.3, 150: 1.1, 200: 0.98, 250: 0.94, 300: 0.91, 350: 0.88, 400: 0.95}
    assert findings_of(replace(run, validation=bump)) == []


def test_a_validation_loss_that_creeps_up_by_less_than_answers_show_is_not_overfitting() -> None:
    run = healthy_run(num_validations=8)
    creeping = {step: 0.9 + 0.00002 * max(0, step - 150) + 0.002 * max(0, 150 - step) for step in run.validation}
    assert findings_of(replace(run, validation=creeping)) == []


def test_validation_and_training_rising_together_are_not_overfitting() -> None:
    at = np.arange(400)
    mean = 1.5 * np.exp(at / 400)
    told = {f.code for f in findings_of(healthy_run(mean=mean))}
    assert "overfitting" not in told
    assert "loss_rising" in told


def test_a_gap_between_training_and_validation() -> None:
    run = healthy_run()
    apart = {step: loss + 1.0 for step, loss in run.validation.items()}
    last = max(apart)
    apart[last] = apart[sorted(apart)[-2]] + 0.001
    finding = only(findings_of(replace(run, validation=apart)))
    assert (finding.code, finding.first_step) == ("validation_gap", last)


# ---------------------------------------------------------------------------------------------- sources


def two_sources(second: np.ndarray) -> Run:
    run = healthy_run()
    rng = np.random.default_rng(5)
    return replace(
        run, by_source={"good": noisy(falling(400, 2.2, 0.9, 0.2), 0.05, rng), "other": noisy(second, 0.05, rng)}
    )


def test_a_source_that_teaches_nothing_while_the_other_falls() -> None:
    finding = only(findings_of(two_sources(np.full(400, 3.0))))
    assert (finding.code, finding.source) == ("source_flat", "other")
    assert "good fell" in finding.evidence
    assert findings_of(two_sources(falling(400, 3.0, 2.0, 0.3))) == []


def test_sources_that_are_all_flat_are_the_runs_fault_not_theirs() -> None:
    run = replace(flat_run(), by_source={name: flat_run().loss for name in ("one", "two")})
    assert {f.code for f in findings_of(run, is_finished=False)} == {"loss_flat"}


# ---------------------------------------------------------------------------------------------- records


def test_a_finding_survives_its_json_form() -> None:
    for finding in findings_of(two_sources(np.full(400, 3.0))):
        assert finding_of({"kind": "finding", **json.loads(json.dumps(finding.to_dict()))}) == finding
    with pytest.raises((KeyError, ValueError)):
        finding_of({"kind": "finding", "code": "loss_flat"})


def test_hostile_lines_are_passed_over() -> None:
    lines = [
        {"kind": "train", "step": "1", "loss": 1.0},
        {"kind": "train", "step": True, "loss": 1.0},
        {"kind": "train", "step": 1, "loss": "much", "by_source": 3},
        {"kind": "train", "step": 2, "loss": 1.0, "grad_norm": None, "by_source": {"a": 1, "b": {"loss": "x"}}},
        {"kind": "train", "step": 2, "loss": 9.0},
        {"step": 3},
        {},
    ]
    curves = curves_of(lines)
    assert curves.loss.values.tolist() == [1.0]
    assert diagnose(curves, RunFacts()) != []  # step 1 had no number for a loss
    assert curves.nonfinite_steps == (1,)


def test_no_lines_at_all() -> None:
    assert diagnose(curves_of([]), RunFacts(is_finished=True)) == []


def test_the_schedule_of_these_tests_is_one() -> None:
    rates = schedule(100, 1e-3, 0.1)
    assert rates.max() == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=0.01)
