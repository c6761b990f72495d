"""One decoding step of Llama-like models, written out for a CPU: weights laid out once for few rows, no cache copies.

Axes: B rows of the batch, T new columns, C columns in use, H query heads, K key/value heads, G = H / K, E head size,
D width, V vocabulary.

With eight rows a product reads each weight once, and most of the time goes into bringing weights into the order that
the processor multiplies in. That order is made once here (oneDNN's packed weights): 1.8 times the products of
transformers' forward pass at eight rows, in float32 as in bfloat16. q, k and v are one product, gate and up another,
and adapters that are on are merged into the copy. Operations and their roundings are otherwise those of transformers'
modules. The model itself is not touched.

Which models: those of `FastDecoder`. Whether the step computes what the model does is measured at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLayer
from torch import nn
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel

from halo_forge.models.fast.decoder import NotCovered, check_kind
from halo_forge.models.kv_cache import slot_cache
from halo_forge.models.machine import resident_bytes, usable_bytes

Product = Callable[[torch.Tensor], torch.Tensor]
ROWS = 8
"""The packed order is best for about this many rows, and good for others."""
MAX_SHARE_OF_MEMORY = 0.4
"""Of the memory that is free: the packed weights are a second copy."""
PROBE_TOKENS = 12


@dataclass(slots=True)
class _Layer:
    input_norm: nn.Module
    qkv: Product
    head_norms: tuple[nn.Module, nn.Module] | None
    output: Product
    mlp_norm: nn.Module
    gate_up: Product
    down: Product


@dataclass(slots=True)
class DecodingStep:
    """Called with input_ids int64 [B, T], mask bool [B, C + T] of the columns that hold a token, positions int64 [B, T]
    and a `slot_cache` of C columns, which it fills: the logits [B, V] behind each row's last token."""

    embedding: nn.Embedding
    rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    layers: list[_Layer]
    norm: nn.Module
    head: Product
    num_heads: int
    num_key_heads: int
    scale: float

    @staticmethod
    @torch.no_grad()
    def of(model: PreTrainedModel) -> DecodingStep:
        """Raises NotCovered where the model is of another kind, not on a CPU, or too large to be held twice."""
        causal: Any = model
        inner, head = causal.get_decoder(), causal.get_output_embeddings()
        config = causal.config.get_text_config()
        check_kind(inner, config)
        if model.device.type != "cpu":
            raise NotCovered("it is not on a CPU")
        size_bytes = sum(weight.numel() * weight.element_size() for weight in {*inner.layers.parameters(), head.weight})
        if size_bytes > MAX_SHARE_OF_MEMORY * ((usable_bytes() or 0) - resident_bytes()):
            raise NotCovered("its weights do not fit into memory twice")
        layers = [
            _Layer(
                input_norm=layer.input_layernorm,
                qkv=_packed([getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]),
                head_norms=(
                    (layer.self_attn.q_norm, layer.self_attn.k_norm) if hasattr(layer.self_attn, "q_norm") else None
                ),
                output=_packed([layer.self_attn.o_proj]),
                mlp_norm=layer.post_attention_layernorm,
                gate_up=_packed([layer.mlp.gate_proj, layer.mlp.up_proj]),
                down=_packed([layer.mlp.down_proj]),
            )
            for layer in inner.layers
        ]
        return DecodingStep(
            embedding=inner.embed_tokens, rotary=inner.rotary_emb, layers=layers, norm=inner.norm,
            head=_packed([head]), num_heads=config.num_attention_heads, num_key_heads=config.num_key_value_heads,
            scale=inner.layers[0].self_attn.scaling,
        )  # fmt: skip

    def __call__(
        self, input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        num_rows, num_new = input_ids.shape
        x = self.embedding(input_ids).flatten(0, 1)
        cos, sin = (table.flatten(0, 1)[:, None] for table in self.rotary(x, position_ids=positions))
        seen = _seen(mask, num_new)
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(_normed(layer.input_norm, x)).unflatten(1, (self.num_heads + 2 * self.num_key_heads, -1))
            attended = self._attend(layer, qkv, (cos, sin), seen, cache.layers[number], num_rows)
            x = x + layer.output(attended)
            gate, up = layer.gate_up(_normed(layer.mlp_norm, x)).chunk(2, 1)
            x = x + layer.down(F.silu(gate) * up)
        return self.head(_normed(self.norm, x.view(num_rows, num_new, -1)[:, -1]))

    def _attend(
        self,
        layer: _Layer,
        qkv: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        seen: torch.Tensor | None,
        kept: Any,
        num_rows: int,
    ) -> torch.Tensor:
        """[B * T, H * E] of the joint projection [B * T, H + 2 K, E]; new keys and values go into the cache's layer."""
        query, key, value = qkv.split([self.num_heads, self.num_key_heads, self.num_key_heads], 1)
        if layer.head_norms is not None:
            query, key = _normed(layer.head_norms[0], query), _normed(layer.head_norms[1], key)
        turned = _rotated(torch.cat([query, key], 1), *tables).unflatten(0, (num_rows, -1)).transpose(1, 2)
        query, key = turned.split([self.num_heads, self.num_key_heads], 1)
        keys, values = kept.update(key, value.unflatten(0, (num_rows, -1)).transpose(1, 2))
        if query.shape[2] == 1:
            # The G heads that share keys stand where several queries would: no key is copied.
            grouped = query.reshape(num_rows, self.num_key_heads, -1, query.shape[3])
            attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen, scale=self.scale)
            return attended.reshape(num_rows, -1)
        attended = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=seen, scale=self.scale, enable_gqa=True
        )  # fmt: skip
        return attended.transpose(1, 2).flatten(2).flatten(0, 1)

    @torch.no_grad()
    def agrees(self, model: PreTrainedModel) -> bool:
        """Whether two padded rows and the token after them come out as the model's own forward pass has them."""
        size = self.embedding.num_embeddings
        rows = torch.arange(2 * PROBE_TOKENS).view(2, -1) * 37 % size
        mask = torch.ones_like(rows, dtype=torch.bool)
        mask[1, : PROBE_TOKENS // 3] = False
        positions = (mask.cumsum(1) - 1).clamp_(min=0)
        found, expected = [], []
        caches = slot_cache(model.config), slot_cache(model.config)
        if caches[0] is None or caches[1] is None:
            return False
        for columns in (slice(0, PROBE_TOKENS - 1), slice(PROBE_TOKENS - 1, None)):
            ids, seen, places = rows[:, columns], mask[:, : columns.stop], positions[:, columns]
            found.append(self(ids, seen, places, caches[0]))
            expected.append(by_transformers(model, ids, seen, places, caches[1]))
        difference = (torch.cat(found).float() - torch.cat(expected).float()).abs().max()
        tolerance = 0.05 if model.dtype == torch.bfloat16 else 1e-4
        return bool(difference <= tolerance * torch.cat(expected).float().abs().max().clamp_min(1.0))


def by_transformers(
    model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
) -> torch.Tensor:
    """The same as a `DecodingStep`, by the model's own forward pass; any device, any cache."""
    output = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    return output.logits[:, -1]  # type: ignore[no-any-return]


_USED = ContextVar("the written-out step is used", default=True)


@contextmanager
def own_steps() -> Iterator[None]:
    """The off switch: inside, models answer by their own forward pass."""
    token = _USED.set(False)
    try:
        yield
    finally:
        _USED.reset(token)


def decoding_step(model: PreTrainedModel) -> DecodingStep | None:
    """The written-out step, or None where it does not cover the model or does not agree with it."""
    if not _USED.get():
        return None
    try:
        step = DecodingStep.of(model)
        return step if step.agrees(model) else None
    except NotCovered:
        return None


def _seen(mask: torch.Tensor, num_new: int) -> torch.Tensor | None:
    """bool [B, 1, T, C]: the columns that each new token sees, itself always (a row of nothing has no softmax); None
    where it is all of them."""
    if num_new == 1:
        return None if bool(mask.all()) else mask[:, None, None]
    num_columns = mask.shape[1]
    causal = torch.ones(num_new, num_columns, dtype=torch.bool).tril(num_columns - num_new)
    itself = torch.eye(num_columns, dtype=torch.bool)[num_columns - num_new :]
    return ((mask[:, None] & causal) | itself)[:, None]


def _packed(layers: Sequence[nn.Module]) -> Product:
    """Linear layers of one input as one product, adapters that are on merged in."""
    weights, biases = zip(*map(_weight_and_bias, layers), strict=True)
    if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
        raise NotCovered("some of the projections of one input have a bias and some do not")
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    bias = torch.cat(biases) if biases[0] is not None else None
    operations: Any = torch.ops.mkldnn
    try:
        packed = operations._reorder_linear_weight(weight, ROWS)
        operations._linear_pointwise(weight.new_zeros(1, weight.shape[1]), packed, bias, "none", [], "")
    except (AttributeError, RuntimeError) as error:
        raise NotCovered(f"this torch packs no weights: {str(error).splitlines()[0]}") from None
    return lambda x: operations._linear_pointwise(x, packed, bias, "none", [], "")


def _weight_and_bias(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    linear = layer.base_layer if isinstance(layer, LoraLayer) else layer
    if type(linear) is not nn.Linear:
        raise NotCovered(f"a projection is a {type(linear).__name__}")
    if not isinstance(layer, LoraLayer) or layer.disable_adapters:
        return linear.weight, linear.bias
    if list(layer.lora_A) != ["default"] or layer.lora_variant or layer.lora_bias.get("default") or layer.merged:
        raise NotCovered("an adapter is not a plain LoRA")
    down, up = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    merged = linear.weight.float() + float(layer.scaling["default"]) * (up @ down)
    return merged.to(linear.weight.dtype), linear.bias


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    scale = wide.pow(2).mean(-1, keepdim=True).add_(norm.variance_epsilon).rsqrt_()
    return norm.weight * (wide * scale).to(x.dtype)  # type: ignore[no-any-return]


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[N, heads, E] turned by tables [N, 1, E], in their own type as transformers does."""
    one, other = heads.chunk(2, -1)
    return heads * cos + torch.cat([-other, one], -1) * sin
