"""Causal attention over packed documents and shared prefixes, forward and backward written out for CPU.

Axes: N tokens of a row, H query heads, K key/value heads, G = H / K, E head size; T queries and S keys of one block.

Every block of queries is one batched product over the K key heads with its G query heads side by side, so that
grouped-query attention copies no key. No mask over the row exists: a block multiplies with the keys it may see, and
only the square of its own positions is masked. Scores are rounded to the compute type, softmax runs in float32.

Attention weights are not kept: the backward pass makes them again, block by block, in one room that stays in the cache
(FlashAttention's idea, Dao et al. 2022). Kept ones were the sixth part of all activations and saved no time: they
had to be written to memory and read back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch

BLOCK_TOKENS = 128
"""Queries of one block: smaller ones multiply less above the diagonal, larger ones in fewer products (measured)."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [start, end) see the keys of `spans`, in order; the last end - start keys are their own, causally."""

    start: int
    end: int
    spans: tuple[tuple[int, int], ...]


def attention_blocks(
    starts: Sequence[int], ends: Sequence[int], seen: Sequence[tuple[tuple[int, int], ...]]
) -> tuple[Block, ...]:
    """Blocks of segments [start, end) of a row, each of which sees the spans of `seen` before its own tokens."""
    blocks = []
    for start, end, before in zip(starts, ends, seen, strict=True):
        pieces = -(-(end - start) // BLOCK_TOKENS)
        edges = [start + (end - start) * piece // pieces for piece in range(pieces + 1)]
        for first, last in pairwise(edges):
            blocks.append(Block(first, last, _joined((*before, (start, last)))))
    return tuple(blocks)


def document_blocks(lengths: Sequence[int]) -> tuple[Block, ...]:
    """Blocks of documents that lie end to end and see nothing but themselves."""
    ends = list(accumulate(lengths))
    return attention_blocks([end - length for end, length in zip(ends, lengths, strict=True)], ends, [()] * len(ends))


def _joined(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)


@lru_cache(maxsize=256)
def _future(num_queries: int, num_groups: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[T * G, T]: 0 where key <= query, else -inf."""
    mask = torch.full((num_queries, num_queries), float("-inf"), dtype=dtype, device=device).triu(1)
    return mask.repeat_interleave(num_groups, 0)


# ------------------------------------------------------------------------------------- attention of rotated heads


def _weights_room(query: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """Memory for the attention weights of any one of the blocks."""
    pairs = [(block.end - block.start) * sum(end - start for start, end in block.spans) for block in blocks]
    return query.new_empty(max(pairs, default=0) * query.shape[0] * query.shape[2])


def _block_weights(
    query: torch.Tensor, key: torch.Tensor, block: Block, room: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(queries of the block [K, T * G, E], their weights on its keys [K, T * G, S], which lie in the room)"""
    num_key_heads, _, groups, size = query.shape
    num_queries = block.end - block.start
    rows = query[:, block.start : block.end].reshape(num_key_heads, num_queries * groups, size)
    keys = _gathered(key, block.spans)
    shape = (num_key_heads, rows.shape[1], keys.shape[1])
    scores = room[: math.prod(shape)].view(shape)
    torch.bmm(rows, keys.transpose(1, 2), out=scores)
    scores[:, :, -num_queries:] += _future(num_queries, groups, query.dtype, query.device)
    return rows, torch.softmax(scores, -1, out=scores)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """Output [N, K, G, E] of scaled queries [K, N, G, E] and keys and values [K, N, E]."""
    num_key_heads, num_tokens, groups, size = query.shape
    output = query.new_empty(num_tokens, num_key_heads, groups, size)
    room = _weights_room(query, blocks)
    for block in blocks:
        _, weights = _block_weights(query, key, block, room)
        attended = torch.bmm(weights, _gathered(value, block.spans))
        output[block.start : block.end] = attended.view(num_key_heads, -1, groups, size).transpose(0, 1)
    return output


def _attend_backward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, d_output: torch.Tensor, blocks: Sequence[Block]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query [K, N, G, E], key and value [K, N, E]. Keys collect from many blocks, in float32: a shared
    prefix sums over all its branches."""
    num_key_heads, _, groups, size = query.shape
    d_query = torch.empty_like(query)
    d_key = torch.zeros(key.shape, dtype=torch.promote_types(key.dtype, torch.float32), device=key.device)
    d_value = torch.zeros_like(d_key)
    weights_room, gradient_room = _weights_room(query, blocks), _weights_room(query, blocks)
    for block in blocks:
        rows, weights = _block_weights(query, key, block, weights_room)
        d_rows = d_output[block.start : block.end].transpose(0, 1).reshape(num_key_heads, -1, size)
        _scatter_add(d_value, torch.bmm(weights.transpose(1, 2), d_rows), block.spans)
        d_weights = gradient_room[: weights.numel()].view(weights.shape)
        torch.bmm(d_rows, _gathered(value, block.spans).transpose(1, 2), out=d_weights)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype, grad_input=d_weights)
        d_block = torch.bmm(d_scores, _gathered(key, block.spans))
        d_query[:, block.start : block.end] = d_block.view(num_key_heads, -1, groups, size)
        _scatter_add(d_key, torch.bmm(d_scores.transpose(1, 2), rows), block.spans)
    return d_query, d_key, d_value


def _gathered(rows: torch.Tensor, spans: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """[K, S, E] of [K, N, E]; a view where the keys lie together."""
    if len(spans) == 1:
        return rows[:, spans[0][0] : spans[0][1]]
    return torch.cat([rows[:, start:end] for start, end in spans], 1)


def _scatter_add(rows: torch.Tensor, values: torch.Tensor, spans: tuple[tuple[int, int], ...]) -> None:
    at = 0
    for start, end in spans:
        rows[:, start:end] += values[:, at : at + end - start]
        at += end - start


# ------------------------------------------------------------------------------------------- as autograd functions


class BlockAttention(torch.autograd.Function):
    """softmax(q k^T * scale) v over blocks, dropout-free. query [H, N, E], key and value [K, N, E] -> [N, H, E]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocks: tuple[Block, ...],
        scale: float,
    ) -> torch.Tensor:
        num_heads, num_tokens, size = query.shape
        grouped = query.new_empty(len(key), num_tokens, num_heads // len(key), size)
        torch.mul(query.view(len(key), -1, num_tokens, size).transpose(1, 2), scale, out=grouped)
        key, value = key.contiguous(), value.contiguous()
        ctx.save_for_backward(grouped, key, value)
        ctx.blocks, ctx.scale = blocks, scale
        return _attend(grouped, key, value, blocks).view(num_tokens, num_heads, size)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        num_key_heads, num_tokens, groups, size = query.shape
        d_output = upstream.reshape(num_tokens, num_key_heads, groups, size)
        d_query, d_key, d_value = _attend_backward(query, key, value, d_output, ctx.blocks)
        d_query = d_query.mul_(ctx.scale).transpose(1, 2).reshape(num_key_heads * groups, num_tokens, size)
        return d_query, d_key.to(d_query.dtype), d_value.to(d_query.dtype), None, None


class RotaryAttention(torch.autograd.Function):
    """Block attention with the rotary embedding before it, straight from and to the joint projection.

    qkv      [N, (H + 2 K) * E]  heads of q, of k, of v
    cos, sin [N, E] float32      halves equal, as transformers' rotary embeddings give them; no gradient
    returns  [N, H * E]
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        blocks: tuple[Block, ...],
        num_heads: int,
        num_key_heads: int,
        scale: float,
    ) -> torch.Tensor:
        num_tokens, groups = len(qkv), num_heads // num_key_heads
        heads = qkv.view(num_tokens, num_heads + 2 * num_key_heads, -1)
        size = heads.shape[2]
        rotated = _rotated(heads[:, : num_heads + num_key_heads], cos, sin, 1)
        rotated[:, :num_heads] *= scale
        query = qkv.new_empty(num_key_heads, num_tokens, groups, size)
        query.copy_(rotated[:, :num_heads].view(num_tokens, num_key_heads, groups, size).transpose(0, 1))
        key, value = qkv.new_empty(2, num_key_heads, num_tokens, size)
        key.copy_(rotated[:, num_heads:].transpose(0, 1))
        value.copy_(heads[:, num_heads + num_key_heads :].transpose(0, 1))
        ctx.save_for_backward(query, key, value, cos, sin)
        ctx.blocks, ctx.scale = blocks, scale
        return _attend(query, key, value, blocks).view(num_tokens, num_heads * size)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, cos, sin = ctx.saved_tensors
        num_key_heads, num_tokens, groups, size = query.shape
        num_heads = num_key_heads * groups
        d_output = upstream.view(num_tokens, num_key_heads, groups, size)
        d_query, d_key, d_value = _attend_backward(query, key, value, d_output, ctx.blocks)
        turned = torch.empty(num_tokens, num_heads + num_key_heads, size, dtype=d_key.dtype, device=d_key.device)
        turned[:, :num_heads].view(num_tokens, num_key_heads, groups, size).copy_(d_query.transpose(0, 1))
        turned[:, :num_heads] *= ctx.scale
        turned[:, num_heads:] = d_key.transpose(0, 1)
        gradient = upstream.new_empty(num_tokens, num_heads + 2 * num_key_heads, size)
        gradient[:, : num_heads + num_key_heads] = _rotated(turned, cos, sin, -1)
        gradient[:, num_heads + num_key_heads :] = d_value.transpose(0, 1)
        return gradient.view(num_tokens, -1), None, None, None, None, None, None


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    """Rotary embedding (Su et al. 2021) of [N, heads, E] in float32; sign -1 turns back, which is also its gradient.

    In bfloat16 tables the angles of far positions are too coarse: gradients came out 1.6 % short (measured)."""
    half = heads.shape[-1] // 2
    wide = heads.to(torch.promote_types(heads.dtype, cos.dtype))
    rotated = wide * cos[:, None]
    rotated[..., :half].addcmul_(wide[..., half:], sin[:, None, :half], value=-sign)
    rotated[..., half:].addcmul_(wide[..., :half], sin[:, None, half:], value=sign)
    return rotated
