"""The forward pass of Llama-like decoders for training: joint projections, written-out gradients, nothing kept twice.

Axes: N tokens of a row, U rows that predict something, D width.

The model object stays transformers' (or peft's) own: this reads its weights in place, so saving, generating and
resuming know nothing of it. Weights of the compute type are re-seated as parts of joint matrices; weights trained in
float32 get a working copy in bfloat16, refreshed once a step. The residual stream is float32 as under autocast.

Which models: those whose decoder layer is made of the modules named in `_PARTS` with SwiGLU and rotary position (Llama,
SmolLM, Mistral, Qwen 2 to 3 and others of their kind). Whether it computes what the model itself computes is not
believed but measured at every start (`agrees`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLayer
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from halo_forge.models.fast.attention import RotaryAttention, document_blocks
from halo_forge.models.fast.head import NOTHING, HeadNll, RowGradient, Softening, Targets
from halo_forge.models.fast.kernels import flex, kernel_of, rotated_heads, varlen
from halo_forge.models.fast.ops import AdapterOptions, Before, JointLinear, LoraLinear, RmsNorm, kept_by_dropout
from halo_forge.models.fast.row import PackedRow

_PARTS = {
    "layer": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},  # and both of q_norm, k_norm (Qwen 3), or neither
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
COVERED_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Names that config.json gives the families whose layers these are, for plans; what runs is decided by the parts."""
_NORM_NAMES = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen2VLRMSNorm", "Qwen3RMSNorm")


class NotCovered(Exception):
    """Why a model runs on transformers' own forward pass."""


@dataclass(slots=True)
class Projection:
    """Linear layers of one input as one product, frozen, trained, or frozen with adapters."""

    layers: tuple[nn.Linear | LoraLayer, ...]
    joint: torch.Tensor
    biases: tuple[nn.Parameter, ...]
    masters: tuple[nn.Parameter, ...]
    adapters: tuple[torch.Tensor, ...]
    scales: tuple[float, ...]
    dropout: float

    @staticmethod
    def of(layers: Sequence[nn.Module], dtype: torch.dtype) -> Projection:
        linears = [layer.base_layer if isinstance(layer, LoraLayer) else layer for layer in layers]
        if not all(type(linear) is nn.Linear for linear in linears):
            raise NotCovered(f"a projection is a {type(linears[0]).__name__}")
        weights = [linear.weight for linear in linears]
        trained = [weight.requires_grad for weight in weights]
        if any(trained) and not all(trained):
            raise NotCovered("some of the weights of one input are trained and some are not")
        adapters, scales, dropout = _adapters_of(layers, weights[0])
        if any(trained) and adapters:
            raise NotCovered("a weight is trained beside its adapter")
        biases = [linear.bias for linear in linears]
        if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
            raise NotCovered("some of the projections of one input have a bias and some do not")
        joint = _joint_weight(weights, dtype)
        masters = tuple(weights) if all(trained) else ()
        kept = tuple(bias for bias in biases if bias is not None)
        return Projection(tuple(layers), joint, kept, masters, adapters, scales, dropout)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the working copy of trained weights up to date."""
        if self.masters and self.joint.dtype != self.masters[0].dtype:
            _copy_rows(self.joint, self.masters)

    def drawn(self, num_tokens: int, with_adapters: bool) -> torch.Tensor | None:
        """Which elements of an input [N, D] dropout keeps; None where nothing is dropped, as without a gradient."""
        if not (self.adapters and with_adapters and self.dropout and torch.is_grad_enabled()):
            return None
        return kept_by_dropout(torch.Size([num_tokens, self.joint.shape[1]]), self.dropout, self.joint.device)

    def __call__(
        self, x: torch.Tensor, kept: torch.Tensor | None, with_adapters: bool,
        *, norm: nn.Module | None = None, gated: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """Of x, of the norm of x, or, `gated`, of the SwiGLU of x."""
        bias = torch.cat(self.biases) if self.biases else None
        before, weight = Before("gate" if gated else "nothing"), None
        if norm is not None:
            before, weight = Before("norm", norm.variance_epsilon), norm.weight
        if self.adapters and with_adapters:
            options = AdapterOptions(self.scales, self.dropout)
            return LoraLinear.apply(x, before, weight, self.joint, bias, options, kept, *self.adapters)
        return JointLinear.apply(x, before, weight, self.joint, bias, *self.masters)


def _copy_rows(joint: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
    row = 0
    for weight in weights:
        joint[row : row + len(weight)] = weight
        row += len(weight)


def _joint_weight(weights: Sequence[nn.Parameter], dtype: torch.dtype) -> torch.Tensor:
    """[O, D]: a copy in the compute type, or, where that is the weights' own, one matrix that they become parts of."""
    if len(weights) == 1 and weights[0].dtype == dtype:
        return weights[0].data
    joint = weights[0].data.new_empty(sum(map(len, weights)), weights[0].shape[1], dtype=dtype)
    with torch.no_grad():
        _copy_rows(joint, weights)
    if weights[0].dtype == dtype:
        for weight, part in zip(weights, joint.split([len(weight) for weight in weights]), strict=True):
            weight.data = part
    return joint


