"""AdamW and the learning-rate schedule. The rate is a closed form of the step: there is no scheduler state to lose."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from halo_forge.config.schema import TrainingSection
from halo_forge.models.quantised import require_bitsandbytes
from halo_forge.models.quiet import quiet_bitsandbytes
from halo_forge.train.sharding import is_sharded


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up over `warmup_steps`, then cosine, linear or constant down to `min_ratio` of the peak.

    Decay to about a tenth of the peak instead of zero: seed 004 and common practice.
    """

    kind: Literal["cosine", "linear", "constant"]
    peak: float
    num_steps: int
    warmup_steps: int
    min_ratio: float

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        progress = (step - self.warmup_steps) / max(1, self.num_steps - 1 - self.warmup_steps)
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if self.kind == "cosine" else 1 - progress
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * shape)


def make_schedule(training: TrainingSection, peak: float, num_steps: int) -> Schedule:
    warmup = training.warmup_steps
    if warmup is None:
        warmup = math.ceil(training.warmup_ratio * num_steps)
    return Schedule(
        kind=training.lr_scheduler,
        peak=peak,
        num_steps=num_steps,
        warmup_steps=min(warmup, num_steps),
        min_ratio=training.min_lr_ratio,
    )


def make_optimizer(parameters: Iterable[torch.nn.Parameter], training: TrainingSection) -> torch.optim.Optimizer:
    """The configured optimizer over the trainable parameters; weight decay on matrices only. Raises UsageError where
    bitsandbytes is needed and not installed."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adam = {"betas": (training.adam_beta1, training.adam_beta2), "eps": training.adam_epsilon}
    # The rate is set from the schedule before every step.
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True, **adam)  # type: ignore[arg-type]
    if training.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.0)
    is_cpu = trainable[0].device.type == "cpu"
    return _of_bitsandbytes(training.optimizer, is_cpu)(groups, lr=0.0, **adam)  # type: ignore[no-any-return]


def _of_bitsandbytes(name: str, is_cpu: bool) -> Any:
    """The class. Without a GPU there is no other memory to page to: then the unpaged one of the same numbers."""
    require_bitsandbytes(f"training.optimizer: {name}", "training.optimizer: adamw")
    with quiet_bitsandbytes():
        optimizers = importlib.import_module("bitsandbytes.optim")
    names = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}
    return getattr(optimizers, names[name].removeprefix("Paged") if is_cpu else names[name])


@torch.no_grad()
def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's moments of every weight that has none yet, as zeros, before the first step instead of in it: what a run
    needs is held before it begins, in one piece, and a weight that no gradient reaches in some step has them, too."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if parameter not in optimizer.state:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def moments(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """What the optimizer remembers of a weight, as tensors by name."""
    state = optimizer.state.get(parameter, {})
    return {
        name: value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in state.items()
    }


@torch.no_grad()
def pull_to_start(
    parameters: Sequence[torch.nn.Parameter], start: Sequence[torch.Tensor], learning_rate: float, strength: float
) -> None:
    """w <- w + rate * strength * (start - w): L2-SP (Xuhong et al. 2018), decoupled as AdamW's weight decay is."""
    torch._foreach_lerp_(list(parameters), list(start), learning_rate * strength)


def apply_clipped(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """One optimizer step on gradients times `factor`. torch's fused kernels scale while they read the gradient, which
    saves a pass over all of them; it is the hook that gradient scalers use."""
    if factor == 1.0:
        optimizer.step()
        return
    device = optimizer.param_groups[0]["params"][0].device
    if not optimizer.param_groups[0].get("fused") or is_sharded(optimizer.param_groups[0]["params"]):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
        optimizer.step()
        return
    optimizer.grad_scale = torch.tensor(1 / factor, device=device)  # type: ignore[attr-defined]
    optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        optimizer.grad_scale = optimizer.found_inf = None  # type: ignore[attr-defined]
