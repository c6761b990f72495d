"""Vocabulary logits, their cross entropy and both gradients in one pass over the supervised rows.

Axes: U rows (positions that predict something), S targets (a shared prefix predicts several first tokens), D width,
V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

MAX_LOGITS_BYTES = 2**27
"""Logits held at once, in the compute type. The weight's gradient is summed chunk by chunk: few and large ones."""
ROWS_PER_BLOCK = 16
"""Rows of float32 copies handled at once: they stay in the second-level cache (measured)."""


class HeadNll(torch.autograd.Function):
    """sum over targets of weight * -log softmax(hidden W^T)[target], in nats; with it, without a gradient, each
    target's own nll. The gradient is made while the logits are there: three products, no [U, V] float32 tensor.

    hidden   [U, D] in the compute type           head     [V, D] in the compute type
    master   the trained weight that `head` is a copy of, or None where it is frozen
    with_gradient  False where nobody will ask for one: a third of the work
    rows     int64 [S], ascending: which row predicts the target; targets int64 [S]; weights float32 [S]
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        master: torch.Tensor | None,
        rows: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        with_gradient: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        nll = torch.empty(len(targets), dtype=wide, device=hidden.device)
        d_hidden: torch.Tensor | None = torch.empty_like(hidden) if with_gradient else None
        d_head: torch.Tensor | None = None
        chunk = max(ROWS_PER_BLOCK, MAX_LOGITS_BYTES // (len(head) * hidden.element_size()))
        edges = [*range(0, len(hidden), chunk), len(hidden)]
        first_targets = torch.searchsorted(rows, torch.tensor(edges, device=rows.device)).tolist()
        for start, end, first, last in zip(edges, edges[1:], first_targets, first_targets[1:], strict=False):
            logits = hidden[start:end] @ head.T
            mine = slice(first, last)
            nll[mine] = logits_to_gradient(logits, rows[mine] - start, targets[mine], weights[mine].to(wide))
            if d_hidden is None:
                continue
            torch.mm(logits, head, out=d_hidden[start:end])
            if master is not None and ctx.needs_input_grad[2]:
                part = logits.T @ hidden[start:end]
                d_head = part if end - start == len(hidden) else _added(d_head, part, master.dtype)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtype = master.dtype if master is not None else None
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        if d_head is not None:
            d_head = (d_head * upstream.to(d_head.dtype)).to(ctx.dtype)
        return d_hidden * upstream.to(d_hidden.dtype), None, d_head, None, None, None, None


def _added(total: torch.Tensor | None, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return part.to(dtype) if total is None else total.add_(part)


def logits_to_gradient(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Replace logits [U, V] by d loss / d logits, in place; returns the nll of each target [S]."""
    nll = torch.empty_like(weights)
    row_weight = weights.new_zeros(len(logits)).index_add_(0, rows, weights)
    edges = [*range(0, len(logits), ROWS_PER_BLOCK), len(logits)]
    first_targets = torch.searchsorted(rows, torch.tensor(edges, device=rows.device)).tolist()
    for start, end, first, last in zip(edges, edges[1:], first_targets, first_targets[1:], strict=False):
        mine = slice(first, last)
        block, row = logits[start:end].to(weights.dtype), rows[mine] - start
        picked = block[row, targets[mine]]
        highest = block.amax(1)
        total = block.sub_(highest[:, None]).exp_().sum(1)
        nll[mine] = (total.log() + highest)[row] - picked
        block.mul_((row_weight[start:end] / total)[:, None])
        block.index_put_((row, targets[mine]), -weights[mine], accumulate=True)
        logits[start:end] = block
    return nll
