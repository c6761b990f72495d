"""How padded rows go through a model: the language model inside a wrapper, with an attention that respects padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

Precision = Literal["float32", "bfloat16"]


def bare(model: torch.nn.Module) -> Any:
    """The transformers model inside adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def language_model(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model itself; adapters injected into its layers stay as they are, on or off."""
    inner = bare(model)
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"expected a transformers model, found {type(inner).__name__}")
    if inner.training:
        raise ValueError("the model is in training mode: call .eval() first, or dropout falsifies every number")
    return inner


@contextmanager
def padded_attention(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate with torch's SDPA (or the model's eager attention), whatever attention it was trained with: attention
    registered for packed training is given no mask and would read padding as text."""
    chosen = model.config._attn_implementation
    if chosen in ("sdpa", "eager"):
        yield
        return
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)


def computing_in(precision: Precision, model: PreTrainedModel) -> AbstractContextManager[object]:
    """bfloat16 over float32 weights is autocast; weights that are bfloat16 already need nothing."""
    if precision == "bfloat16" and model.dtype == torch.float32:
        return torch.autocast(model.device.type, dtype=torch.bfloat16)
    return nullcontext()


def keep_going() -> None:
    """The default `check`: never stops."""
