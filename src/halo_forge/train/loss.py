"""The loss of one micro-batch: weighted negative log likelihood at supervised positions only.

Axes: U positions that predict something, S targets, V vocabulary.

Two ways to the same number: through the written-out layers of models/fast where they cover the model, else through
transformers' own forward pass under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from halo_forge.domains.media import Media
from halo_forge.models.adapters import base_model_view
from halo_forge.models.fast.decoder import FastDecoder
from halo_forge.models.fast.head import NOTHING, Softening, Targets, logits_to_gradient
from halo_forge.train.attention import forward_inputs
from halo_forge.train.batches import Batch


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step minimises.

    nll      (batch, weights [S]) -> (sum of weight * -log p(target) in nats, a scalar with a gradient; -log p of each
             target [S], without one)
    refresh  to be called after weights changed, before the next `nll`
    """

    nll: Callable[[Batch, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    refresh: Callable[[], None] = lambda: None


def fast_objective(
    decoder: FastDecoder, *, supervised_logits_only: bool = True, softening: Softening = NOTHING
) -> Objective:
    def nll(batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions, rows = _all_positions(batch) if not supervised_logits_only else (batch.positions, batch.rows)
        ids, places = batch.input_ids[0], batch.position_ids[0]
        asked = softening if torch.is_grad_enabled() else NOTHING
        # Each position of a plain batch predicts one target; counts are shapes, which no device is asked for.
        one_each = supervised_logits_only and len(batch.positions) == len(batch.targets)
        targets = Targets(rows, batch.targets, weights, one_each)
        return decoder.nll(ids, places, batch.row(), positions, targets, asked)

    return Objective(nll, decoder.refresh)


def model_objective(
    model: PreTrainedModel | PeftModel,
    precision: str,
    *,
    supervised_logits_only: bool = True,
    softening: Softening = NOTHING,
    media: Media | None = None,
) -> Objective:
    """The model computes its vocabulary logits at the U positions alone (through its own `logits_to_keep`, so that
    every family's logit scaling and soft-capping is kept), or at all of them. A model with eyes or ears computes them
    as its domain does."""

    def logits_of(batch: Batch) -> torch.Tensor:
        with autocast(batch.input_ids.device, precision):
            if media is not None:
                return media.logits(model, batch)
            if supervised_logits_only:
                only = model(**forward_inputs(batch), logits_to_keep=batch.positions, use_cache=False)
                return only.logits[0]  # type: ignore[no-any-return]
            return model(**forward_inputs(batch), use_cache=False).logits[0][batch.positions]  # type: ignore[no-any-return]

    def nll(batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked, base_logits = softening if torch.is_grad_enabled() else NOTHING, None
        if asked.kl_to_base:
            with torch.no_grad(), base_model_view(model):
                base_logits = logits_of(batch)
        logits = logits_of(batch)
        return LogitsNll.apply(logits, Targets(batch.rows, batch.targets, weights), asked, base_logits)  # type: ignore[no-any-return]

    return Objective(nll)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _all_positions(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(batch.input_ids.shape[1], device=batch.rows.device), batch.positions[batch.rows]


class LogitsNll(torch.autograd.Function):
    """As `HeadNll`, from logits [U, V] that somebody else computed. The gradient is made while they are at hand, block
    by block, so that no [U, V] float32 tensor is ever kept."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: Targets,
        softening: Softening = NOTHING,
        base_logits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = logits.detach().clone()
        wide = torch.promote_types(logits.dtype, torch.float32)
        loss, nll = logits_to_gradient(gradient, targets.of_type(wide), softening, base_logits)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), *[None] * 3
