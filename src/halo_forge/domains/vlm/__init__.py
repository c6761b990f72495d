"""Models that see: questions about images, answered in text. Idefics3 and SmolVLM, LLaVA, Qwen2-VL, Gemma 3."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from halo_forge.config.schema import Config

if TYPE_CHECKING:
    from halo_forge.domains.vlm.vision import Vision


def open_vision(config: Config, tokenizer: Any, directory: Path) -> Vision:
    """The eyes of the model in `directory`. Raises ModelNotFound where its processor is missing or another's;
    UsageError where Pillow is not installed."""
    from halo_forge.domains.vlm.vision import Vision

    return Vision.of(config, tokenizer, directory)
