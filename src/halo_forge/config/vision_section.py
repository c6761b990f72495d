"""The section `vision`: how images are read, and which parts of a model that sees are trained."""

from __future__ import annotations

from typing import Literal

from halo_forge.config.section import PositiveInt, Section

VisionPart = Literal["tower", "projector", "language_model"]


class VisionSection(Section):
    max_pixels: PositiveInt | None = None
    """An image with more pixels is made smaller to this many before the model's processor sees it; null: as it is."""
    freeze: list[VisionPart] = ["tower"]
    """Parts that are not trained: tower, projector, language_model. Adapters (all-linear) pass over them."""
