"""One optimizer step. Everything that decides a gradient is on this screen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from halo_forge.train.batches import Batch
from halo_forge.train.loss import weighted_nll_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """loss is sum(weight * nll) / sum(weight) over the whole step and all processes, in nats. `applied` is False if
    the loss or the gradient was not finite: then no weight and no optimizer state has changed."""

    loss: float
    grad_norm: float
    learning_rate: float
    num_supervised_tokens: int
    num_tokens: int
    time_s: float
    applied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """max_grad_norm None = no clipping. precision is the compute type; master weights stay as they are."""

    max_grad_norm: float | None
    precision: str
    supervised_logits_only: bool


def train_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    settings: StepSettings,
    check: Callable[[], None] = lambda: None,
) -> StepResult:
    """Accumulate the gradient of all micro-batches of this process, join it with the other processes', and step once.

    The normaliser is known before the first forward pass: each micro-batch's loss is divided by the weight of the
    whole step, never by its own. A mean of means would weigh sparsely supervised micro-batches more (transformers
    #34191). Micro-batch counts may differ between processes, and a process may have none. `check` may raise before any
    micro-batch to give the step up; nothing has changed then but gradients.
    """
    started = time.perf_counter()
    device = next(model.parameters()).device
    totals = torch.tensor(
        [
            [sum(float(b.weights.sum()) for b in batches), sum(len(b.targets) for b in batches)],
            [sum(b.num_tokens for b in batches), 0.0],
        ],
        dtype=torch.float64,
    )
    step_weight, num_supervised, num_tokens, _ = _sum_over_processes(totals, device).flatten().tolist()

    loss = torch.zeros((), device=device)
    for batch in batches:
        check()
        with autocast(device, settings.precision):
            nll = weighted_nll_sum(model, batch.to(device), supervised_logits_only=settings.supervised_logits_only)
            share = nll / step_weight
        share.backward()
        loss += share.detach()

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sum_gradients_over_processes(parameters)
    limit = settings.max_grad_norm if settings.max_grad_norm is not None else math.inf
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    mean_loss = float(_sum_over_processes(loss.double(), device))

    applied = math.isfinite(mean_loss) and math.isfinite(grad_norm)
    if applied:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        loss=mean_loss,
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        num_supervised_tokens=int(num_supervised),
        num_tokens=int(num_tokens),
        time_s=time.perf_counter() - started,
        applied=applied,
    )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _sum_over_processes(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not dist.is_initialized():
        return value
    value = value.to(device)
    dist.all_reduce(value)
    return value.cpu()


def sum_gradients_over_processes(parameters: Sequence[torch.nn.Parameter]) -> None:
    """One all-reduce over all gradients; a process without a micro-batch contributes zeros instead of hanging."""
    if not dist.is_initialized():
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).float() for p in parameters])
    dist.all_reduce(flat)
    for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = summed.view_as(parameter).to(parameter.dtype)
