"""What attends to what in one row of packed documents, in the forms that the kernels take.

Axes: N tokens of the row, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from halo_forge.models.fast.attention import Block, document_blocks


@dataclass(slots=True)
class PackedRow:
    """blocks        queries with the keys that they see: all that the written-out products need (attention.py)
    starts        int32 [D + 1]: offsets of documents that lie end to end; for the varlen kernel
    lengths       the same as Python ints, so that no device is asked; empty with shared prefixes
    last_readers  int32 [N]: the last place of the row that sees a token; for FlexAttention, None where nobody asks
    block_mask    FlexAttention's mask, built by the first layer and kept for the others
    """

    blocks: tuple[Block, ...]
    starts: torch.Tensor | None = None
    lengths: tuple[int, ...] = ()
    last_readers: torch.Tensor | None = None
    block_mask: Any = field(default=None, repr=False)

    @staticmethod
    def of_documents(lengths: Sequence[int], blocks: tuple[Block, ...], device: torch.device) -> PackedRow:
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return PackedRow(blocks, torch.from_numpy(starts).to(device, non_blocking=True), tuple(lengths))


def single_document(length: int, device: torch.device) -> PackedRow:
    return PackedRow.of_documents([length], document_blocks([length]), device)


def last_readers(blocks: Sequence[Block], num_tokens: int) -> np.ndarray | None:
    """int32 [N] with which `key <= query <= last_readers[key]` is what the blocks say; None where no such vector is.

    In a row in depth-first order, as `shared_layout` makes it, what sees a token lies together behind it.
    """
    last = np.full(num_tokens, -1, np.int64)
    num_pairs = 0
    for block in blocks:  # in the order of the row: the last to see a token is the last to write
        for start, end in block.spans:
            last[start:end] = block.end - 1
        queries, keys = block.end - block.start, sum(end - start for start, end in block.spans)
        num_pairs += queries * keys - queries * (queries - 1) // 2
    # Every pair of a block satisfies the inequality, so equal counts mean equal sets.
    if num_pairs != int((last - np.arange(num_tokens) + 1).sum()):
        return None
    return last.astype(np.int32)
