"""Key/value memory of a decoding batch: written in place, rows replaced as they finish.

transformers' own cache grows by copying every key and value at every step. Here each layer owns a buffer with room to
spare and hands out the used columns as a view. Axes: B rows, K key/value heads, C columns (tokens), E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE_COLUMNS = 64
"""Columns added whenever a buffer is full."""


class SlotLayer(DynamicLayer):
    """One layer's keys and values: columns [first, first + num) of the buffers are in use; `keys` and `values`, which
    transformers reads, are views of exactly those."""

    def __init__(self) -> None:
        super().__init__()
        self._key_buffer = torch.empty(0)
        self._value_buffer = torch.empty(0)
        self._first = self._num = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns [B, K, new, E]; return all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_buffer = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[3]))
            self._value_buffer = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[3]))
        new = key_states.shape[2]
        if self._first + self._num + new > self._key_buffer.shape[2]:
            self._reserve(new + SPARE_COLUMNS)
        end = self._first + self._num
        self._key_buffer[:, :, end : end + new] = key_states
        self._value_buffer[:, :, end : end + new] = value_states
        self._num += new
        return self._expose()

    def drop_leading(self, num_columns: int) -> None:
        """Forget columns at the left that no row uses any more."""
        self._first += num_columns
        self._num -= num_columns
        self._expose()

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep these rows only, in this order; rows int64."""
        keys, values = self._expose()
        self._key_buffer, self._value_buffer = keys[rows], values[rows]
        self._first = 0
        self._expose()

    def replace_rows(self, rows: Sequence[int], other: SlotLayer) -> None:
        """Copy the rows of another layer, L columns wide, into the last L columns of these rows; their other columns
        keep old, finite values, which the caller's mask must hide."""
        keys, values = other._expose()
        start, end = self._first + self._num - keys.shape[2], self._first + self._num
        for row, row_keys, row_values in zip(rows, keys, values, strict=True):
            self._key_buffer[row, :, start:end] = row_keys
            self._value_buffer[row, :, start:end] = row_values

    def move_right(self, row: int, num_columns: int, by: int) -> None:
        """Copy the first columns of a row so many columns further; where they lay, old, finite values stay."""
        start = self._first
        for buffer in (self._key_buffer, self._value_buffer):
            buffer[row, :, start + by : start + by + num_columns] = buffer[row, :, start : start + num_columns].clone()

    def _reserve(self, num_columns: int) -> None:
        used = slice(self._first, self._first + self._num)
        self._key_buffer = _with_room(self._key_buffer[:, :, used], num_columns)
        self._value_buffer = _with_room(self._value_buffer[:, :, used], num_columns)
        self._first = 0

    def _expose(self) -> tuple[torch.Tensor, torch.Tensor]:
        used = slice(self._first, self._first + self._num)
        keys, values = self._key_buffer[:, :, used], self._value_buffer[:, :, used]
        self.keys, self.values = keys, values
        return keys, values


def _with_room(columns: torch.Tensor, num_columns: int) -> torch.Tensor:
    rows, heads, used, size = columns.shape
    buffer = columns.new_empty((rows, heads, used + num_columns, size))
    buffer[:, :, :used] = columns
    return buffer


def slot_cache(config: PreTrainedConfig) -> Cache | None:
    """A cache whose rows can be replaced, or None when a layer of this model keeps something other than plain keys
    and values (a sliding window, a recurrent state)."""
    plain = DynamicCache(config=config)
    if not plain.layers or any(type(layer) is not DynamicLayer for layer in plain.layers):
        return None
    return Cache(layers=[SlotLayer() for _ in plain.layers])
