"""The base model in 4 bits (QLoRA): nf4 with doubly quantised scales, by bitsandbytes. On GPUs and on CPUs."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from halo_forge.errors import UsageError
from halo_forge.models.quiet import quiet_bitsandbytes

INSTALL = 'pip install "halo-forge[quantised]"'


def require_bitsandbytes(
    what: str = "training.method: qlora", instead: str = "training.method: lora, which keeps the base unquantised"
) -> None:
    """Raises UsageError with the install line. Nothing is imported."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{what} needs the package bitsandbytes", where=what.partition(":")[0], fix=f"{INSTALL}; or {instead}"
        )


def nf4_config(dtype: torch.dtype) -> Any:
    """transformers' quantization_config; dtype is the type that weights are unpacked to for a product."""
    require_bitsandbytes()
    with quiet_bitsandbytes():
        importlib.import_module("bitsandbytes")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )


def keep_weights_as_loaded(model: torch.nn.Module) -> None:
    """Forbid bitsandbytes to repack weights in place.

    On CPUs with AVX512-BF16 the first forward pass in eval mode stores a layer in another layout whose scales are
    rounded to bfloat16, and cannot turn back: validating would change the model that is trained, and a resumed run
    would not be the same run. Layers whose input is no multiple of 64 wide fail there altogether (bitsandbytes 0.50).
    """
    for layer in quantised_layers(model):
        layer.support_avx512bf16_for_cpu = False


def quantised_layers(model: torch.nn.Module) -> list[Any]:
    """The layers in 4 bits; found by their weight's record, so that bitsandbytes need not be there."""
    return [module for module in model.modules() if _quant_state(getattr(module, "weight", None)) is not None]


def num_parameters(model: torch.nn.Module) -> int:
    """Parameters of a model; a packed weight counts as many as it stands for."""
    return sum(_numel(parameter) for parameter in model.parameters())


def _numel(parameter: torch.nn.Parameter) -> int:
    state = _quant_state(parameter)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def _quant_state(weight: Any) -> Any:
    return getattr(weight, "quant_state", None)


def to_compute_type(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Every floating-point weight in `dtype`; packed ones stay as they are (`Module.to` refuses such a model)."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and _quant_state(parameter) is None:
            parameter.data = parameter.data.to(dtype)