def _adapters_of(
    layers: Sequence[nn.Module], weight: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], tuple[float, ...], float]:
    """(A and B of each layer in turn, their scales, dropout); layers without an adapter get empty ones."""
    adapted = [layer for layer in layers if isinstance(layer, LoraLayer)]
    if not adapted:
        return (), (), 0.0
    adapters: list[torch.Tensor] = []
    scales, rates = [], set()
    for layer in layers:
        if not isinstance(layer, LoraLayer):
            adapters += [weight.new_empty(0, weight.shape[1]), weight.new_empty(layer.out_features, 0)]
            scales.append(1.0)
            continue
        if list(layer.lora_A) != ["default"] or layer.lora_variant or layer.lora_bias.get("default"):
            raise NotCovered("an adapter is not a plain LoRA")
        dropout = layer.lora_dropout["default"]
        rates.add(dropout.p if isinstance(dropout, nn.Dropout) else 0.0)
        adapters += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        scales.append(float(layer.scaling["default"]))
    if len(rates) > 1:
        raise NotCovered("adapters of one input have different dropout")
    return tuple(adapters), tuple(scales), rates.pop()


@dataclass(slots=True)
class Layer:
    input_norm: nn.Module
    qkv: Projection
    head_norms: tuple[nn.Module, nn.Module] | None  # of queries and keys
    output: Projection
    mlp_norm: nn.Module
    gate_up: Projection
    down: Projection


@dataclass(frozen=True, slots=True)
class Heads:
    """query, key/value: how many heads; scale of their products; the compute type of all products."""

    query: int
    key: int
    scale: float
    dtype: torch.dtype


Kept = tuple[torch.Tensor | None, ...]


def before_attention(layer: Layer, heads: Heads, x: torch.Tensor, kept: Kept, with_adapters: bool) -> torch.Tensor:
    """The joint projection [N, (H + 2 K) * E] of the residual stream [N, D], not yet rotated."""
    qkv = layer.qkv(x, kept[0], with_adapters, norm=layer.input_norm)
    return qkv if layer.head_norms is None else _with_normed_heads(qkv, heads, *layer.head_norms)


def after_attention(
    layer: Layer, heads: Heads, x: torch.Tensor, attended: torch.Tensor, kept: Kept, with_adapters: bool
) -> torch.Tensor:
    """The residual stream [N, D] behind the layer, from that before it and what attention gives [N, H * E]."""
    x = x + layer.output(attended, kept[0], with_adapters)
    gate_up = layer.gate_up(x, kept[1], with_adapters, norm=layer.mlp_norm)
    return x + layer.down(gate_up, kept[2], with_adapters, gated=True)


def _with_normed_heads(qkv: torch.Tensor, heads: Heads, q_norm: nn.Module, k_norm: nn.Module) -> torch.Tensor:
    size = qkv.shape[1] // (heads.query + 2 * heads.key)
    q, k, v = qkv.split([heads.query * size, heads.key * size, heads.key * size], 1)
    normed = [
        _normed(norm, part.reshape(-1, size), heads.dtype).view(part.shape) for norm, part in ((q_norm, q), (k_norm, k))
    ]
    return torch.cat([*normed, v], 1)


