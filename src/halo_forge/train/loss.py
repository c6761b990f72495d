"""The loss of one micro-batch: weighted negative log likelihood at supervised positions only.

Axes: S supervised positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from halo_forge.train.attention import forward_inputs
from halo_forge.train.batches import Batch

ROWS_PER_CHUNK = 128
"""Rows of logits handled at once: the float32 copies of a chunk stay small while products stay efficient."""


def weighted_nll_sum(model: PreTrainedModel, batch: Batch, *, supervised_logits_only: bool = True) -> torch.Tensor:
    """sum over supervised tokens of weight * -log p(target), in nats; a float32 scalar with a gradient.

    With supervised_logits_only the model computes its vocabulary logits at the S target positions alone (through its
    own `logits_to_keep`, so that every family's logit scaling and soft-capping is kept).
    """
    if supervised_logits_only:
        logits = model(**forward_inputs(batch), logits_to_keep=batch.target_positions, use_cache=False).logits[0]
    else:
        logits = model(**forward_inputs(batch), use_cache=False).logits[0][batch.target_positions]
    return _WeightedNll.apply(logits, batch.targets, batch.weights)


class _WeightedNll(torch.autograd.Function):
    """Cross entropy that computes its gradient while the logits are at hand.

    The gradient (softmax - one_hot) * weight is linear in the upstream scalar, so the backward pass is one product
    and no [S, V] float32 tensor is ever kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for start in range(0, len(targets), ROWS_PER_CHUNK):
            rows = slice(start, start + ROWS_PER_CHUNK)
            log_probs = logits[rows].float().log_softmax(-1)
            picked = targets[rows, None]
            total -= (log_probs.gather(1, picked)[:, 0] * weights[rows]).sum()
            probs = log_probs.exp_()
            probs.scatter_add_(1, picked, torch.full_like(picked, -1, dtype=probs.dtype))
            gradient[rows] = probs.mul_(weights[rows, None])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None
