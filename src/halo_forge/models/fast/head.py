"""Vocabulary logits, their cross entropy and both gradients in one pass over the supervised rows.

Axes: U rows (positions that predict something), S targets (a shared prefix predicts several first tokens), D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

MAX_LOGITS_BYTES = 2**27
"""Logits held at once, in the compute type. The weight's gradient is summed chunk by chunk: few and large ones."""
ROWS_PER_BLOCK = 16
"""Rows of float32 copies handled at once: they stay in the second-level cache (measured on a CPU)."""
GPU_LOGITS_BYTES = 2**29
"""The same on a GPU, which has no such cache to stay in and pays for every small product."""
RowGradient = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


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
    one_each every row predicts one target: `rows` counts 0, 1, 2, ...
    to_gradient  a compiled `one_target_each_to_gradient` for such rows, where there is one
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor
    one_each: bool = False
    to_gradient: RowGradient | None = None

    def part(self, rows: slice, targets: slice) -> Targets:
        """The targets of some rows, counted from the first of them."""
        return Targets(self.rows[targets] - rows.start, self.tokens[targets], self.weights[targets])

    def within(self, rows: slice) -> tuple[Targets, torch.Tensor]:
        """(all targets, those of other rows moved to one of these and without weight; bool [S]: which are of these).
        What `part` gives to one who does not know how many there are, and does not ask the device."""
        is_here = (self.rows >= rows.start) & (self.rows < rows.stop)
        places = (self.rows - rows.start).clamp(0, rows.stop - rows.start - 1)
        return Targets(places, self.tokens, self.weights * is_here), is_here

    def of_type(self, dtype: torch.dtype) -> Targets:
        return replace(self, weights=self.weights.to(dtype))


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
        on_gpu = _is_on_gpu(hidden)
        most_bytes = GPU_LOGITS_BYTES if on_gpu else MAX_LOGITS_BYTES
        chunk = max(ROWS_PER_BLOCK, most_bytes // (len(head) * hidden.element_size()))
        pieces = _row_pieces(len(hidden), chunk) if on_gpu else _pieces(len(hidden), targets.rows, chunk)
        room = hidden.new_empty(min(chunk, len(hidden)), len(head))  # for one piece: two would live at once
        for part, mine in pieces:
            logits = torch.mm(hidden[part], head.T, out=room[: part.stop - part.start])
            base_logits = base_hidden[part] @ head.T if base_hidden is not None else None
            if not on_gpu:
                loss, nll[mine] = logits_to_gradient(logits, targets.part(part, mine), softening, base_logits)
            elif targets.one_each and targets.to_gradient is not None and softening == NOTHING:
                loss, nll[part], logits = targets.to_gradient(logits, targets.tokens[part], targets.weights[part])
            else:
                here, is_here = targets.within(part)
                loss, found = logits_to_gradient_at_once(logits, here, softening, base_logits)
                nll = torch.where(is_here, found, nll)
            total += loss
            if d_hidden is None:
                continue
            torch.mm(logits, head, out=d_hidden[part])
            if master is not None and ctx.needs_input_grad[2]:
                is_all = part.stop - part.start == len(hidden)
                d_head = _with_product(d_head, logits.T, hidden[part], logits.dtype if is_all else master.dtype)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtype = master.dtype if master is not None else None
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        if d_head is not None:
            d_head = _times(d_head, upstream).to(ctx.dtype)
        return _times(d_hidden, upstream), None, d_head, *[None] * 4


def _with_product(
    total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """total + left right, in place, without a second matrix of its size where the types allow it."""
    if total is None:
        return (left @ right).to(dtype)
    return total.addmm_(left, right) if dtype == left.dtype else total.add_(left @ right)


def _times(gradient: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """A training step asks for the gradient of the loss itself: times 1 would be a copy, at the peak of memory."""
    if not _is_on_gpu(gradient) and upstream == 1:
        return gradient
    return gradient * upstream.to(gradient.dtype)


def _pieces(num_rows: int, rows: torch.Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """(rows, the targets that they predict), `size` rows at a time."""
    edges = [*range(0, num_rows, size), num_rows]
    first_targets = torch.searchsorted(rows, torch.tensor(edges, device=rows.device)).tolist()
    for (start, end), (first, last) in zip(pairwise(edges), pairwise(first_targets), strict=True):
        yield slice(start, end), slice(first, last)


def _row_pieces(num_rows: int, size: int) -> Iterator[tuple[slice, slice]]:
    """(rows, all targets): how many targets a piece has is not asked, the answer would have to be waited for."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows)), slice(None)


def _is_on_gpu(hidden: torch.Tensor) -> bool:
    return hidden.is_cuda


def one_target_each_to_gradient(
    logits: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, nll [U], d loss / d logits) of logits [U, V] where row u predicts tokens[u]: for a compiler, which makes
    one pass to sum and one to write of it. Uncompiled it would hold several float32 copies."""
    wide = logits.to(weights.dtype)
    log_total = wide.logsumexp(1)
    nll = log_total - wide.gather(1, tokens[:, None])[:, 0]
    is_target = torch.arange(logits.shape[1], device=logits.device) == tokens[:, None]
    gradient = ((wide - log_total[:, None]).exp() - is_target.to(wide.dtype)) * weights[:, None]
    return (nll * weights).sum(), nll, gradient.to(logits.dtype)


def logits_to_gradient_at_once(
    logits: torch.Tensor,
    targets: Targets,
    softening: Softening = NOTHING,
    base_logits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `logits_to_gradient`, all rows at once: for a device on which many small passes cost more than memory."""
    rows, tokens, weights = targets.rows, targets.tokens, targets.weights
    smoothing, kl = softening.label_smoothing, softening.kl_to_base if base_logits is not None else 0.0
    weight = weights.new_zeros(len(logits)).index_add_(0, rows, weights)[:, None]
    log_model = logits.log_softmax(1, dtype=weights.dtype)
    nll = -log_model[rows, tokens]
    loss = (1 - smoothing) * (nll * weights).sum()
    if smoothing:
        loss -= smoothing * (weight * log_model.mean(1, keepdim=True)).sum()
    base = base_logits.softmax(1, dtype=weights.dtype) if base_logits is not None else None
    if base is not None:
        loss += kl * (weight * (torch.xlogy(base, base) - base * log_model)).sum()
    gradient = log_model.exp_().mul_(weight * (1 + kl))
    gradient.index_put_((rows, tokens), (smoothing - 1) * weights, accumulate=True)
    if smoothing:
        gradient.sub_(weight * (smoothing / logits.shape[1]))
    if base is not None:
        gradient.addcmul_(base, weight, value=-kl)
    logits.copy_(gradient)
    return loss, nll


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
        own, row, weight = logits[part], rows[mine] - part.start, row_weight[part, None]
        block = own.to(weights.dtype)
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
        if block is not own:  # float32 logits are worked on where they lie
            own.copy_(block)
    return loss, nll
