"""Attention over packed rows on a GPU: torch's varlen kernel for documents, FlexAttention for shared prefixes.

Axes: H query heads, K key/value heads, N tokens of the row, E head size.

Which kernel runs is decided by `kernel_of`; what none covers goes through the written-out products of attention.py,
which run on any device. None of them asks the device for a number.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F

from halo_forge.models.fast.row import PackedRow

Kernel = Literal["blocks", "varlen", "flex"]
FLEX_BLOCK = 128
"""Tokens of a square of FlexAttention's mask; rows are filled up to a multiple of it."""


def kernel_of(row: PackedRow, value: torch.Tensor, num_heads: int, size: int, *, flex: bool) -> Kernel:
    """Which kernel computes a row whose values are of this type and place. flex: FlexAttention may be compiled; without
    that it would hold all N x N scores."""
    if not value.is_cuda or value.dtype not in (torch.bfloat16, torch.float16):
        return "blocks"
    if row.lengths:
        return "varlen" if load_varlen() is not None and _is_addressable(row, num_heads, size) else "blocks"
    return "flex" if flex and row.last_readers is not None else "blocks"


def _is_addressable(row: PackedRow, num_heads: int, size: int) -> bool:
    """FlashAttention 2 addresses the float32 gradient of padded queries by int32: beyond that it writes elsewhere."""
    padded_tokens = sum(row.lengths) + 128 * len(row.lengths)
    return padded_tokens * num_heads * (-(-size // 32) * 32) < 2**31


# ------------------------------------------------------------------------------------------ documents end to end

Varlen = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float], torch.Tensor]


@cache
def load_varlen() -> Varlen | None:
    """Causal attention of (query [N, H, E], key, value [N, K, E], starts int32 [D + 1], longest, scale) -> [N, H, E]:
    torch's kernel, where this torch has the signature we call (it changed between 2.10 and 2.11), else that of the
    flash_attn package, else None."""
    try:
        torch_varlen = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        torch_varlen = None
    if torch_varlen and {"window_size", "scale", "enable_gqa"} <= set(inspect.signature(torch_varlen).parameters):

        def of_torch(
            query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int,
            scale: float,
        ) -> torch.Tensor:  # fmt: skip
            return torch_varlen(  # type: ignore[no-any-return]
                query, key, value, starts, starts, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True
            )

        return of_torch
    try:
        flash: Any = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):
        return None

    def of_flash_attn(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int, scale: float
    ) -> torch.Tensor:
        return flash(  # type: ignore[no-any-return]
            query, key, value, starts, starts, longest, longest, softmax_scale=scale, causal=True
        )

    return of_flash_attn


def varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow, scale: float) -> torch.Tensor:
    """query [N, H, E], key and value [N, K, E] -> [N, H, E]."""
    kernel = load_varlen()
    assert kernel is not None
    assert row.starts is not None
    return kernel(query.contiguous(), key.contiguous(), value.contiguous(), row.starts, max(row.lengths), scale)


# ------------------------------------------------------------------------------------------ shared prefixes


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow, scale: float) -> torch.Tensor:
    """query [N, H, E], key and value [N, K, E] -> [N, H, E]."""
    assert row.last_readers is not None
    if row.block_mask is None:
        row.block_mask = block_mask(row.last_readers)
    num_tokens = len(query)
    missing = -num_tokens % FLEX_BLOCK
    padded = [F.pad(heads.transpose(0, 1), (0, 0, 0, missing))[None] for heads in (query, key, value)]
    attended = flex_attention_function()(*padded, block_mask=row.block_mask, scale=scale, enable_gqa=True)
    return attended[0, :, :num_tokens].transpose(0, 1)  # type: ignore[no-any-return]


@cache
def flex_attention_function() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)  # type: ignore[no-any-return]


def block_mask(last_readers: torch.Tensor) -> Any:
    """FlexAttention's mask of `key <= query <= last_readers[key]`, made where `last_readers` int32 [N] lies, without
    the N x N mask that torch's own construction makes. Tokens that fill the row up see themselves."""
    from torch.nn.attention.flex_attention import BlockMask

    num_blocks = -(-len(last_readers) // FLEX_BLOCK)
    places = torch.arange(num_blocks * FLEX_BLOCK, dtype=torch.int32, device=last_readers.device)
    readers = torch.cat([last_readers, places[len(last_readers) :]])
    first, last = readers.view(num_blocks, FLEX_BLOCK).aminmax(dim=1)
    number = torch.arange(num_blocks, device=readers.device)
    is_earlier = number[:, None] > number  # [queries, keys], as the two below
    is_whole = is_earlier & (first >= (number[:, None] + 1) * FLEX_BLOCK - 1)
    is_partial = (is_earlier & (last >= number[:, None] * FLEX_BLOCK) & ~is_whole) | (number[:, None] == number)

    def may_see(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query <= readers[key])

    return BlockMask.from_kv_blocks(*_listed(is_partial), *_listed(is_whole), BLOCK_SIZE=FLEX_BLOCK, mask_mod=may_see)


def _listed(squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(how many of each row of squares [Q, K] are set [1, 1, Q], their columns first [1, 1, Q, K])"""
    columns = squares.int().argsort(dim=1, descending=True, stable=True)
    return squares.sum(1, dtype=torch.int32)[None, None], columns.int()[None, None]


# ------------------------------------------------------------------------------------------ rotary heads


def rotated_heads(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int, num_key_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query [N, H, E], key and value [N, K, E] in the type of qkv [N, (H + 2 K) * E]; the rotary embedding in float32.

    Plain operations, for a compiler to put into one pass; `RotaryAttention` has them written out."""
    heads = qkv.view(len(qkv), num_heads + 2 * num_key_heads, -1)
    wide = heads[:, : num_heads + num_key_heads].to(torch.promote_types(qkv.dtype, cos.dtype))
    one, other = wide.chunk(2, -1)
    turned = torch.cat([-other, one], -1)
    rotated = (wide * cos[:, None] + turned * sin[:, None]).to(qkv.dtype)
    return rotated[:, :num_heads], rotated[:, num_heads:], heads[:, num_heads + num_key_heads :]
