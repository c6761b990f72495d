"""Documents with their media, as `Media.logits` reads a batch: for what measures examples outside of training.

Axes: T tokens of the documents in their row, S supervised positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from halo_forge.chat.records import Example
from halo_forge.domains.media import Media
from halo_forge.models.fast.attention import document_blocks
from halo_forge.models.fast.row import PackedRow


@dataclass(frozen=True, slots=True)
class Documents:
    """input_ids, position_ids int64 [1, T]; positions int64 [S], the ones before the targets; targets int64 [S]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    media: dict[str, torch.Tensor]
    document_lengths: tuple[int, ...]

    def row(self) -> PackedRow:
        lengths = self.document_lengths
        return PackedRow.of_documents(lengths, document_blocks(lengths), self.input_ids.device)


def documents(examples: Sequence[Example], media: Media, device: torch.device) -> Documents:
    """Examples end to end; one of them where the model does not pack. Raises DataError for a medium that is gone or
    changed."""
    lengths = [len(example.input_ids) for example in examples]
    ids = torch.from_numpy(np.concatenate([example.input_ids for example in examples]).astype(np.int64)).to(device)
    supervised = np.flatnonzero(np.concatenate([example.loss_weights for example in examples]) > 0)
    at = torch.from_numpy(supervised).to(device)
    inputs = {name: tensor.to(device) for name, tensor in media.inputs(examples).items()}
    places = torch.cat([torch.arange(length, device=device) for length in lengths])
    return Documents(ids[None], places[None], at - 1, ids[at], inputs, tuple(lengths))
