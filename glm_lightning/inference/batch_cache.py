"""A key/value cache whose rows come and go between two forward passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, final

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from glm_lightning.types import UserError

ROOM = 64
"""Columns that are kept free behind the rows at least, so that they are not moved at every token."""


@final
class BatchCache(Cache):
    """Keys and values of rows of different lengths, all of which end in the same column.

    In front of a row there is padding, as transformers wants it of a batch; so a new token of every row is written by
    one copy a layer, and windows of sliding attention are where they should be (they are masks here, nothing is
    dropped). Rows that leave are overwritten by the last ones; rows that join are put where the others end. Padding is
    kept finite: attention multiplies it by 0.

    Args:
        config: of the network.
        lengths: of the rows that the first forward passes fill, in tokens.
        room: columns to allocate for them, at least the longest of ``lengths``.
    """

    def __init__(self, config: PretrainedConfig, lengths: Sequence[int], *, room: int | None = None) -> None:
        self.lengths = list(lengths)
        self.start = self.end = 0
        self._capacity = (len(lengths), max(lengths, default=0) + ROOM if room is None else room)
        super().__init__(layers=[_Layer(self) for _ in range(_num_layers(config))])

    @property
    def width(self) -> int:
        """Columns from the beginning of the longest row to where all end."""
        return self.end - self.start

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values, padding and free columns included."""
        tensors = (tensor for layer in self._filled() for tensor in (layer.keys, layer.values))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def capacity(self) -> tuple[int, int]:
        """Rows and columns that there is memory for."""
        return self._capacity

    def advance(self, num_tokens: int) -> None:
        """Count the tokens that a forward pass has written: all layers have them now."""
        self.end += num_tokens

    def grow(self) -> None:
        """Make sure that there is a column for one more token of each row."""
        rows, columns = self._capacity
        if self.end == columns or len(self.lengths) * 4 <= rows:
            self._move(rows=len(self.lengths), end=self.width)
        self.lengths = [length + 1 for length in self.lengths]

    def mask(self) -> Tensor | None:
        """Which columns the next token of each row sees, (B, width + 1), 1 for seen; None if all rows see all.

        To be asked for behind `grow`, which counts that token.
        """
        width = self.width + 1
        if min(self.lengths) == width:
            return None
        padding = torch.tensor([[width - length] for length in self.lengths])
        return (torch.arange(width) >= padding).to(self._device)

    def join(self, other: BatchCache) -> None:
        """Take the rows of ``other``, which is given up, behind the own ones."""
        if not self.lengths:
            self.lengths, self.start, self.end = other.lengths, other.start, other.end
            self._capacity = other._capacity
            for layer, theirs in zip(self._own(), other._own(), strict=True):
                layer.take(theirs)
            return
        num_rows = len(self.lengths) + len(other.lengths)
        width = max(self.width, other.width)
        if num_rows > self._capacity[0] or self.end < width:
            self._move(rows=num_rows, end=width)
        for layer, theirs in zip(self._own(), other._own(), strict=True):
            layer.append(theirs, other.start, other.end)
        self.lengths += other.lengths
        self.start = self.end - width

    def drop(self, rows: Collection[int]) -> list[int]:
        """Let rows go; the numbers that those now at 0, 1, 2, ... had before."""
        order = _closed_up(len(self.lengths), rows)
        moves = [(place, row) for place, row in enumerate(order) if place != row]
        for layer in self._filled():
            layer.copy_rows(moves, self.start, self.end)
        self.lengths = [self.lengths[row] for row in order]
        self.start = self.end - max(self.lengths, default=0)
        if not order:
            self.start = self.end = 0
            self._capacity = (0, 0)
            for layer in self._filled():
                layer.free()
        return order

    def blank(self, row: int) -> None:
        """Forget what a row holds, if it may not be finite."""
        for layer in self._filled():
            layer.blank(row)

    def _move(self, *, rows: int, end: int) -> None:
        """Into memory for ``rows`` rows that end in column ``end``, and some columns more."""
        columns = end + max(ROOM, end // 8)
        for layer in self._filled():  # one after the other: not all of them are there twice at any time
            layer.move((rows, columns), len(self.lengths), slice(self.start, self.end), end)
        self._capacity = (rows, columns)
        self.start, self.end = end - self.width, end

    def _own(self) -> list[_Layer]:
        return [layer for layer in self.layers if isinstance(layer, _Layer)]

    def _filled(self) -> list[_Layer]:
        return [layer for layer in self._own() if layer.is_initialized]

    @property
    def _device(self) -> torch.device:
        keys = self._own()[0].keys
        assert keys is not None
        return keys.device


@final
class _Layer(CacheLayerMixin):
    """Keys (rows, K, columns, D) and values (rows, K, columns, E) of one layer, free columns included."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, batch: BatchCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch = batch

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for rows like these."""
        rows, columns = self._batch.capacity
        self.keys, self.values = (
            states.new_zeros(rows, states.shape[1], columns, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind the others; all of each row, from where the longest begins."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, num_rows = self._batch, key_states.shape[0]
        end = batch.end + key_states.shape[2]
        self.keys[:num_rows, :, batch.end : end] = key_states
        self.values[:num_rows, :, batch.end : end] = value_states
        return self.keys[:num_rows, :, batch.start : end], self.values[:num_rows, :, batch.start : end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that so many new tokens see, and the first one's number."""
        return self._batch.width + query_length, 0

    def get_seq_length(self) -> int:
        """Columns that are there already."""
        return self._batch.width

    def get_max_length(self) -> int:
        """There is no longest."""
        return -1

    def take(self, other: _Layer) -> None:
        """Be what ``other`` was."""
        self.keys, self.values, self.is_initialized = other.keys, other.values, other.is_initialized

    def free(self) -> None:
        """Give the memory back."""
        del self.keys, self.values
        self.is_initialized = False

    def append(self, other: _Layer, start: int, end: int) -> None:
        """Copy columns of another's rows to where the own ones end, behind the last row."""
        batch, first = self._batch, len(self._batch.lengths)
        for own, theirs in ((self.keys, other.keys), (self.values, other.values)):
            rows = own[first : first + theirs.shape[0]]  # rows that are being read never leave: all are there
            rows[:, :, : batch.end - (end - start)] = 0
            rows[:, :, batch.end - (end - start) : batch.end] = theirs[:, :, start:end]

    def copy_rows(self, moves: Sequence[tuple[int, int]], start: int, end: int) -> None:
        """Copy each second row to the place of the first one."""
        for states in (self.keys, self.values):
            for place, row in moves:
                states[place, :, start:end] = states[row, :, start:end]

    def blank(self, row: int) -> None:
        """Zeros in place of a row."""
        for states in (self.keys, self.values):
            states[row] = 0

    def move(self, capacity: tuple[int, int], num_rows: int, columns: slice, end: int) -> None:
        """Into new memory, so that the rows end in column ``end``."""
        self.keys, self.values = (
            _moved(states, capacity, num_rows, columns, end) for states in (self.keys, self.values)
        )


def _moved(states: Tensor, capacity: tuple[int, int], num_rows: int, columns: slice, end: int) -> Tensor:
    rows, num_columns = capacity
    moved = states.new_zeros(rows, states.shape[1], num_columns, states.shape[3])
    moved[:num_rows, :, end - (columns.stop - columns.start) : end] = states[:num_rows, :, columns]
    return moved


def _closed_up(num_rows: int, gone: Collection[int]) -> list[int]:
    """The rows that stay, the last ones in the places of those that are gone."""
    left = num_rows - len(gone)
    fillers = iter([row for row in range(left, num_rows) if row not in gone])
    return [next(fillers) if row in gone else row for row in range(left)]


def _num_layers(config: PretrainedConfig) -> int:
    """The number of layers, all of which must cache keys and values and nothing else.

    Raises:
        UserError: they do not.
    """
    layers = DynamicCache(config=config).layers
    others = {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    if others or not layers:
        raise UserError(
            f"model: a network of type {config.model_type!r} remembers more than keys and values ("
            f"{', '.join(sorted(others)) or 'of an unknown kind'}), which rows that come and go cannot share; "
            "serve one with plain attention, such as any GLM"
        )
    return len(layers)
