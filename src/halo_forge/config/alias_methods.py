"""Readings of other tools' names for methods: kinds of LoRA, 4 bits, frozen layers, new tokens."""

from __future__ import annotations

import re
from typing import Any

from halo_forge.config.alias_rules import Misfit, NotOffered, Reading, Rule, already, choice, refused, same, turns_on

METHODS = {
    "lora": "lora", "dora": "dora", "qlora": "qlora", "bottleneck": "adapter", "full": "full", "none": "full",
    "freeze": "full",
}  # fmt: skip
NOT_METHODS = dict.fromkeys(
    ("oft", "adalora", "longlora", "llama-adapter", "llama_adapter", "ia3", "vera", "prefix", "prompt"),
    "training.method: lora, dora, qlora, adapter or full",
)
METHOD_NAMES = ("finetuning_type", "train_type", "tuner_type", "peft_type")
FREEZE, FROZEN_TRAINABLE = "freeze", ("layers.last_2",)
"""LLaMA-Factory's word for training some layers only, and how many it takes where nothing is said."""

_IN_4_BITS = "training.method: qlora loads the base in 4 bits (nf4, doubly quantised)"
_TRAINABLE = "training.trainable: [layers.last_2, lm_head], for instance"

_NAMED = "naming the trained weights in this way"


def names(dotted: str) -> Rule:
    """A list, or names with commas between them."""

    def read(value: Any) -> Reading:
        if isinstance(value, str):
            return Reading({dotted: [name.strip() for name in value.split(",") if name.strip()]})
        return Reading({dotted: value})

    return Rule(read, dotted.partition(".")[0])


def kind_of_lora(method: str) -> Rule:
    """A switch that other tools write in several sections."""
    return Rule(turns_on("training.method", method).read)


_QLORA_OPTIONS = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16"}


def qlora_options(value: Any) -> Reading:
    """A switch, or a mapping of bitsandbytes' options with load_in_4bit among them."""
    if not isinstance(value, dict):
        return turns_on("training.method", "qlora").read(value)
    for key, option in value.items():
        if key == "load_in_4bit":
            continue
        if key not in _QLORA_OPTIONS or option != _QLORA_OPTIONS[key]:
            known = ", ".join(f"{name}: {ours}" for name, ours in _QLORA_OPTIONS.items()).replace("True", "true")
            raise NotOffered(f"{key} of this value is not part of this release", known, (key,))
    return turns_on("training.method", "qlora").read(value.get("load_in_4bit", False))


def quantisation_bits(value: Any) -> Reading:
    """LLaMA-Factory's `quantization_bit`."""
    if value == 4 and not isinstance(value, bool):
        return Reading({"training.method": "qlora"})
    raise NotOffered(f"{value} bits are not part of this release", "4, or remove it")


def unfrozen_parameters(value: Any) -> Reading:
    """Axolotl's list of regular expressions, matched from the start of a weight's name."""
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise Misfit("a list of regular expressions")
    for number, pattern in enumerate(value):
        if re.search(r"\[\d*:\d*\]$", pattern):
            raise NotOffered("training a range of rows of a weight is not part of this release", "the whole", (number,))
    return Reading({"training.trainable": [f"re:{pattern}" for pattern in value], "training.method": "full"})


def frozen_layers(value: Any) -> Reading:
    """LLaMA-Factory's `freeze_trainable_layers`: the last n layers, or, negative, the first n."""
    if not isinstance(value, int) or isinstance(value, bool) or value == 0:
        raise Misfit("a number of layers")
    return Reading({"training.trainable": [f"layers.last_{value}" if value > 0 else f"layers.0-{-value - 1}"]})


ROWS: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("tokens", "model.add_tokens"), names("model.add_tokens")),
    (("new_special_tokens", "model.add_special_tokens"), names("model.add_special_tokens")),
    (("added_tokens_overrides",), refused("renaming tokens", "model.add_tokens or add_special_tokens")),
    (("resize_vocab",), already((True,), "embeddings grow with model.add_tokens", "remove it")),
    (("resize_token_embeddings_to_32x",), refused("rounding the vocabulary up", "remove it")),
    (("load_in_4bit", "use_qlora"), kind_of_lora("qlora")),
    (("qlora",), Rule(qlora_options)),
    (("quantization_bit",), Rule(quantisation_bits, "training")),
    (("load_in_8bit",), refused("loading the model in 8 bits", _IN_4_BITS)),
    (("quantization_method", "quant_method"), already(("bnb", "bitsandbytes"), "bitsandbytes quantises", _IN_4_BITS)),
    (("quantization_config", "bnb_config_kwargs", "gptq"), refused("another quantisation", _IN_4_BITS)),
    (("bnb_4bit_quant_type", "quantization_type"), already(("nf4",), "the base is quantised to nf4", "nf4")),
    (
        ("bnb_4bit_use_double_quant", "use_bnb_nested_quant", "double_quantization"),
        already((True,), "scales are quantised, too", "true"),
    ),
    (
        ("bnb_4bit_compute_dtype",),
        already(("auto", "bfloat16", "float32"), "training.bf16 decides the type of the products", "training.bf16"),
    ),
    (("bnb_4bit_quant_storage",), already(("uint8",), "4-bit weights are kept as bytes", "uint8")),
    (("use_dora", "peft_use_dora", "lora_use_dora"), kind_of_lora("dora")),
    (("peft_use_rslora", "lora_use_rslora"), same("lora.use_rslora")),
    (("lora_modules_to_save", "additional_target", "lora.modules_to_save"), names("lora.modules_to_save")),
    (("lora_exclude_modules", "lora.exclude_modules"), names("lora.exclude_modules")),
    (("lora_layers_to_transform", "peft_layers_to_transform"), same("lora.layers_to_transform")),
    (("peft_layers_pattern", "layers_pattern"), refused("naming the list of layers", "lora.target_modules")),
    (("lora_rank_pattern", "peft_rank_pattern"), same("lora.rank_pattern")),
    (("lora_alpha_pattern", "peft_alpha_pattern"), same("lora.alpha_pattern")),
    (("unfrozen_parameters",), Rule(unfrozen_parameters, "training")),
    (("freeze_trainable_layers",), Rule(frozen_layers, "training")),
    (("freeze_trainable_modules",), already(("all",), "layers are trained whole", "trainable: [layers.last_2.mlp]")),
    (("freeze_extra_modules", "freeze_parameters", "freeze_parameters_ratio"), refused(_NAMED, _TRAINABLE)),
    (("trainable_parameters", "trainable_parameters_regex"), refused(_NAMED, _TRAINABLE)),
    (("use_peft",), choice("training.method", {True: "lora", False: "full"})),
    (("adapter",), choice("training.method", {key: METHODS[key] for key in METHODS if key != "freeze"}, NOT_METHODS)),
    (METHOD_NAMES, choice("training.method", METHODS, NOT_METHODS)),
    (("bottleneck_reduction", "adapter_reduction_factor"), same("adapter.reduction_factor")),
)  # fmt: skip
