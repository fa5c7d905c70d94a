"""The size that a compressed image declares in its own code, to be compared with the DICOM header before decoding."""

from __future__ import annotations

import struct
from typing import Final

_J2K_START: Final = b"\xff\x4f\xff\x51"
_J2K_SEARCH: Final = 4096
_NO_FRAME_HEADER: Final = (0xC4, 0xC8, 0xCC)  # among the C0 to CF markers these are tables, not frame headers
_JPEG_LS_FRAME: Final = 0xF7


def is_complete(data: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 image has its end marker; decoders show part of a cut one without a word."""
    return data.rstrip(b"\0\xff").endswith(b"\xff\xd9")


def coded_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 image declares; None where they cannot be found.

    Sources: ITU-T T.800 A.5.1 (SIZ), T.81 B.2.2 (frame header), T.87 C.2.2.
    """
    start = data.find(_J2K_START, 0, _J2K_SEARCH)
    if start >= 0:
        siz = data[start + 8 : start + 24]
        if len(siz) < 16:
            return None
        right, bottom, left, top = struct.unpack(">4I", siz)
        return bottom - top, right - left
    if not data.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == _JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME_HEADER):
            rows, columns = struct.unpack(">2H", data[position + 5 : position + 9])
            return rows, columns
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
