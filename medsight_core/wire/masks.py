"""Masks on the wire: the bits within the bounding box, packed and deflated."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medsight_core.errors import InputError
from medsight_core.wire import checked

Box = tuple[tuple[int, int], ...]

_LEVEL: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMask:
    """A mask as it travels.

    Attributes:
        shape: Of the whole mask, (rows, columns) or (slices, rows, columns).
        box: For every axis, the first and the last + 1 index of the bounding box; zeros where the mask is empty.
        data: `numpy.packbits` of the box in C order, deflated; empty where the mask is.

    Raises:
        InputError: bad_mask: the box does not lie within the shape, or there cannot be so much data.
    """

    shape: tuple[int, ...]
    box: Box
    data: bytes

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or min(self.shape) < 1 or len(self.box) != len(self.shape):
            raise _bad(f"its shape has {len(self.shape)} axes and its box {len(self.box)}")
        if any(not 0 <= start <= stop <= size for (start, stop), size in zip(self.box, self.shape, strict=True)):
            raise _bad("its box reaches outside")
        packed = _packed_bytes(self.box)
        if bool(packed) != bool(self.data) or len(self.data) > packed + packed // 1000 + 64:
            raise _bad(f"it has {len(self.data):,} bytes for a box of {packed:,}")

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``; the data as base64."""
        return {
            "shape": list(self.shape),
            "box": [list(ends) for ends in self.box],
            "data": base64.b64encode(self.data).decode("ascii"),
        }

    @classmethod
    def from_json(cls, value: object) -> PackedMask:
        """Reads what `to_json` wrote.

        Raises:
            InputError: bad_request, bad_mask.
        """
        fields = checked.record(value, "A mask", required=("shape", "box", "data"))
        shape = [checked.integer(n, "A mask's shape", low=1) for n in checked.listed(fields["shape"], "shape", most=3)]
        box = []
        for ends in checked.listed(fields["box"], "A mask's box", most=3):
            pair = [checked.integer(n, "A mask's box") for n in checked.listed(ends, "A mask's box", most=2)]
            if len(pair) != 2:
                raise checked.wrong("A mask's box", "a first and a last index for every axis")
            box.append((pair[0], pair[1]))
        encoded = fields["data"]
        if not isinstance(encoded, str):
            raise checked.wrong("A mask's data", "base64 text", encoded)
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise checked.wrong("A mask's data", "base64 text") from error
        return cls(shape=tuple(shape), box=tuple(box), data=data)


def pack_mask(mask: NDArray[np.bool_]) -> PackedMask:
    """Packs a mask ``(rows, columns)`` or ``(slices, rows, columns)``."""
    mask = np.asarray(mask, dtype=bool)
    box, part = [], mask
    for axis in range(mask.ndim):
        start, stop = _extent(part, axis)
        box.append((start, stop))
        part = part[(slice(None),) * axis + (slice(start, stop),)]
    data = zlib.compress(np.packbits(part).tobytes(), _LEVEL) if part.size else b""
    return PackedMask(shape=mask.shape, box=tuple(box), data=data)


def unpack_mask(packed: PackedMask, *, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mask, bit for bit as it was packed.

    Args:
        packed: As it came.
        shape: What it must have; memory is taken for that, not for what a stranger declares.

    Raises:
        InputError: bad_mask.
    """
    if packed.shape != shape:
        raise _bad(f"it has shape {packed.shape}, expected {shape}")
    mask = np.zeros(shape, dtype=bool)
    if not packed.data:
        return mask
    sides = [stop - start for start, stop in packed.box]
    count = math.prod(sides)
    bits = np.unpackbits(np.frombuffer(_inflate(packed.data, _packed_bytes(packed.box)), np.uint8))
    part = bits[:count].reshape(sides).view(np.bool_)
    # A box of nearly the right size would shift every row, and no checksum covers it.
    tight = all(part.take(end, axis).any() for axis in range(part.ndim) for end in (0, -1))
    if bits[count:].any() or not tight:
        raise _bad("its box is not the one that its data fill")
    mask[tuple(slice(start, stop) for start, stop in packed.box)] = part
    return mask


def _extent(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    others = tuple(other for other in range(mask.ndim) if other != axis)
    covered = np.flatnonzero(mask.any(axis=others))
    return (int(covered[0]), int(covered[-1]) + 1) if len(covered) else (0, 0)


def _packed_bytes(box: Box) -> int:
    return (math.prod(stop - start for start, stop in box) + 7) // 8


def _inflate(data: bytes, size: int) -> bytes:
    """Inflates to exactly ``size`` bytes, never to more."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, size)
        # The checksum comes behind the last byte; one more byte of output would be one too many.
        rest = inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise _bad("its data are damaged") from error
    if len(raw) != size or rest or not inflater.eof or inflater.unused_data:
        raise _bad(f"its data are not the {size:,} bytes of its box")
    return raw


def _bad(why: str) -> InputError:
    return InputError("bad_mask", f"A mask cannot be read: {why}.", "Send it again; it was damaged on the way.")
