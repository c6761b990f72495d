"""What differs between families of vision-language models: names of parts, and how positions are counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

PartName = Literal["tower", "projector", "language_model"]


@dataclass(frozen=True, slots=True)
class Family:
    """parts   dotted names of the modules of each part
    packs   whether attention over packed documents is the model's own: Gemma 3 lets the tokens of one image see each
            other both ways, which a causal row of documents does not
    grids   positions have three axes (time, height, width), made from each image's grid (Qwen2-VL)
    inputs  what the model reads of an image beside its pixels
    processor  transformers' class for its images. SmolVLM's own writes the same text for an image as Idefics3's, and
               insists on a video processor, torchvision and num2words
    """

    parts: Mapping[PartName, tuple[str, ...]]
    packs: bool = True
    grids: bool = False
    inputs: tuple[str, ...] = ("pixel_values",)
    processor: str = "AutoProcessor"


def _parts(tower: str, projector: str, language_model: str) -> Mapping[PartName, tuple[str, ...]]:
    return {
        "tower": (f"model.{tower}",),
        "projector": (f"model.{projector}",),
        "language_model": (f"model.{language_model}", "lm_head"),
    }


_IDEFICS = Family(
    _parts("vision_model", "connector", "text_model"), inputs=("pixel_values", "pixel_attention_mask")
)  # fmt: skip
_NAMED = _parts("vision_tower", "multi_modal_projector", "language_model")
FAMILIES: Mapping[str, Family] = {
    "idefics3": _IDEFICS,
    "smolvlm": replace(_IDEFICS, processor="Idefics3Processor"),
    "llava": Family(_NAMED),
    "qwen2_vl": Family(
        _parts("visual", "visual.merger", "language_model"), grids=True, inputs=("pixel_values", "image_grid_thw")
    ),
    "gemma3": Family(_NAMED, packs=False),
}


def part_of(name: str, family: Family) -> PartName | None:
    """The part that a module or weight of the bare model belongs to: of several that fit, the innermost."""
    fitting = [
        (len(prefix), part)
        for part, prefixes in family.parts.items()
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    return max(fitting)[1] if fitting else None


def modules_of(model: Any, family: Family, part: PartName) -> list[str]:
    """Dotted names of all modules of a part."""
    return [name for name, _ in model.named_modules() if part_of(name, family) == part]
