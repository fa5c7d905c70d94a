"""Which files are looked at, what they are by content, and how large anything may be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from medsight_core.errors import InputError

MAX_FRAME_PIXELS: Final = 2**26
"""Pixels of one image: 8192 x 8192, twice the largest radiographs. More is a mistake or an attack."""

MAX_VOXELS: Final = 2**30
"""Values of one volume: 4096 slices of 512 x 512, 2 GiB as int16."""

MAX_FILES: Final = 20_000
"""Files looked at in one folder and its subfolders."""

MAX_DEPTH: Final = 8
"""Levels of subfolders that are entered."""

Content = Literal["dicom", "nifti", "nrrd", "gzip", "image", "archive", "weights", "text", "empty", "unknown"]

_IMAGE_STARTS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\x00", b"MM\x00*", b"RIFF")
_HEAD_BYTES: Final = 512


def printable(text: str, limit: int = 64) -> str:
    """Text from a file, fit to be shown: one line, no control characters, not longer than ``limit``."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def check_size(what: str, shape: tuple[int, ...]) -> None:
    """Refuses an image or volume that is larger than anything real, before memory is taken for it.

    Args:
        what: Names the file in the sentence.
        shape: ``(..., rows, columns)``.

    Raises:
        InputError: too_large.
    """
    rows, columns = shape[-2:]
    total = 1
    for size in shape:
        total *= size
    if rows * columns > MAX_FRAME_PIXELS:
        raise InputError(
            "too_large",
            f"{what} declares an image of {rows} x {columns} pixels; the limit is {MAX_FRAME_PIXELS:,} pixels.",
            "The header is damaged, or the image must be made smaller first.",
        )
    if total > MAX_VOXELS:
        raise InputError(
            "too_large",
            f"{what} declares {' x '.join(map(str, shape))} values; the limit is {MAX_VOXELS:,}.",
            "The header is damaged, or the scan must be cut into parts first.",
        )


def sniff(path: Path) -> Content:
    """Tells by its first bytes what a regular file is."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return "empty"
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"NRRD0"):
        return "nrrd"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if int.from_bytes(head[:4], "little") in (348, 540) or int.from_bytes(head[:4], "big") in (348, 540):
        return "nifti"
    if head.startswith(_IMAGE_STARTS):
        return "image"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) or path.suffix in (".pt", ".pth", ".pkl"):
        return "weights"
    if head.startswith((b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf")):
        return "archive"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return "text"
    return "unknown"


def regular_files(folder: Path) -> Iterator[Path]:
    """Regular files below ``folder`` in name order; pipes, sockets, devices, links and hidden entries are left out.

    Raises:
        InputError: too_many_files.
    """
    seen = 0
    pending = [(folder, 0)]
    while pending:
        current, depth = pending.pop()
        with os.scandir(current) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        folders = []
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and depth < MAX_DEPTH:
                folders.append((Path(entry.path), depth + 1))
            elif stat.S_ISREG(mode):
                seen += 1
                if seen > MAX_FILES:
                    raise InputError(
                        "too_many_files",
                        f"{printable(folder.name)} holds more than {MAX_FILES:,} files.",
                        "Give the folder of one study or series.",
                    )
                yield Path(entry.path)
        pending.extend(reversed(folders))
