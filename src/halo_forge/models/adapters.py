"""LoRA adapters on a causal language model, and the trainable weights of a model as plain tensors."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from halo_forge.errors import CheckpointError, UsageError
from halo_forge.models.bottleneck import bottleneck_off, has_bottlenecks
from halo_forge.models.lora_options import KEPT_FROZEN, LoraOptions, peft_arguments, whole
from halo_forge.models.quiet import quiet_transformers

Model = PreTrainedModel | PeftModel
TargetModules = Sequence[str] | Literal["all-linear"]


PLAIN = LoraOptions()


def freeze(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Keep modules out of training, by their dotted names: no gradient, and no adapter beside their linear layers."""
    for name in names:
        module = model.get_submodule(name)
        setattr(module, KEPT_FROZEN, True)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: TargetModules,
    seed: int,
    options: LoraOptions = PLAIN,
) -> PeftModel:
    """Freeze `model` and put a trainable LoRA adapter, scaled by alpha / r, beside its linear layers.

    target_modules  `all-linear` (all but the output layer), or names: `q_proj` means every module so called
    seed            decides lora_A: U(-1/sqrt(in), 1/sqrt(in)) drawn per module from (seed, module name), so the start
                    is the same on any device and for any set of targets. lora_B is zero: the start is the base model.
    options         what peft offers beyond that: DoRA, rsLoRA, patterns, whole modules, rows of the embeddings
    The adapter is float32 whatever the base is: updates far below bfloat16's step would vanish (TorchAO #1124).
    The global random state is left as it was. Raises UsageError for a name that matches nothing.
    """
    # peft would spell `all-linear` out as one full path per layer; the short names say the same and serve vLLM too.
    names = linear_module_names(model) if target_modules == "all-linear" else target_modules
    targets = checked_targets(model, names)
    config = LoraConfig(
        r=r,
        lora_alpha=whole(alpha),  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        bias="none",
        # peft's wrapper of that name passes input_ids on, which a model that hears has not
        task_type=None if model.config.is_encoder_decoder else TaskType.CAUSAL_LM,
        **peft_arguments(model, targets, options),
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), quiet_transformers():
        adapted = get_peft_model(model, config)
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            _draw_lora_a(module.lora_A["default"], f"{seed}:{name}")
            if options.use_dora:
                _set_magnitude(module)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # whole modules are in the base's type as peft leaves them
            parameter.data = parameter.data.float()
    return adapted


def _set_magnitude(layer: LoraLayer) -> None:
    """The length of each row of the base weight, in float32: peft takes it in the base's type, and rounded to bfloat16
    it would change the start, which is to be the base model."""
    weight = dequantize_module_weight(layer.get_base_layer())  # [out, in], a Conv1D's is [in, out]
    axis = 0 if getattr(layer, "fan_in_fan_out", False) else 1
    magnitude = layer.lora_magnitude_vector["default"].get_parameter("weight")
    magnitude.data = torch.linalg.norm(weight.float(), dim=axis).to(magnitude.device)


def _draw_lora_a(layer: torch.nn.Module, key: str) -> None:
    weight = layer.get_parameter("weight")  # [r, in]
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
    bound = weight.shape[1] ** -0.5
    with torch.no_grad():
        weight.copy_(torch.empty(weight.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))


def linear_module_names(model: torch.nn.Module) -> list[str]:
    """Last parts of the names of the linear layers that can take an adapter, most frequent first."""
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if _takes_adapter(model, module):
            before, _, last = name.rpartition(".")
            if last.isdigit():  # a number alone would be a name of many lists
                last = f"{before.rpartition('.')[2]}.{last}"
            counts[last] = counts.get(last, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))


def _takes_adapter(model: torch.nn.Module, module: torch.nn.Module) -> bool:
    linear = isinstance(module, torch.nn.Linear | Conv1D) and module is not _output_layer(model)
    return linear and not getattr(module, KEPT_FROZEN, False)


def _output_layer(model: torch.nn.Module) -> torch.nn.Module | None:
    if not isinstance(model, PreTrainedModel):
        return None
    layer: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return layer


def checked_targets(model: PreTrainedModel, target_modules: Sequence[str]) -> list[str]:
    known = linear_module_names(model)
    linear = [name for name, module in model.named_modules() if _takes_adapter(model, module)]
    lost = [
        target for target in target_modules if not any(name == target or name.endswith(f".{target}") for name in linear)
    ]
    if lost or not target_modules:
        near = difflib.get_close_matches(lost[0], known, n=1) if lost else []
        raise UsageError(
            f"no linear layer of this model is called {', '.join(lost)}" if lost else "no layer is named",
            where="lora.target_modules",
            expected=f"all-linear, or some of: {', '.join(known)}",
            fix=f"did you mean {near[0]}?" if near else "target_modules: all-linear",
        )
    return list(target_modules)


@contextmanager
def base_model_view(model: Model) -> Iterator[Model]:
    """Inside, the model answers as its base does: the adapter is switched off. Afterwards it is as it was, including
    what is trainable. Raises TypeError for a model without an adapter: its base weights are gone."""
    if has_bottlenecks(model):
        with bottleneck_off(model):
            yield model
        return
    if not isinstance(model, PeftModel):
        raise TypeError("only a model with an adapter still holds its base model; load the base separately")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        with model.disable_adapter():
            yield model
    finally:
        # peft's switch makes every adapter weight trainable on the way back, wanted or not.
        for parameter in trainable:
            parameter.requires_grad_(True)
        for parameter in frozen:
            parameter.requires_grad_(False)


def trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies, in CPU memory, of every weight that is trained: name -> tensor of its own type. Tied weights are one."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put a `trainable_state` back, bit for bit. All or nothing: raises CheckpointError that lists every weight that is
    missing, unexpected, or of another shape or type, before anything is changed."""
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    different = [
        f"{name} {list(state[name].shape)} {state[name].dtype}, here {list(own[name].shape)} {own[name].dtype}"
        for name in own
        if name in state and (own[name].shape != state[name].shape or own[name].dtype != state[name].dtype)
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("different", different))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"these weights are not the trainable weights of this model: {'; '.join(problems)}",
            expected="the same model, training.method, and lora.r and lora.target_modules as when they were saved",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
