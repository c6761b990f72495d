"""One optimizer step. Everything that decides a gradient is on this screen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from halo_forge.errors import Interrupted
from halo_forge.runs import GOES_ON
from halo_forge.train.batches import Batch
from halo_forge.train.loss import Objective
from halo_forge.train.optimizer import apply_clipped
from halo_forge.train.sharding import is_sharded, whole
from halo_forge.train.watching.source_losses import LossCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """loss is sum(weight * nll) / sum(weight) over the whole step and all processes, in nats, whatever else is asked of
    the model beside its targets. `applied` is False if the loss or the gradient was not finite: then no weight and no
    optimizer state has changed. `by_source` is empty where sources have no names."""

    loss: float
    grad_norm: float
    learning_rate: float
    num_supervised_tokens: int
    num_tokens: int
    time_s: float
    applied: bool
    by_source: dict[str, dict[str, float | int]]


def train_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    max_grad_norm: float | None,
    check: Callable[[], None] = lambda: None,
) -> StepResult:
    """Accumulate the gradient of all micro-batches of this process, join it with the other processes', and step once.

    The normaliser is known before the first forward pass: each micro-batch's loss is divided by the weight of the
    whole step, never by its own. A mean of means would weigh sparsely supervised micro-batches more (transformers
    #34191). Micro-batch counts may differ between processes, and a process may have none. `check` may raise Interrupted
    before any micro-batch to give the step up (with several processes: before the first, and then in all of them);
    nothing has changed then but gradients. max_grad_norm None means no clipping.
    """
    started = time.perf_counter()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = parameters[0].device
    step_weight, num_supervised, num_tokens = agree_on_step(batches, device, check)

    objective.refresh()
    counter = LossCounter()
    for batch in batches:
        if not dist.is_initialized():  # one process that leaves a step alone lets the others wait for it
            check()
        batch = batch.to(device)
        share, nll = objective.nll(batch, batch.weights / step_weight)
        share.backward()
        counter.add(batch, nll)

    sum_gradients_over_processes(parameters)
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    losses, norm = counter.over_processes(), float(whole(grad_norm))

    applied = math.isfinite(losses.mean) and math.isfinite(norm)
    if applied:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        apply_clipped(optimizer, clip_factor(norm, max_grad_norm))
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        loss=losses.mean,
        grad_norm=norm,
        learning_rate=learning_rate,
        num_supervised_tokens=int(num_supervised),
        num_tokens=int(num_tokens),
        time_s=time.perf_counter() - started,
        applied=applied,
        by_source=losses.by_source(),
    )


def agree_on_step(
    batches: Sequence[Batch], device: torch.device, check: Callable[[], None]
) -> tuple[float, float, float]:
    """(weight, supervised tokens, tokens) of the step over all processes. Where one of several is told to stop, raises
    Interrupted in all."""
    told_to_stop = None
    try:
        if dist.is_initialized():
            check()
    except Interrupted as told:
        told_to_stop = told
    weight, num_supervised, num_tokens, num_told = _over_processes(
        [
            sum(float(batch.weights.sum()) for batch in batches),
            sum(len(batch.targets) for batch in batches),
            sum(batch.num_tokens for batch in batches),
            told_to_stop is not None,
        ],
        device,
    )
    if num_told:
        raise told_to_stop or Interrupted("another process of this run was told to stop", fix=GOES_ON)
    return weight, num_supervised, num_tokens


def clip_factor(norm: float, max_norm: float | None) -> float:
    """What gradients of this norm are multiplied with, as by torch's clip_grad_norm_."""
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))


def _over_processes(values: Sequence[float | torch.Tensor], device: torch.device) -> list[float]:
    """Each value summed over all processes, in float64."""
    total = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if dist.is_initialized():
        total = total.to(device)
        dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def sum_gradients_over_processes(parameters: Sequence[torch.nn.Parameter]) -> None:
    """One all-reduce over all gradients; a process without a micro-batch contributes zeros instead of hanging. Those of
    sharded weights are summed already."""
    if not dist.is_initialized() or is_sharded(parameters):
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).float() for p in parameters])
    dist.all_reduce(flat)
    for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = summed.view_as(parameter).to(parameter.dtype)
