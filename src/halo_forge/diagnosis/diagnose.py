"""All rules over one run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from halo_forge.diagnosis import loss_rules, step_rules
from halo_forge.diagnosis.curves import Curves
from halo_forge.diagnosis.findings import SEVERITIES, RunFacts, TrainingFinding

Rule = Callable[[Curves, RunFacts], TrainingFinding | None]
RULES: tuple[Rule, ...] = (
    step_rules.nonfinite_steps,
    loss_rules.near_zero_at_start,
    loss_rules.loss_flat,
    loss_rules.loss_rising,
    loss_rules.oscillation,
    loss_rules.loss_spikes,
    loss_rules.plateau,
    loss_rules.run_too_short,
    step_rules.gradient_explosion,
    step_rules.vanishing_gradient,
    step_rules.few_supervised_tokens,
    step_rules.warmup_unfinished,
    step_rules.overfitting,
    step_rules.validation_gap,
)
SAID_BY = {
    "plateau": {"overfitting", "loss_rising", "oscillation"},
    "run_too_short": {"overfitting"},
    "validation_gap": {"overfitting"},
    "loss_flat": {"vanishing_gradient"},
}
"""A finding is left out where one of these says the same, or the opposite with better evidence."""


def diagnose(curves: Curves, facts: RunFacts) -> list[TrainingFinding]:
    """What is wrong with the run as far as it has come: errors first, then by step. A pure function."""
    with np.errstate(all="ignore"):  # losses of 1e300, or of 0, make a comparison false, not a warning
        found = [finding for rule in RULES if (finding := rule(curves, facts)) is not None]
        found += step_rules.flat_sources(curves, facts)
    codes = {finding.code for finding in found}
    told = [finding for finding in found if not SAID_BY.get(finding.code, set()) & codes]
    return sorted(told, key=lambda finding: (SEVERITIES.index(finding.severity), finding.first_step, finding.code))
