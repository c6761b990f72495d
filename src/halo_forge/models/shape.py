"""What a model is made of, told from its config.json alone: the architecture on torch's meta device, no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from halo_forge.models.adapters import TargetModules, checked_targets, linear_module_names
from halo_forge.models.load import model_class
from halo_forge.models.quiet import quiet_transformers
from halo_forge.models.resolve import resolve_model
from halo_forge.runs import Notify, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes in features, counts in parameters.

    family         model_type of config.json
    query, key     features of all query heads, of all key heads of one layer
    intermediate   features inside the feed-forward block that one token passes (all its experts together)
    parameters     by part: embeddings, layers, norms, head (0 where it is tied to the embeddings)
    active         weights of linear layers that one token is multiplied with, without the head
    adapted          inputs + outputs of all linear layers that get an adapter: a rank of r adds r times as many weights
    adapted_share    input features of those layers as a share of all linear layers
    frozen           weights that need no gradient
    """

    family: str
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    query: int
    key: int
    vocabulary: int
    max_positions: int | None
    parameters: dict[str, int]
    active: int
    adapted: int = 0
    adapted_share: float = 0.0
    frozen: int = 0

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def head(self) -> int:
        """Weights of the output layer, tied or not."""
        return self.vocabulary * self.hidden


def read_shape(
    name: str,
    revision: str | None = None,
    *,
    target_modules: TargetModules | None = None,
    freeze: Callable[[PreTrainedModel], None] | None = None,
    notify: Notify = silent,
) -> ModelShape:
    """The shape of the model of that name; no weights are read, and none are downloaded.

    target_modules  lora.target_modules, or None for training without adapters
    freeze          takes the gradient from what is not to be trained
    Raises ModelNotFound as `load_model` does, UsageError for a target that no layer is called.
    """
    directory = resolve_model(name, revision, weights=False, notify=notify)
    model = empty_model(directory)
    if freeze is not None:
        freeze(model)
    return shape_of(model, target_modules)


def empty_model(directory: Path) -> PreTrainedModel:
    """The architecture of config.json with tensors that have a shape and no memory."""
    with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        model: PreTrainedModel = model_class(directory).from_config(config, trust_remote_code=False)
    return model


def shape_of(model: PreTrainedModel, target_modules: TargetModules | None = None) -> ModelShape:
    """The shape of a model, on whatever device it is."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linears = {
        name: inputs_and_outputs(module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    adapted = _adapted(model, linears, target_modules)
    num_inputs = sum(inputs for inputs, _ in linears.values())
    num_heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_key_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return ModelShape(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=_intermediate(config),
        num_heads=num_heads,
        query=num_heads * head_size,
        key=num_key_heads * head_size,
        vocabulary=config.vocab_size,
        max_positions=getattr(config, "max_position_embeddings", None),
        parameters=_count_by_part(model, head),
        active=sum(i * o for i, o in linears.values()) + _active_experts(model, config),
        adapted=sum(inputs + outputs for inputs, outputs in adapted),
        adapted_share=sum(inputs for inputs, _ in adapted) / num_inputs if num_inputs else 0.0,
        frozen=sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad),
    )


def inputs_and_outputs(module: torch.nn.Module) -> tuple[int, int]:
    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.get_parameter("weight").shape  # Conv1D of GPT-2 keeps them the other way round
    return int(inputs), int(outputs)


def _adapted(
    model: PreTrainedModel, linears: dict[str, tuple[int, int]], target_modules: TargetModules | None
) -> tuple[tuple[int, int], ...]:
    if target_modules is None:
        return ()
    names = linear_module_names(model) if target_modules == "all-linear" else target_modules
    targets = checked_targets(model, names)
    return tuple(shape for name, shape in linears.items() if any(name == t or name.endswith(f".{t}") for t in targets))


def _count_by_part(model: PreTrainedModel, head: torch.nn.Module | None) -> dict[str, int]:
    counts = dict.fromkeys(("embeddings", "layers", "norms", "head"), 0)
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, torch.nn.Embedding):
                part = "embeddings"
            elif module is head:
                part = "head"
            else:
                part = "norms" if parameter.ndim < 2 else "layers"
            counts[part] += parameter.numel()
    return counts


def _active_experts(model: PreTrainedModel, config: PretrainedConfig) -> int:
    """Weights of the experts that one token passes; transformers keeps all experts of a layer in one 3-d tensor."""
    experts = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 3)
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not experts or not num_experts:
        return 0
    return experts * int(getattr(config, "num_experts_per_tok", 1)) // num_experts


def _intermediate(config: PretrainedConfig) -> int:
    experts = getattr(config, "num_experts_per_tok", None)
    if experts:
        width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        return int(experts * width)
    named = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return int(named or 4 * config.hidden_size)


__all__ = ["ModelShape", "empty_model", "read_shape", "shape_of"]