def _normed(norm: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return RmsNorm.apply(x, norm.weight, norm.variance_epsilon, dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Regions:
    """The parts of a layer between its attention and the next one's, as functions: written out here, or compiled
    (compiled.py). `row_gradient` is the head's pass over logits, None for the written-out one."""

    before: Callable[..., torch.Tensor] = before_attention
    after: Callable[..., torch.Tensor] = after_attention
    rotated: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = rotated_heads
    row_gradient: RowGradient | None = None

    @property
    def are_compiled(self) -> bool:
        return self.before is not before_attention


EAGER = Regions()


@dataclass(slots=True)
class FastDecoder:
    """`nll(...)` is the whole forward pass; `refresh()` comes before the first one after every change of weights."""

    embedding: nn.Embedding
    rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    layers: list[Layer]
    norm: nn.Module
    head: Projection
    heads: Heads
    recompute: bool = False
    skip_unread: bool = True
    regions: Regions = EAGER

    @staticmethod
    def of(model: PreTrainedModel | PeftModel, dtype: torch.dtype) -> FastDecoder:
        """Raises NotCovered where the model is of another kind; no value of a weight has changed then."""
        causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        inner, config = causal.get_decoder(), causal.config.get_text_config()
        check_kind(inner, config)
        layers = [
            Layer(
                input_norm=layer.input_layernorm,
                qkv=Projection.of([getattr(layer.self_attn, f"{name}_proj") for name in "qkv"], dtype),
                head_norms=(
                    (layer.self_attn.q_norm, layer.self_attn.k_norm) if hasattr(layer.self_attn, "q_norm") else None
                ),
                output=Projection.of([layer.self_attn.o_proj], dtype),
                mlp_norm=layer.post_attention_layernorm,
                gate_up=Projection.of([layer.mlp.gate_proj, layer.mlp.up_proj], dtype),
                down=Projection.of([layer.mlp.down_proj], dtype),
            )
            for layer in inner.layers
        ]
        attention = inner.layers[0].self_attn
        return FastDecoder(
            embedding=inner.embed_tokens, rotary=inner.rotary_emb, layers=layers, norm=inner.norm,
            head=Projection.of([causal.get_output_embeddings()], dtype),
            heads=Heads(config.num_attention_heads, config.num_key_value_heads, attention.scaling, dtype),
        )  # fmt: skip

    def refresh(self) -> None:
        for projection in self.projections():
            projection.refresh()

    def hidden(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, row: PackedRow, keep: torch.Tensor,
        with_adapters: bool = True, embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The normed output [U, D] at the positions `keep` of one row of tokens [N]; without adapters the base's.

        position_ids  [N], or [3, N] where they are counted along the axes of images
        embeddings    [N, D] in place of the tokens' own, where images stand among them"""
        wide = torch.promote_types(self.heads.dtype, torch.float32)
        x = (self.embedding(input_ids[None])[0] if embeddings is None else embeddings).to(wide)
        cos, sin = self.rotary(x, position_ids=position_ids[..., None, :])
        for layer in self.layers:
            rows = keep if self.skip_unread and layer is self.layers[-1] else None
            arguments = (layer, x, cos[0], sin[0], row, rows, with_adapters)
            x = checkpoint(self._layer, *arguments, use_reentrant=False) if self.recompute else self._layer(*arguments)
        return _normed(self.norm, x if self.skip_unread else x[keep], self.heads.dtype)

    def nll(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, row: PackedRow, keep: torch.Tensor,
        targets: Targets, softening: Softening = NOTHING,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """(what is minimised, nll of each target); see `HeadNll`."""
        base_hidden = None
        if softening.kl_to_base:
            with torch.no_grad():
                base_hidden = self.hidden(input_ids, position_ids, row, keep, with_adapters=False)
        hidden = self.hidden(input_ids, position_ids, row, keep)
        targets = replace(targets, to_gradient=self.regions.row_gradient)
        master = self.head.layers[0].weight if self.head.masters else None
        return HeadNll.apply(  # type: ignore[no-any-return]
            hidden, self.head.joint, master, targets, torch.is_grad_enabled(), softening, base_hidden
        )

    @torch.no_grad()
    def agrees(self, model: PreTrainedModel | PeftModel, documents: Sequence[torch.Tensor]) -> bool:
        """Whether documents [T] in one row come out of this as each comes out of the model's own decoder by itself.

        The tolerance covers another order of the same sums; another network is off by orders more."""
        causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        was_training = model.training
        model.eval()
        self.refresh()
        lengths = [len(document) for document in documents]
        places = [torch.arange(length, device=documents[0].device) for length in lengths]
        try:
            alone = [
                causal.get_decoder()(input_ids=document[None], use_cache=False).last_hidden_state[0]
                for document in documents
            ]
        finally:
            model.train(was_training)
        dropouts = [projection.dropout for projection in self.projections()]
        try:
            for projection in self.projections():
                projection.dropout = 0.0
            own = self.hidden(
                torch.cat(list(documents)), torch.cat(places),
                PackedRow.of_documents(lengths, document_blocks(lengths), documents[0].device),
                torch.arange(sum(lengths), device=documents[0].device),
            )  # fmt: skip
        finally:
            for projection, dropout in zip(self.projections(), dropouts, strict=True):
                projection.dropout = dropout
        reference = torch.cat(alone).float()
        tolerance = (0.05 if self.heads.dtype == torch.bfloat16 else 1e-4) * reference.abs().max().clamp_min(1.0)
        return bool((own.float() - reference).abs().max() <= tolerance)

    def projections(self) -> list[Projection]:
        inside = [(layer.qkv, layer.output, layer.gate_up, layer.down) for layer in self.layers]
        return [projection for layer in inside for projection in layer] + [self.head]

    def _layer(
        self, layer: Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, row: PackedRow,
        keep: torch.Tensor | None, with_adapters: bool,
    ) -> torch.Tensor:  # fmt: skip
        """One decoder layer; with `keep`, what nobody reads afterwards is left out (all attend, few go on)."""
        # Without a gradient one pass is all there is: compiling it again for that mode would not pay.
        regions = self.regions if torch.is_grad_enabled() else EAGER
        qkv = regions.before(layer, self.heads, x, (layer.qkv.drawn(len(x), with_adapters),), with_adapters)
        attended = self._attended(qkv, cos, sin, row)
        if keep is not None:
            x, attended = x[keep], attended[keep]
        kept = tuple(part.drawn(len(x), with_adapters) for part in (layer.output, layer.gate_up, layer.down))
        return regions.after(layer, self.heads, x, attended, kept, with_adapters)

    def _attended(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, row: PackedRow) -> torch.Tensor:
        """[N, H * E]"""
        heads = self.heads
        kernel = kernel_of(row, qkv, heads.query, cos.shape[1], flex=self.regions.are_compiled)
        if kernel == "blocks":
            return RotaryAttention.apply(qkv, cos, sin, row.blocks, heads.query, heads.key, heads.scale)  # type: ignore[no-any-return]
        query, key, value = self.regions.rotated(qkv, cos, sin, heads.query, heads.key)
        attend = varlen if kernel == "varlen" else flex
        return attend(query, key, value, row, heads.scale).reshape(len(qkv), -1)


def check_kind(inner: Any, config: Any) -> None:
    if not getattr(inner, "layers", None):
        raise NotCovered("it has no decoder layers")
    hooked = [module for module in inner.layers.modules() if module._forward_hooks or module._forward_pre_hooks]
    if hooked:
        raise NotCovered(f"something hangs on its {type(hooked[0]).__name__}")
    for layer in inner.layers:
        for name, wanted in _PARTS.items():
            part = layer if name == "layer" else getattr(layer, name, None)
            found = {child for child, _ in part.named_children()} if part is not None else set()
            if found - {"q_norm", "k_norm"} != wanted or len(found & {"q_norm", "k_norm"}) == 1:
                raise NotCovered(f"{type(layer).__name__} is not made of the parts of a Llama layer")
    # peft wraps what it trains whole or in part, and switches the wrapper: a base model would not be the base here.
    norms = [norm for layer in inner.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    for norm in (*norms, inner.norm):
        if type(norm).__name__ not in _NORM_NAMES:
            raise NotCovered(f"a norm is a {type(norm).__name__}")
    if type(inner.embed_tokens) is not nn.Embedding:
        raise NotCovered(f"its embedding is a {type(inner.embed_tokens).__name__}")
    if getattr(config, "hidden_act", None) not in ("silu", "swish"):
        raise NotCovered(f"its activation is {getattr(config, 'hidden_act', None)}")
    if getattr(config, "attention_dropout", 0.0):
        raise NotCovered("it drops attention weights")
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        raise NotCovered(f"it has a sliding window of {window} tokens")
