"""Bottleneck adapters: a small two-layer network behind the MLP (and the attention) of every layer of a frozen model.

    output + up(activation(down(output)))      hidden size H -> bottleneck B -> H      (Houlsby 2019, Pfeiffer 2020)

They are submodules of the model's own modules, called by a forward hook, so every weight of the base keeps its name
and any architecture with a list of layers can take them. They cannot be folded into the base: the activation is in the
way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from halo_forge.errors import CheckpointError, UsageError
from halo_forge.models import inspection
from halo_forge.runs import write_json

BOTTLENECK_CONFIG = "bottleneck_config.json"
BOTTLENECK_WEIGHTS = "bottleneck.safetensors"
CHILD = "bottleneck_adapter"
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
ATTENTION_NAMES = ("self_attn", "attention", "attn", "self_attention", "mixer")
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckOptions:
    """size is the bottleneck's width B."""

    size: int
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    after_attention: bool = False


class BottleneckAdapter(nn.Module):
    """up(activation(down(x))), float32 whatever the base is. `enabled` False makes the module behind it the base's."""

    def __init__(self, hidden_size: int, options: BottleneckOptions, device: torch.device) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, options.size, device=device, dtype=torch.float32)
        self.up = nn.Linear(options.size, hidden_size, device=device, dtype=torch.float32)
        self.activation = options.activation
        self.enabled = True

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H] in the type of `hidden`."""
        # Without autocast a bfloat16 base meets float32 adapters; under it, torch chooses the type of the products.
        result: torch.Tensor = self.up(ACTIVATIONS[self.activation](self.down(hidden.to(self.down.weight.dtype))))
        return result.to(hidden.dtype)


def add_bottlenecks(model: PreTrainedModel, options: BottleneckOptions, *, seed: int) -> PreTrainedModel:
    """Freeze `model` and put trainable adapters behind the modules of each layer; returns the same model.

    The down-projection is drawn from U(-1/sqrt(H), 1/sqrt(H)) by (seed, module name), so the start is the same on any
    device; the up-projection is zero: the start is the base model. Raises UsageError where no layers are found.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    hidden_size = model.config.get_text_config().hidden_size
    for name, module in adapted_modules(model, after_attention=options.after_attention):
        weight = next(module.parameters())
        with torch.random.fork_rng(devices=[]):
            adapter = BottleneckAdapter(hidden_size, options, weight.device)
        key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
        bound = hidden_size**-0.5
        with torch.no_grad():
            adapter.down.weight.copy_(
                torch.empty(adapter.down.weight.shape).uniform_(-bound, bound, generator=generator)
            )
            for zero in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
                zero.zero_()
        module.add_module(CHILD, adapter)
        module.register_forward_hook(_add_bottleneck)
    return model


def _add_bottleneck(module: nn.Module, _inputs: Any, output: Any) -> Any:
    adapter = module.get_submodule(CHILD)
    assert isinstance(adapter, BottleneckAdapter)
    if not adapter.enabled:
        return output
    if isinstance(output, tuple):  # attention returns its weights, too, a mixture of experts its router's choices
        return (output[0] + adapter(output[0]), *output[1:])
    return output + adapter(output)


def adapted_modules(model: PreTrainedModel, *, after_attention: bool) -> list[tuple[str, nn.Module]]:
    """(dotted name, module) of each layer's MLP, and attention, in the order of the layers."""
    layers_name, layers = decoder_layers(model)
    kinds = [("MLP", MLP_NAMES)] + ([("attention", ATTENTION_NAMES)] if after_attention else [])
    found = []
    for number, layer in enumerate(layers):
        children = dict(layer.named_children())
        for kind, names in kinds:
            name = next((name for name in names if name in children), None)
            if name is None:
                raise UsageError(
                    f"layer {number} of this model has no module known as its {kind}: {', '.join(children)}",
                    where="training.method: adapter",
                    expected=f"one of {', '.join(names)}",
                    fix="training.method: lora",
                )
            found.append((f"{layers_name}.{number}.{name}", children[name]))
    return found


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """(dotted name, the list of a model's layers): the module list of config.num_hidden_layers entries."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UsageError("the layers of this model were not found", where="model.name", fix="training.method: lora")


def bottlenecks(model: nn.Module) -> dict[str, BottleneckAdapter]:
    """Dotted name -> adapter."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BottleneckAdapter)}


def has_bottlenecks(model: nn.Module) -> bool:
    return bool(bottlenecks(model))


@contextmanager
def bottleneck_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base."""
    before = [(adapter, adapter.enabled) for adapter in bottlenecks(model).values()]
    try:
        for adapter, _ in before:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in before:
            adapter.enabled = enabled


def bottleneck_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every adapter weight by its name in the model, in CPU memory."""
    return {
        f"{name}.{leaf}": parameter.detach().to("cpu", copy=True).contiguous()
        for name, adapter in bottlenecks(model).items()
        for leaf, parameter in adapter.named_parameters()
    }


def save_bottlenecks(model: PreTrainedModel, directory: Path, base: tuple[str, str | None]) -> dict[str, torch.Tensor]:
    """Write the adapters alone; returns what was written. `base` is (name or path, revision) of the model below."""
    tensors = bottleneck_state(model)
    save_file(tensors, directory / BOTTLENECK_WEIGHTS, metadata={"format": "pt"})
    first = next(iter(bottlenecks(model).values()))
    _, layers = decoder_layers(model)
    options = BottleneckOptions(
        size=first.down.out_features,
        activation=first.activation,
        after_attention=len(bottlenecks(model)) > len(layers),
    )
    write_json(
        directory / BOTTLENECK_CONFIG,
        {"schema_version": 1, "base_model_name_or_path": base[0], "revision": base[1], **asdict(options)},
    )
    return tensors


def attach_bottlenecks(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Put saved adapters on `model`, frozen and in eval mode. Raises CheckpointError if they do not fit."""
    config = inspection.read_json_object(directory / BOTTLENECK_CONFIG)
    try:
        options = BottleneckOptions(
            size=int(config["size"]), activation=config["activation"], after_attention=bool(config["after_attention"])
        )
        if options.activation not in ACTIVATIONS or options.size < 1:
            raise ValueError(f"size {options.size}, activation {options.activation}")
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"not the settings of an adapter: {error}", where=str(directory / BOTTLENECK_CONFIG)
        ) from None
    add_bottlenecks(model, options, seed=0)
    load_bottlenecks(model, directory)
    for adapter in bottlenecks(model).values():
        adapter.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def load_bottlenecks(model: PreTrainedModel, directory: Path) -> None:
    """Put saved weights into the adapters of `model`, bit for bit. All of them, or CheckpointError."""
    path = directory / BOTTLENECK_WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the adapter cannot be read: {error}", where=str(path)) from None
    own = {
        f"{name}.{leaf}": parameter
        for name, adapter in bottlenecks(model).items()
        for leaf, parameter in adapter.named_parameters()
    }
    different = sorted(set(own) ^ set(tensors)) or sorted(n for n in own if own[n].shape != tensors[n].shape)
    if different:
        raise CheckpointError(
            f"the adapter does not fit its model: {len(different)} weights differ, for instance {different[0]}",
            where=str(path),
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
