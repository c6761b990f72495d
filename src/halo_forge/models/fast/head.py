"""Vocabulary logits, their cross entropy and both gradients in one pass over the supervised rows.

Axes: U rows (positions that predict something), S targets (a shared prefix predicts several first tokens), D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

MAX_LOGITS_BYTES = 2**27
"""Logits held at once, in the compute type. The weight's gradient is summed chunk by chunk: few and large ones."""
ROWS_PER_BLOCK = 16
"""Rows of float32 copies handled at once: they stay in the second-level cache (measured)."""


@dataclass(frozen=True, slots=True)
class Softening:
    """What is asked of the distribution at a supervised position beside its target.

    label_smoothing  e: the target has probability 1 - e, all tokens share e (Szegedy et al. 2016)
    kl_to_base       k: k * KL(base || model) is added, in nats (Li and Hoiem 2016, learning without forgetting)
    """

    label_smoothing: float = 0.0
    kl_to_base: float = 0.0


NOTHING = Softening()


@dataclass(frozen=True, slots=True)
class Targets:
    """rows     int64 [S], ascending: which of the U rows predicts the target
    tokens   int64 [S]
    weights  float32 [S]
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor

    def part(self, rows: slice, targets: slice) -> Targets:
        """The targets of some rows, counted from the first of them."""
        return Targets(self.rows[targets] - rows.start, self.tokens[targets], self.weights[targets])

    def of_type(self, dtype: torch.dtype) -> Targets:
        return Targets(self.rows, self.tokens, self.weights.to(dtype))


class HeadNll(torch.autograd.Function):
    """sum over targets of weight * -log softmax(hidden W^T)[target], in nats; with it, without a gradient, each
    target's own nll. The gradient is made while the logits are there: three products, no [U, V] float32 tensor.

    hidden   [U, D] in the compute type           head     [V, D] in the compute type
    master   the trained weight that `head` is a copy of, or None where it is frozen
    with_gradient  False where nobody will ask for one: a third of the work
    softening, base_hidden  what else is asked; base_hidden [U, D] is the base model's, for kl_to_base
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        master: torch.Tensor | None,
        targets: Targets,
        with_gradient: bool = True,
        softening: Softening = NOTHING,
        base_hidden: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets = targets.of_type(torch.promote_types(hidden.dtype, torch.float32))
        total, nll = targets.weights.new_zeros(()), torch.empty_like(targets.weights)
        d_hidden: torch.Tensor | None = torch.empty_like(hidden) if with_gradient else None
        d_head: torch.Tensor | None = None
        chunk = max(ROWS_PER_BLOCK, MAX_LOGITS_BYTES // (len(head) * hidden.element_size()))
        for part, mine in _pieces(len(hidden), targets.rows, chunk):
            logits = hidden[part] @ head.T
            base_logits = base_hidden[part] @ head.T if base_hidden is not None else None
            loss, nll[mine] = logits_to_gradient(logits, targets.part(part, mine), softening, base_logits)
            total += loss
            if d_hidden is None:
                continue
            torch.mm(logits, head, out=d_hidden[part])
            if master is not None and ctx.needs_input_grad[2]:
                d_part = logits.T @ hidden[part]
                is_all = part.stop - part.start == len(hidden)
                d_head = d_part if is_all else _added(d_head, d_part, master.dtype)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtype = master.dtype if master is not None else None
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        if d_head is not None:
            d_head = (d_head * upstream.to(d_head.dtype)).to(ctx.dtype)
        return d_hidden * upstream.to(d_hidden.dtype), None, d_head, *[None] * 4


def _added(total: torch.Tensor | None, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return part.to(dtype) if total is None else total.add_(part)


def _pieces(num_rows: int, rows: torch.Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """(rows, the targets that they predict), `size` rows at a time."""
    edges = [*range(0, num_rows, size), num_rows]
    first_targets = torch.searchsorted(rows, torch.tensor(edges, device=rows.device)).tolist()
    for (start, end), (first, last) in zip(pairwise(edges), pairwise(first_targets), strict=True):
        yield slice(start, end), slice(first, last)


def logits_to_gradient(
    logits: torch.Tensor,
    targets: Targets,
    softening: Softening = NOTHING,
    base_logits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace logits [U, V] by d loss / d logits, in place; returns (loss, nll of each target [S])."""
    rows, weights = targets.rows, targets.weights
    nll, loss = torch.empty_like(weights), weights.new_zeros(())
    row_weight = weights.new_zeros(len(logits)).index_add_(0, rows, weights)
    smoothing, kl = softening.label_smoothing, softening.kl_to_base
    for part, mine in _pieces(len(logits), rows, ROWS_PER_BLOCK):
        block, row, weight = logits[part].to(weights.dtype), rows[mine] - part.start, row_weight[part, None]
        picked = block[row, targets.tokens[mine]]
        highest = block.amax(1)
        mean = block.mean(1) if smoothing else highest
        base = base_logits[part].to(weights.dtype).softmax(1) if base_logits is not None else None
        if base is not None:
            # KL(base || model) = sum base * (log base - logits) + log of the model's sum
            loss += kl * (weight[:, 0] * (torch.xlogy(base, base) - base * block).sum(1)).sum()
        total = block.sub_(highest[:, None]).exp_().sum(1)
        log_total = total.log() + highest
        nll[mine] = log_total[row] - picked
        soft = weight[:, 0] * (smoothing * (log_total - mean) + (kl * log_total if base is not None else 0.0))
        loss += (1 - smoothing) * (nll[mine] * weights[mine]).sum() + soft.sum()
        block.mul_(weight * (1 + (kl if base is not None else 0.0)) / total[:, None])
        block.index_put_((row, targets.tokens[mine]), (smoothing - 1) * weights[mine], accumulate=True)
        if smoothing:
            block.sub_(weight * (smoothing / block.shape[1]))
        if base is not None:
            block.addcmul_(base, weight, value=-kl)
        logits[part] = block
    return loss, nll
