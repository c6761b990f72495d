"""What a LoRA adapter can be told beside rank, alpha and targets, under peft's names, checked against the model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from halo_forge.errors import UsageError

KEPT_FROZEN = "kept_frozen"
"""Attribute of modules that the configuration freezes (adapters.freeze)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """use_dora       train the magnitude of each output of a layer beside its direction
    use_rslora        scale by alpha / sqrt(r) instead of alpha / r
    rank_pattern, alpha_pattern  name or regular expression of a module -> its own rank or alpha
    modules_to_save   names of modules that are trained whole; of tied embeddings both ends stay one matrix
    exclude_modules   names of layers that get no adapter
    layers_to_transform  numbers of the layers that get one; None = all
    token_ids         rows of the embeddings (and of an untied output layer) that are trained
    """

    use_dora: bool = False
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: Sequence[str] = ()
    exclude_modules: Sequence[str] = ()
    layers_to_transform: Sequence[int] | None = None
    token_ids: Sequence[int] = ()


def peft_arguments(model: PreTrainedModel, targets: Sequence[str], options: LoraOptions) -> dict[str, Any]:
    """Arguments of peft's LoraConfig. Raises UsageError for whatever would match nothing in `model`: peft skips it."""
    names = [name for name, _ in model.named_modules() if name]
    frozen = [name for name, module in model.named_modules() if getattr(module, KEPT_FROZEN, False)]
    passed_over = [name for name in frozen if any(matches(name, target) for target in targets)]
    adapted = [name for name in _adapted_layers(names, targets, options) if name not in set(frozen)]
    _check_patterns(adapted, "rank_pattern", options.rank_pattern)
    _check_patterns(adapted, "alpha_pattern", options.alpha_pattern)
    kept = [name for name in options.modules_to_save if any(matches(module, name) for module in frozen)]
    if kept:
        raise UsageError(
            f"{kept[0]} is to be trained whole and to stay frozen", where="lora.modules_to_save",
            fix="take its part out of vision.freeze",
        )  # fmt: skip
    lost = [name for name in options.modules_to_save if not any(matches(module, name) for module in names)]
    if lost:
        _refuse(lost[0], "modules_to_save", names, "no module of this model is called")
    arguments: dict[str, Any] = {
        "use_dora": options.use_dora,
        "use_rslora": options.use_rslora,
        "rank_pattern": dict(options.rank_pattern),
        "alpha_pattern": {name: whole(alpha) for name, alpha in options.alpha_pattern.items()},
        "modules_to_save": [long for name in options.modules_to_save for long in unambiguous(name, names)] or None,
        "exclude_modules": [*options.exclude_modules, *passed_over] or None,
        "layers_to_transform": None if options.layers_to_transform is None else list(options.layers_to_transform),
    }
    ends = embedding_names(model)
    if _is_tied(model) and any(matches(end, name) for end in ends for name in options.modules_to_save):
        arguments["ensure_weight_tying"] = True
    if options.token_ids and any(matches(ends[0], name) for name in options.modules_to_save):
        return arguments  # the new rows are trained with all the others
    if options.token_ids:
        trained = ends[:1] if _is_tied(model) else ends
        rows = list(options.token_ids)
        arguments["trainable_token_indices"] = {_short(name, names): rows for name in trained}
    return arguments


def whole(value: float) -> int | float:
    """peft declares alpha int and divides; other readers of adapter_config.json expect 32, not 32.0."""
    return int(value) if float(value).is_integer() else value


def matches(module: str, name: str) -> bool:
    """Whether `name` names the module as peft understands it: the whole dotted name, or the end of it."""
    return module == name or module.endswith(f".{name}")


def unambiguous(name: str, modules: Sequence[str]) -> list[str]:
    """`name`, or the dotted names that it means: where peft trains modules whole it compares ends of texts, and `norm`
    would be every `input_layernorm`, too."""
    meant = [module for module in modules if matches(module, name)]
    return [name] if meant == [module for module in modules if module.endswith(name)] else meant


def _short(module: str, modules: Sequence[str]) -> str:
    """The last part of a dotted name where no other module's name ends so."""
    last = module.rpartition(".")[2]
    return last if [other for other in modules if other.endswith(last)] == [module] else module


def embedding_names(model: PreTrainedModel) -> list[str]:
    """Dotted names of the input embedding and the output layer, in this order, where the model has them."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    names = {module: name for name, module in model.named_modules()}
    return [names[end] for end in ends if isinstance(end, torch.nn.Module)]


def _is_tied(model: PreTrainedModel) -> bool:
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return output is not None and output.weight is model.get_input_embeddings().weight


def _adapted_layers(names: Sequence[str], targets: Sequence[str], options: LoraOptions) -> list[str]:
    """Modules that get an adapter; raises UsageError where an option leaves none or names none."""
    targeted = [name for name in names if any(matches(name, target) for target in targets)]
    lost = [name for name in options.exclude_modules if not any(matches(module, name) for module in targeted)]
    if lost:
        _refuse(lost[0], "exclude_modules", targeted, "lora.target_modules holds no layer called")
    adapted = [name for name in targeted if not any(matches(name, other) for other in options.exclude_modules)]
    if options.layers_to_transform is not None:
        numbers = {int(found[1]) for name in adapted if (found := re.search(r"\.(\d+)\.", name))}
        missing = sorted(set(options.layers_to_transform) - numbers)
        if missing:
            raise UsageError(
                f"there is no layer {missing[0]} to adapt",
                where="lora.layers_to_transform",
                expected=f"numbers from {min(numbers)} to {max(numbers)}"
                if numbers
                else "a model with numbered layers",
            )
        chosen = set(options.layers_to_transform)
        adapted = [n for n in adapted if (found := re.search(r"\.(\d+)\.", n)) and int(found[1]) in chosen]
    if not adapted:
        raise UsageError(
            "no layer is left to adapt", where="lora.exclude_modules", fix="exclude fewer, or target more modules"
        )
    return adapted


def _check_patterns(adapted: Sequence[str], option: str, patterns: Mapping[str, Any]) -> None:
    """Every pattern must be some adapted layer's; peft would ignore the others, and of two the first counts."""
    for pattern in patterns:
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
            _refuse(pattern, option, adapted, "no adapted layer matches")


def _refuse(name: str, option: str, known: Sequence[str], what: str) -> None:
    last_parts = sorted({module.rpartition(".")[2] for module in known} - {str(i) for i in range(1000)})
    near = difflib.get_close_matches(name.rpartition(".")[2], last_parts, n=1)
    raise UsageError(
        f"{what} {name}",
        where=f"lora.{option}",
        expected=f"some of: {', '.join(last_parts)}",
        fix=f"did you mean {near[0]}?" if near else None,
    )
