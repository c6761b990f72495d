"""Loss curves of known shape as lines of metrics.jsonl, healthy unless a fault is put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halo_forge.diagnosis import RunFacts, TrainingFinding, curves_of, diagnose

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One synthetic run. Arrays are [num_steps]; validation maps a step to its loss; by_source a name to losses."""

    loss: Floats
    rate: Floats
    grad_norm: Floats
    tokens: Floats
    validation: Mapping[int, float]
    by_source: Mapping[str, Floats]

    @property
    def num_steps(self) -> int:
        return len(self.loss)

    def with_loss(self, loss: Floats) -> Run:
        return replace(self, loss=loss)

    def lines(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for index in range(self.num_steps):
            line = {
                "kind": "train", "step": index + 1, "epoch": (index + 1) / self.num_steps,
                "loss": float(self.loss[index]), "learning_rate": float(self.rate[index]),
                "grad_norm": float(self.grad_norm[index]), "num_supervised_tokens": int(self.tokens[index]),
                "num_tokens": 3 * int(self.tokens[index]),
                "time_s": 0.1, "applied": bool(np.isfinite(self.loss[index])),
            }  # fmt: skip
            if self.by_source:
                line["by_source"] = {
                    name: {"loss": float(losses[index]), "num_supervised_tokens": 100}
                    for name, losses in self.by_source.items()
                }
            lines.append(line)
            if index + 1 in self.validation:
                lines.append({"kind": "validation", "step": index + 1, "loss": self.validation[index + 1]})
        return lines


def noisy(mean: Floats, noise: float, rng: np.random.Generator) -> Floats:
    """Batch losses around a mean: log-normal, `noise` is their relative spread."""
    return mean * np.exp(noise * rng.standard_normal(len(mean)) - noise**2 / 2)


def falling(num_steps: int, start: float, floor: float, settle: float) -> Floats:
    """Exponential from start to floor with time constant settle * num_steps, still creeping down by 15 % at the end."""
    at = np.arange(num_steps) / num_steps
    return (floor + (start - floor) * np.exp(-at / settle)) * (1 - 0.15 * at)


def power_law(num_steps: int, start: float, floor: float, exponent: float) -> Floats:
    return floor + (start - floor) * (1 + np.arange(num_steps)) ** -exponent


def schedule(num_steps: int, peak: float, warmup: float) -> Floats:
    """Linear warm-up, then cosine to a tenth."""
    num_warm = max(1, round(warmup * num_steps))
    at = np.clip((np.arange(num_steps) - num_warm) / max(1, num_steps - num_warm), 0, 1)
    return peak * np.minimum((np.arange(num_steps) + 1) / num_warm, 0.1 + 0.45 * (1 + np.cos(np.pi * at)))


def healthy_run(
    num_steps: int = 400,
    *,
    mean: Floats | None = None,
    noise: float = 0.06,
    grad_noise: float = 0.3,
    validation_noise: float = 0.003,
    num_validations: int = 8,
    warmup: float = 0.05,
    seed: int = 0,
) -> Run:
    rng = np.random.default_rng(seed)
    mean = falling(num_steps, 2.2, 0.9, 0.2) if mean is None else mean
    every = max(1, num_steps // num_validations)
    validation = {
        step: float(mean[step - 1] * 1.05 * (1 + validation_noise * rng.standard_normal()))
        for step in range(every, num_steps + 1, every)
    }
    return Run(
        loss=noisy(mean, noise, rng),
        rate=schedule(num_steps, 2e-4, warmup),
        grad_norm=noisy(mean / mean[0] + 0.1, grad_noise, rng),
        tokens=np.full(num_steps, 300.0) + rng.integers(-40, 40, num_steps),
        validation=validation,
        by_source={},
    )


def findings_of(run: Run, *, is_finished: bool = True, up_to: int | None = None) -> list[TrainingFinding]:
    lines = [line for line in run.lines() if up_to is None or line["step"] <= up_to]
    facts = RunFacts(num_steps=run.num_steps, is_finished=is_finished, learning_rate=2e-4, method="lora", num_epochs=2)
    return diagnose(curves_of(lines), facts)


def codes_while_training(
    run: Run, moments: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
) -> set[str]:
    """Everything that would have been told at any of these shares of the run, or at its end."""
    told = {finding.code for finding in findings_of(run)}
    for share in moments:
        told |= {f.code for f in findings_of(run, is_finished=False, up_to=round(share * run.num_steps))}
    return told
