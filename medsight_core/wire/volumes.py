"""Volumes on the wire: an allow-list of facts, then the voxels, compressed piece by piece.

    magic (4) | codec (1) | length of the header (4, little endian) | header, JSON
    then for every piece of 8 MiB of voxels (the last one may be shorter): compressed length (4) | compressed bytes

Voxels are in C order and little endian. How large each piece becomes follows from the header, so there is nothing to
lie about: what is declared is checked before memory is taken, and no piece can inflate beyond its place. A volume is
named by the SHA-256 of its header and voxels, however they were compressed.

The rebuilt volume gives a model the same inputs, bit for bit. It has no paths, identifiers, descriptions or warnings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.volume import Volume
from medsight_core.wire.codecs import CODECS, Codec, packed_limit, usable_codecs
from medsight_core.wire.headers import Header, canonical, describe, parse

MAGIC: Final = b"MSV\x01"

PIECE_BYTES: Final = 8 * 2**20
"""Voxels that are compressed together; a multiple of every item's size."""

LONGEST_HEADER: Final = 8 * 2**20
"""Bytes of a header: twice what the largest volume needs."""

_START: Final = len(MAGIC) + 1 + 4


def header_of(volume: Volume) -> dict[str, Any]:
    """All that is told of a volume besides its voxels; see `medsight_core.wire.headers`.

    Raises:
        InputError: bad_dtype, bad_shape, too_large.
    """
    return describe(volume)


def digest_of(volume: Volume) -> str:
    """The name of a volume: 64 hexadecimal digits.

    Raises:
        InputError: bad_dtype, bad_shape, too_large.
    """
    digest = _begun(canonical(describe(volume)))
    for piece in _pieces(_voxels(volume)):
        digest.update(piece.data)
    return digest.hexdigest()


def chunks_of(volume: Volume, *, codec: Codec | None = None) -> Iterator[bytes]:
    """The bytes that are sent, in parts of a few MiB.

    Args:
        volume: Any scan.
        codec: One that the other end can read; None for "zlib", which all can.

    Raises:
        InputError: bad_dtype, bad_shape, too_large; at once, before the first part.
    """
    header = canonical(describe(volume))
    return _chunks(volume, header, codec or "zlib")


def _chunks(volume: Volume, header: bytes, codec: Codec) -> Iterator[bytes]:
    coder = CODECS[codec]
    yield MAGIC + bytes([coder.number]) + len(header).to_bytes(4, "little") + header
    for piece in _pieces(_voxels(volume)):
        packed = coder.pack(piece, volume.array.dtype.itemsize)
        yield len(packed).to_bytes(4, "little") + packed


def begin(head: bytes | bytearray, *, limit_bytes: int) -> int | None:
    """Judges an upload by its first bytes, so that a wrong one ends early.

    Args:
        head: What has come so far.
        limit_bytes: See `receive`.

    Returns:
        How many bytes may come in all; None while the header is not there as a whole.

    Raises:
        InputError: See `receive`.
    """
    if len(head) < _START:
        if not MAGIC.startswith(bytes(head[: len(MAGIC)])):
            raise _not_ours()
        return None
    length = _header_length(bytes(head[:_START]))
    if len(head) < _START + length:
        return None
    header = parse(bytes(head[_START : _START + length]), limit_bytes=limit_bytes)
    return _START + length + sum(4 + packed_limit(size) for size in _sizes(header.voxel_bytes))


def receive(chunks: Iterable[bytes], *, digest: str | None, limit_bytes: int) -> Volume:
    """Rebuilds a volume.

    Args:
        chunks: What `chunks_of` gave, cut in any way.
        digest: What it must be; None where that does not matter.
        limit_bytes: Of the voxels; no more memory is taken.

    Raises:
        InputError: bad_volume: the bytes are none of ours; truncated; too_large; bad_shape, bad_dtype, bad_geometry,
            not_finite: what no scan is; wrong_digest; unknown_codec: it is not installed here.
        MedSightError: out_of_memory.
    """
    source = _Source(chunks)
    start = source.take(_START)
    raw_header = source.take(_header_length(start))
    header = parse(raw_header, limit_bytes=limit_bytes)
    coder = next((one for one in CODECS.values() if one.number == start[len(MAGIC)]), None)
    if coder is None or coder.name not in usable_codecs():
        raise InputError(
            "unknown_codec",
            "The volume is compressed in a way that is not known here.",
            f"Send it with {' or '.join(usable_codecs())}.",
        )
    running = _begun(raw_header)
    array = _room(header)
    flat = array.reshape(-1).view(np.uint8)
    place = 0
    for size in _sizes(header.voxel_bytes):
        length = int.from_bytes(source.take(4), "little")
        if not 0 < length <= packed_limit(size):
            raise _damaged()
        piece = flat[place : place + size]
        coder.unpack(source.take(length), piece, array.dtype.itemsize)
        running.update(piece.data)
        place += size
        if header.dtype.kind == "f" and not np.isfinite(piece.view(header.dtype)).all():
            raise InputError("not_finite", "The volume holds values that are not finite.", "Set them to 0 first.")
    if source.more():
        raise _damaged()
    if digest is not None and running.hexdigest() != digest:
        raise InputError(
            "wrong_digest", "What came is not the volume that was announced.", "Send it again; it changed on the way."
        )
    return header.volume(array)


def _room(header: Header) -> npt.NDArray[Any]:
    try:
        return np.empty(header.shape, header.dtype)
    except MemoryError as error:
        raise MedSightError(
            "out_of_memory",
            f"There is no memory for a volume of {header.voxel_bytes:,} bytes.",
            "Ask later, or send a part of it.",
        ) from error


def _begun(header: bytes) -> hashlib._Hash:
    digest = hashlib.sha256(b"MedSIGHT volume\0" + len(header).to_bytes(4, "little"))
    digest.update(header)
    return digest


def _voxels(volume: Volume) -> npt.NDArray[np.uint8]:
    little = volume.array.dtype.newbyteorder("<")
    return np.ascontiguousarray(volume.array, dtype=little).reshape(-1).view(np.uint8)


def _pieces(voxels: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(voxels), PIECE_BYTES):
        yield voxels[start : start + PIECE_BYTES]


def _sizes(total: int) -> Iterator[int]:
    for start in range(0, total, PIECE_BYTES):
        yield min(PIECE_BYTES, total - start)


def _header_length(start: bytes) -> int:
    if not start.startswith(MAGIC):
        raise _not_ours()
    length = int.from_bytes(start[len(MAGIC) + 1 : _START], "little")
    if not 0 < length <= LONGEST_HEADER:
        raise _damaged()
    return length


class _Source:
    """Takes bytes in the lengths that are asked for from parts of any length."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._part = memoryview(b"")

    def take(self, count: int) -> bytes:
        """So many bytes.

        Raises:
            InputError: truncated.
        """
        taken = bytearray()
        while len(taken) < count:
            if not len(self._part):
                part = next(self._chunks, None)
                if part is None:
                    raise InputError("truncated", "The volume ends before its data: it is cut off.", "Send it again.")
                self._part = memoryview(part)
            wanted = count - len(taken)
            taken += self._part[:wanted]
            self._part = self._part[wanted:]
        return bytes(taken)

    def more(self) -> bool:
        """Whether there is anything left."""
        return bool(len(self._part)) or any(map(len, self._chunks))


def _not_ours() -> InputError:
    return InputError("bad_volume", "What came is no volume as MedSIGHT sends it.", "Use a client of the same age.")


def _damaged() -> InputError:
    return InputError("bad_volume", "The volume is damaged.", "Send it again.")
