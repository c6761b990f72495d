"""A run's method in one line, for cards and reports."""

from __future__ import annotations

from halo_forge.artifacts import LORA_METHODS, Method
from halo_forge.config.schema import Config

_NAMES = {"lora": "LoRA", "dora": "DoRA", "qlora": "QLoRA over a base in 4 bits"}


def method_words(config: Config, method: Method) -> str:
    """For instance `DoRA, rank 16, alpha 32` or `full, trained: layers.last_2, lm_head`."""
    if method in LORA_METHODS:
        lora = config.lora
        scaling = ", rank-stabilised" if lora.use_rslora else ""
        whole = f", whole: {', '.join(lora.modules_to_save)}" if lora.modules_to_save else ""
        return f"{_NAMES[method]}, rank {lora.r}, alpha {lora.alpha:g}{scaling}{whole}"
    if method == "adapter":
        adapter = config.adapter
        width = (
            f"width {adapter.bottleneck_size}"
            if adapter.bottleneck_size
            else f"width hidden size / {adapter.reduction_factor:g}"
        )
        place = "MLP and attention" if adapter.after_attention else "MLP"
        return f"bottleneck adapters after the {place}, {width}, {adapter.activation}"
    trainable = config.training.trainable
    return f"full, trained: {', '.join(trainable)}" if trainable else "full"
