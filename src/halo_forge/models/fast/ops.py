"""The pieces of a decoder layer with gradients written out: fewer passes over memory and less kept than autograd does.

Axes: N tokens, D width, O outputs of a projection, F inner width of the MLP, R ranks of all adapters of a projection.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


class RmsNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019), from the residual stream into the compute type.

    x [N, D] in any type, weight [D]; returns [N, D] of `dtype`. Computed in float32, or float64 for float64 input.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.linalg.vecdot(wide, wide)[:, None].div_(x.shape[1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed = wide * scale
        return normed.mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide = x.to(scale.dtype)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (wide * scale).mul_(upstream).sum(0).to(weight.dtype)
        d_normed = upstream * weight.to(scale.dtype)
        along = torch.linalg.vecdot(d_normed, wide)[:, None] * scale.pow(3).div_(-x.shape[1])
        return d_normed.mul_(scale).addcmul_(wide, along).to(x.dtype), d_weight, None, None


def opened_gate(gate_up: torch.Tensor) -> torch.Tensor:
    """silu of the first half of a joint projection [N, 2 F]."""
    return F.silu(gate_up.chunk(2, 1)[0])


def swiglu_gradient(gate_up: torch.Tensor, opened: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """[N, 2 F]: the gradient of silu(gate) * up (Shazeer 2020) from that of its output [N, F]; opened is silu(gate)."""
    gate, up = gate_up.chunk(2, 1)
    if torch.compiler.is_compiling():  # which fuses the two halves, and cannot trace a write into one of them
        return torch.cat([torch.ops.aten.silu_backward(upstream * up, gate), upstream * opened], 1)
    gradient = torch.empty_like(gate_up)
    d_gate, d_up = gradient.chunk(2, 1)
    torch.mul(upstream, opened, out=d_up)
    torch.mul(upstream, up, out=d_gate)
    torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
    return gradient


class JointLinear(torch.autograd.Function):
    """Several linear layers of one input as one product: x W^T + bias, with W's gradient in the masters' type.

    x [N, D], joint [O, D] in the compute type, bias [O] or None; `masters` are the trained weights that `joint` is a
    copy of, one under the other (none where they are frozen).
    gated     x is a joint projection [N, 2 D], and what the layers see its SwiGLU [N, D]: made again in the backward
              pass, it need not be kept
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gated: bool, joint: torch.Tensor, bias: torch.Tensor | None, *masters: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x if masters or gated else None, joint)
        ctx.gated = gated
        ctx.sizes = [len(master) for master in masters]
        ctx.dtypes = [master.dtype for master in masters]
        ctx.bias_dtype = bias.dtype if bias is not None else None
        seen, _ = _seen(x, gated)
        return F.linear(seen, joint, bias.to(x.dtype) if bias is not None else None)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, joint = ctx.saved_tensors
        seen, opened = _seen(x, ctx.gated)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = _past_the_gate(upstream @ joint, x, opened)
        d_bias = upstream.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[3] else None
        d_masters: list[torch.Tensor | None] = []
        if ctx.sizes:
            d_joint = upstream.T @ seen
            d_masters = [part.to(dtype) for part, dtype in zip(d_joint.split(ctx.sizes), ctx.dtypes, strict=True)]
        return d_x, None, None, d_bias, *d_masters


class LoraLinear(torch.autograd.Function):
    """Several frozen linear layers of one input, each with a LoRA adapter (Hu et al. 2021).

    y = x W^T + bias + (dropped(x) A^T) B^T with A [R, D] all adapters' down-projections one under the other; each
    up-projection B, scaled, writes into its own columns of y. Dropout draws one mask for the input, where peft draws
    one per adapter.

    gated     as of JointLinear
    kept      bool as what the layers see, False where dropout drops (`kept_by_dropout`), or None; drawn outside, so
              that compiled code draws nothing and an interrupted run draws the same
    adapters  A and B of each layer in turn, masters in their own type; empty ones for layers without
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gated: bool,
        joint: torch.Tensor,
        bias: torch.Tensor | None,
        scales: tuple[float, ...],
        dropout: float,
        kept: torch.Tensor | None,
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        down = torch.cat([a.to(x.dtype) for a in adapters[::2]])
        ups = [(b * scale).to(x.dtype) for b, scale in zip(adapters[1::2], scales, strict=True)]
        seen, _ = _seen(x, gated)
        inner = _dropped(seen, kept, dropout) @ down.T
        output = F.linear(seen, joint, bias.to(x.dtype) if bias is not None else None)
        ctx.outputs, ctx.ranks = [len(up) for up in ups], [up.shape[1] for up in ups]
        for part, own, up in zip(output.split(ctx.outputs, 1), inner.split(ctx.ranks, 1), ups, strict=True):
            part.addmm_(own, up.T)
        ctx.save_for_backward(x, joint, down, inner, kept, *ups)
        ctx.gated, ctx.scales, ctx.dropout = gated, scales, dropout
        ctx.dtypes = [adapter.dtype for adapter in adapters]
        return output

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, joint, down, inner, kept, *ups = ctx.saved_tensors
        seen, opened = _seen(x, ctx.gated)
        parts = upstream.split(ctx.outputs, 1)
        d_inner = torch.cat([part @ up for part, up in zip(parts, ups, strict=True)], 1)
        d_down = d_inner.T @ _dropped(seen, kept, ctx.dropout)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = upstream @ joint
            if kept is None:
                d_x.addmm_(d_inner, down)
            else:
                d_x.add_(_dropped(d_inner @ down, kept, ctx.dropout))
            d_x = _past_the_gate(d_x, x, opened)
        d_adapters: list[torch.Tensor | None] = []
        for d_a, own, part, scale, dtype in zip(
            d_down.split(ctx.ranks), inner.split(ctx.ranks, 1), parts, ctx.scales, ctx.dtypes[::2], strict=True
        ):
            d_adapters += [d_a.to(dtype), (own.T @ part).T.contiguous().to(dtype) * scale]
        return d_x, *[None] * 6, *d_adapters


def _seen(x: torch.Tensor, gated: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(what the layers see of x, the opened gate or None)"""
    if not gated:
        return x, None
    opened = opened_gate(x)
    return opened * x.chunk(2, 1)[1], opened


def _past_the_gate(gradient: torch.Tensor, x: torch.Tensor, opened: torch.Tensor | None) -> torch.Tensor:
    return gradient if opened is None else swiglu_gradient(x, opened, gradient)


def kept_by_dropout(shape: torch.Size, dropout: float, device: torch.device) -> torch.Tensor:
    """bool of a shape, True with probability 1 - dropout, to a 65,536th: four of one random word. torch's bernoulli_ on
    a CPU made a LoRA step 44 % slower, this makes it 11 % slower (measured)."""
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return (words.view(torch.int16)[:count] >= round(dropout * 2**16) - 2**15).view(shape)


def _dropped(x: torch.Tensor, kept: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return x if kept is None else (x * kept).div_(1 - dropout)
