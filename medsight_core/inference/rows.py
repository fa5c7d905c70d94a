"""Key/values of the texts that are written together, side by side, and the step that reads one more token of each.

`GrowingRows` is for any device and any model: texts of different lengths stand padded on the left, and room for further
tokens is made as they come. `fixed.FixedRows` is the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from medsight_core.model import MedSightForConditionalGeneration

ROOM: Final = 64
"""Tokens that key/values have room for before they are copied to a larger place."""

KeyValues = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, each `(1, heads, length, width)`."""


class Rows(Protocol):
    """Texts side by side."""

    def arrange(self, rows: Sequence[int | KeyValues], lengths: Sequence[int], most: Sequence[int]) -> None:
        """Says which texts there are from now on.

        Args:
            rows: Each text, by the number that it had so far or, where it is new, by its key/values.
            lengths: Tokens of each that were read.
            most: Tokens of each that may still be read.
        """

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Hidden states `(texts, hidden)` of one more token of each text; `keep` or `undo` it."""

    def keep(self) -> None:
        """Makes what was read a part of the texts."""

    def undo(self) -> None:
        """Takes back what was read, or begun to be read."""

    def key_values(self, row: int, length: int) -> KeyValues:
        """Of the text in a row, as long as it is."""

    def clear(self) -> None:
        """Lets go of all texts."""


class GrowingRows:
    """Rows in a store that grows.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: MedSightForConditionalGeneration) -> None:
        self._model = model
        self.clear()

    def arrange(self, rows: Sequence[int | KeyValues], lengths: Sequence[int], most: Sequence[int]) -> None:
        """See `Rows`; a text that comes or goes means a copy of all."""
        parts = [
            self.key_values(row, length) if isinstance(row, int) else row
            for row, length in zip(rows, lengths, strict=True)
        ]
        longest = max(lengths)
        layers = [
            RoomyLayer([part[n][0] for part in parts], [part[n][1] for part in parts], longest)
            for n in range(len(parts[0]))
        ]
        device = layers[0].keys.device
        mask = None
        if min(lengths) < longest:
            mask = torch.ones(len(lengths), longest + max(most) + 1, dtype=torch.long)
            for row, length in enumerate(lengths):
                mask[row, : longest - length] = 0
            mask = mask.to(device)
        self._cache, self._mask, self._length = Cache(layers=layers), mask, longest
        self._positions = torch.tensor(lengths, device=device)[:, None]

    def read(self, tokens: Sequence[int]) -> Tensor:
        """See `Rows`."""
        ids = torch.tensor(tokens)[:, None].to(self._positions.device)
        out = self._model.model.language_model(
            input_ids=ids,
            attention_mask=None if self._mask is None else self._mask[:, : self._length + 1],
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state[:, -1]
        return hidden

    def keep(self) -> None:
        """See `Rows`."""
        self._positions = self._positions + 1
        self._length += 1

    def undo(self) -> None:
        """See `Rows`; some layers may have taken the token, others not."""
        for layer in self._cache.layers:
            layer.crop(min(0, self._length - layer.get_seq_length()))

    def key_values(self, row: int, length: int) -> KeyValues:
        """See `Rows`."""
        one = slice(row, row + 1)
        return tuple((layer.keys[one, :, -length:], layer.values[one, :, -length:]) for layer in self._cache.layers)

    def clear(self) -> None:
        """See `Rows`."""
        self._cache, self._mask, self._length = Cache(layers=[]), None, 0
        self._positions = torch.zeros(0, 1, dtype=torch.long)


class RoomyLayer(DynamicLayer):
    """Key/values that grow in place, in a store with room for some more tokens: `DynamicLayer` copies all at each one.

    Args:
        keys, values: Of each text `(1, heads, length, width)`.
        length: Of the longest; the others are padded on the left.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], length: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys[0].dtype, keys[0].device, True
        self._stores = [_padded(parts, length, ROOM) for parts in (keys, values)]
        self._show(length)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends key/values `(texts, heads, new, width)`; gives all there are."""
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        if stop > self._stores[0].shape[-2]:
            self._stores = [_padded([shown], start, stop - start + ROOM) for shown in (self.keys, self.values)]
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, start:stop] = states
        self._show(stop)
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = (store[:, :, :length] for store in self._stores)


def _padded(parts: Sequence[Tensor], length: int, room: int) -> Tensor:
    """Rows of several batches below each other, ``length`` long, zeros on the left, with room on the right."""
    _, heads, _, width = parts[0].shape
    store = parts[0].new_zeros(sum(len(part) for part in parts), heads, length + room, width)
    row = 0
    for part in parts:
        store[row : row + len(part), :, length - part.shape[-2] : length] = part
        row += len(part)
    return store
