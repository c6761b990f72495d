"""One document with its media, as `Media.logits` reads a batch: for what measures an example by itself.

Axes: T tokens of the document, S supervised positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from halo_forge.chat.records import Example
from halo_forge.domains.media import Media
from halo_forge.models.fast.row import PackedRow, single_document


@dataclass(frozen=True, slots=True)
class LoneDocument:
    """input_ids, position_ids int64 [1, T]; positions int64 [S], the ones before the targets; targets int64 [S]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    media: dict[str, torch.Tensor]

    @property
    def document_lengths(self) -> tuple[int, ...]:
        return (self.input_ids.shape[1],)

    def row(self) -> PackedRow:
        return single_document(self.input_ids.shape[1], self.input_ids.device)


def lone_document(example: Example, media: Media, device: torch.device) -> LoneDocument:
    """Raises DataError for a medium that is gone or changed."""
    ids = torch.from_numpy(example.input_ids.astype(np.int64)).to(device)
    supervised = torch.from_numpy(np.flatnonzero(example.loss_weights > 0)).to(device)
    inputs = {name: tensor.to(device) for name, tensor in media.inputs([example]).items()}
    places = torch.arange(len(ids), device=device)
    return LoneDocument(ids[None], places[None], supervised - 1, ids[supervised], inputs)
