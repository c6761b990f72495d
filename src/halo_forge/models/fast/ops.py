"""The pieces of a decoder layer with gradients written out: fewer passes over memory and less kept than autograd does.

Axes: N tokens, D width, O outputs of a projection, F inner width of the MLP, R ranks of all adapters of a projection.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional as F


def rms_scale(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean(x^2) + eps) of each row of x [N, D], as [N, 1] in float32, or float64 for float64 input."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.linalg.vecdot(wide, wide)[:, None].div_(x.shape[1]).add_(eps).rsqrt_()


def rms_normed(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """weight * x * scale (Zhang and Sennrich 2019) [N, D], computed in the scale's type."""
    return (x.to(scale.dtype) * scale).mul_(weight).to(dtype)


def rms_norm_gradient(
    upstream: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, for_weight: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of x and, if asked for, of the weight from that of what is normed."""
    wide = x.to(scale.dtype)
    d_weight = (wide * scale).mul_(upstream).sum(0).to(weight.dtype) if for_weight else None
    d_normed = upstream * weight.to(scale.dtype)
    along = torch.linalg.vecdot(d_normed, wide)[:, None] * scale.pow(3).div_(-x.shape[1])
    return d_normed.mul_(scale).addcmul_(wide, along).to(x.dtype), d_weight


class RmsNorm(torch.autograd.Function):
    """The norm by itself: x [N, D] in any type, weight [D]; returns [N, D] of `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        scale = rms_scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return rms_normed(x, weight, scale, dtype)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *rms_norm_gradient(upstream, *ctx.saved_tensors, ctx.needs_input_grad[1]), None, None


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


class Before(NamedTuple):
    """What stands between the input x of a projection and what its linear layers see. It is made again in the backward
    pass, so that x alone is kept.

    nothing  x [N, D] is what they see
    norm     x [N, D] is the residual stream; they see its RMS norm with `eps`, in the type of their weight
    gate     x [N, 2 D] is a joint projection; they see its SwiGLU [N, D]
    """

    kind: Literal["nothing", "norm", "gate"] = "nothing"
    eps: float = 0.0


class AdapterOptions(NamedTuple):
    """The scale of each layer's adapter; dropout of all of them."""

    scales: tuple[float, ...]
    dropout: float = 0.0


def _helper(x: torch.Tensor, before: Before) -> torch.Tensor | None:
    """What `_seen` and `_past` both need: the norm's scale [N, 1] (small: kept), silu of the gate [N, D] (not kept)."""
    if before.kind == "nothing":
        return None
    return rms_scale(x, before.eps) if before.kind == "norm" else F.silu(x.chunk(2, 1)[0])


def _recalled(x: torch.Tensor, before: Before, scale: torch.Tensor | None) -> torch.Tensor | None:
    """The helper, in the backward pass."""
    return scale if before.kind != "gate" else _helper(x, before)


def _seen(x: torch.Tensor, norm: torch.Tensor | None, helper: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    if helper is None:
        return x
    return helper * x.chunk(2, 1)[1] if norm is None else rms_normed(x, norm, helper, dtype)


def _past(
    gradient: torch.Tensor, x: torch.Tensor, norm: torch.Tensor | None, helper: torch.Tensor | None, for_norm: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of x and of the norm's weight from that of what the layers see."""
    if helper is None:
        return gradient, None
    if norm is None:
        return swiglu_gradient(x, helper, gradient), None
    return rms_norm_gradient(gradient, x, norm, helper, for_norm)


class JointLinear(torch.autograd.Function):
    """Several linear layers of one input as one product: seen W^T + bias, with W's gradient in the masters' type.

    x, before, norm  the input [N, ...] and what stands before the layers, with the norm's weight [D] if it does
    joint [O, D] in the compute type, bias [O] or None; `masters` are the trained weights that `joint` is a copy of, one
    under the other (none where they are frozen)
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        before: Before,
        norm: torch.Tensor | None,
        joint: torch.Tensor,
        bias: torch.Tensor | None,
        *masters: torch.Tensor,
    ) -> torch.Tensor:
        helper = _helper(x, before)
        scale = helper if before.kind == "norm" else None
        ctx.save_for_backward(x if masters or before.kind != "nothing" else None, norm, scale, joint)
        ctx.before = before
        ctx.sizes = [len(master) for master in masters]
        ctx.dtypes = [master.dtype for master in masters]
        ctx.bias_dtype = bias.dtype if bias is not None else None
        seen = _seen(x, norm, helper, joint.dtype)
        return F.linear(seen, joint, bias.to(seen.dtype) if bias is not None else None)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, norm, scale, joint = ctx.saved_tensors
        helper = _recalled(x, ctx.before, scale)
        d_x = d_norm = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            d_x, d_norm = _past(upstream @ joint, x, norm, helper, ctx.needs_input_grad[2])
        d_bias = upstream.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[4] else None
        d_masters: list[torch.Tensor | None] = []
        if ctx.sizes:
            d_joint = upstream.T @ _seen(x, norm, helper, joint.dtype)
            d_masters = [part.to(dtype) for part, dtype in zip(d_joint.split(ctx.sizes), ctx.dtypes, strict=True)]
        return d_x, None, d_norm, None, d_bias, *d_masters


class LoraLinear(torch.autograd.Function):
    """Several frozen linear layers of one input, each with a LoRA adapter (Hu et al. 2021).

    y = seen W^T + bias + (dropped(seen) A^T) B^T with A [R, D] all adapters' down-projections one under the other; each
    up-projection B, scaled, writes into its own columns of y. Dropout draws one mask for the input, where peft draws
    one per adapter.

    x, before, norm, joint, bias  as of JointLinear
    kept      bool as what the layers see, False where dropout drops (`kept_by_dropout`), or None; drawn outside, so
              that compiled code draws nothing and an interrupted run draws the same
    adapters  A and B of each layer in turn, masters in their own type; empty ones for layers without
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        before: Before,
        norm: torch.Tensor | None,
        joint: torch.Tensor,
        bias: torch.Tensor | None,
        options: AdapterOptions,
        kept: torch.Tensor | None,
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        down = torch.cat([a.to(joint.dtype) for a in adapters[::2]])
        ups = [(b * scale).to(joint.dtype) for b, scale in zip(adapters[1::2], options.scales, strict=True)]
        helper = _helper(x, before)
        seen = _seen(x, norm, helper, joint.dtype)
        inner = _dropped(seen, kept, options.dropout) @ down.T
        output = F.linear(seen, joint, bias.to(seen.dtype) if bias is not None else None)
        ctx.outputs, ctx.ranks = [len(up) for up in ups], [up.shape[1] for up in ups]
        for part, own, up in zip(output.split(ctx.outputs, 1), inner.split(ctx.ranks, 1), ups, strict=True):
            part.addmm_(own, up.T)
        ctx.save_for_backward(x, norm, helper if before.kind == "norm" else None, joint, down, inner, kept, *ups)
        ctx.before, (ctx.scales, ctx.dropout) = before, options
        ctx.dtypes = [adapter.dtype for adapter in adapters]
        return output

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, norm, scale, joint, down, inner, kept, *ups = ctx.saved_tensors
        helper = _recalled(x, ctx.before, scale)
        parts = upstream.split(ctx.outputs, 1)
        d_inner = torch.cat([part @ up for part, up in zip(parts, ups, strict=True)], 1)
        d_down = d_inner.T @ _dropped(_seen(x, norm, helper, joint.dtype), kept, ctx.dropout)
        d_x = d_norm = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            d_seen = upstream @ joint
            if kept is None:
                d_seen.addmm_(d_inner, down)
            else:
                d_seen.add_(_dropped(d_inner @ down, kept, ctx.dropout))
            d_x, d_norm = _past(d_seen, x, norm, helper, ctx.needs_input_grad[2])
        d_adapters: list[torch.Tensor | None] = []
        for d_a, own, part, scale, dtype in zip(
            d_down.split(ctx.ranks), inner.split(ctx.ranks, 1), parts, ctx.scales, ctx.dtypes[::2], strict=True
        ):
            d_adapters += [d_a.to(dtype), (own.T @ part).T.contiguous().to(dtype) * scale]
        return d_x, None, d_norm, *[None] * 4, *d_adapters


def kept_by_dropout(shape: torch.Size, dropout: float, device: torch.device) -> torch.Tensor:
    """bool of a shape, True with probability 1 - dropout, to a 65,536th: four of one random word. torch's bernoulli_ on
    a CPU made a LoRA step 44 % slower, this makes it 11 % slower (measured)."""
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return (words.view(torch.int16)[:count] >= round(dropout * 2**16) - 2**15).view(shape)


def _dropped(x: torch.Tensor, kept: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return x if kept is None else (x * kept).div_(1 - dropout)
