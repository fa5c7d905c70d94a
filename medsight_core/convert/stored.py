"""A tensor that lies in a file: where, of which type and shape; read block by block, never as a whole file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from medsight_core.errors import CheckpointError

BLOCK: Final = 4 * 2**20
"""Bytes that are read at once: few enough to stay in the processor's cache on their way."""

DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types by the names that safetensors files give them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor in a file.

    Attributes:
        file: Where it lies.
        start: Byte of its first element.
        dtype: One of `DTYPES`.
        shape: Its shape.
        strides: Elements between neighbours of each axis.
    """

    file: Path
    start: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return int(DTYPES[self.dtype].itemsize)

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included."""
        far = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return far + 1 if self.count else 0

    @property
    def in_order(self) -> bool:
        """Whether its elements lie one behind the other as they are counted."""
        pairs = zip(self.shape, self.strides, contiguous(self.shape), strict=True)
        return all(stride == plain for n, stride, plain in pairs if n > 1)

    def rows(self, first: int, count: int) -> Stored:
        """Some rows of it."""
        return replace(self, start=self.start + first * self.strides[0] * self.item, shape=(count, *self.shape[1:]))

    def blocks(self) -> Iterator[Tensor]:
        """Its elements in row-major order, as flat tensors of at most `BLOCK` bytes.

        One that is stored transposed or otherwise out of order is read at once; published weights hold none that is
        large.

        Raises:
            CheckpointError: damaged_checkpoint; the file ends too early.
        """
        dtype = DTYPES[self.dtype]
        if self.in_order:
            for first in range(0, self.count, BLOCK // self.item):
                count = min(BLOCK // self.item, self.count - first)
                yield torch.frombuffer(self._read(first, count), dtype=dtype)
        elif self.count:
            whole = torch.frombuffer(self._read(0, self.span), dtype=dtype)
            yield whole.as_strided(self.shape, self.strides).reshape(-1)

    def _read(self, first: int, count: int) -> bytearray:
        buffer = bytearray(count * self.item)
        # Plain reads, not a memory map: mapped pages would count as this process's memory.
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start + first * self.item)
            view, filled = memoryview(buffer), 0
            while filled < len(buffer):
                got = file.readinto(view[filled:])
                if not got:
                    raise CheckpointError(
                        "damaged_checkpoint",
                        f"{self.file} ends before its tensors do: it is truncated, or it changed while it was read.",
                        "Download it again.",
                    )
                filled += got
        return buffer


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor in row-major order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
