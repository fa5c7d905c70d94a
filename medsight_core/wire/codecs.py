"""How voxels are compressed on the wire: blosc2's Zstandard where both ends have it, else zlib.

Both sort the bytes of the voxels first (all low bytes, then all high bytes), which halves what is sent of a CT.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError

Codec = Literal["blosc2", "zlib"]
Bytes = npt.NDArray[np.uint8]

_LEVEL: Final = 1
"""More takes longer than it saves on any network that a scan should cross."""

_THREADS: Final = 4


class Coder(Protocol):
    """One way to compress.

    Attributes:
        name: In words.
        number: On the wire.
    """

    @property
    def name(self) -> Codec: ...

    @property
    def number(self) -> int: ...

    def pack(self, piece: Bytes, item: int) -> bytes:
        """Compresses bytes of items of so many bytes."""
        ...

    def unpack(self, packed: bytes, place: Bytes, item: int) -> None:
        """Fills a place exactly.

        Raises:
            InputError: bad_volume.
        """
        ...


class _Zlib:
    name: Codec = "zlib"
    number = 0

    def pack(self, piece: Bytes, item: int) -> bytes:
        return zlib.compress(np.ascontiguousarray(piece.reshape(-1, item).T).data, _LEVEL)

    def unpack(self, packed: bytes, place: Bytes, item: int) -> None:
        inflater = zlib.decompressobj()
        try:
            raw = inflater.decompress(packed, len(place))
            rest = inflater.decompress(inflater.unconsumed_tail, 1)  # the checksum, and not one byte more
        except zlib.error as error:
            raise _damaged() from error
        if len(raw) != len(place) or rest or not inflater.eof or inflater.unused_data:
            raise _damaged()
        place.reshape(-1, item)[:] = np.frombuffer(raw, np.uint8).reshape(item, -1).T


class _Blosc2:
    name: Codec = "blosc2"
    number = 1

    def pack(self, piece: Bytes, item: int) -> bytes:
        blosc2 = _blosc2()
        packed = blosc2.compress2(
            piece,
            codec=blosc2.Codec.ZSTD,
            clevel=_LEVEL,
            typesize=item,
            filters=[blosc2.Filter.SHUFFLE],
            filters_meta=[0],
            nthreads=_threads(),
        )
        return bytes(packed)

    def unpack(self, packed: bytes, place: Bytes, item: int) -> None:
        blosc2 = _blosc2()
        _check_chunk(packed, len(place), item)
        try:
            blosc2.decompress2(packed, dst=place, nthreads=_threads())
        except (RuntimeError, ValueError, TypeError) as error:
            raise _damaged() from error


CODECS: Final[Mapping[Codec, Coder]] = MappingProxyType({"blosc2": _Blosc2(), "zlib": _Zlib()})


def usable_codecs() -> tuple[Codec, ...]:
    """The codecs that are installed here, best first."""
    return ("blosc2", "zlib") if importlib.util.find_spec("blosc2") is not None else ("zlib",)


def best_codec(theirs: str) -> Codec:
    """The best codec that both ends have.

    Args:
        theirs: Names with commas between, as a server gives them; others than ours are passed over.
    """
    named = {name.strip() for name in theirs.split(",")}
    return next((codec for codec in usable_codecs() if codec in named), "zlib")


def packed_limit(size: int) -> int:
    """The most bytes that so many may have become: what cannot be compressed grows a little."""
    return size + size // 256 + 1024


def _check_chunk(packed: bytes, size: int, item: int) -> None:
    """Lets only such chunks through as `_Blosc2.pack` makes.

    blosc2's format has much more in it: dictionaries, values that are left uninitialised, plug-ins that it would load.
    The layout is that of its README_CHUNK_FORMAT: version, version of the codec, flags, item, size, block, compressed
    size (4 bytes each), six filters, codec, its parameter, six parameters of filters, more flags.
    """
    head = packed[:32]
    if len(head) < 32:
        raise _damaged()
    sizes = np.frombuffer(head, "<u4", count=3, offset=4)
    stored = head[2] & 0x02  # copied as it is, where compression gained nothing
    sound = (
        head[0] == 5
        and head[2] & 0x0D == 0x05
        and (stored or head[2] >> 5 == 4)
        and head[3] == item
        and sizes[0] == size
        and 0 < sizes[1] <= size
        and sizes[2] == len(packed)
        and head[16:22] == b"\1\0\0\0\0\0"
        and head[22] == 5
        and not any(head[23:31])
        and head[31] in (0x00, 0x10)  # 0x10: all zeros
        and (head[31] == 0 or len(packed) == 32)
        and (not stored or len(packed) == 32 + size)
    )
    if not sound:
        raise _damaged()


def _blosc2() -> Any:
    return importlib.import_module("blosc2")


def _threads() -> int:
    return min(_THREADS, os.cpu_count() or 1)


def _damaged() -> InputError:
    return InputError("bad_volume", "The volume's voxels are damaged.", "Send it again.")
