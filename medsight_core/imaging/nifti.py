"""NIfTI to a volume, slab by slab, so that a file never takes more memory than the volume it becomes."""

from __future__ import annotations

import gzip
import logging
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError
from medsight_core.imaging.files import printable
from medsight_core.imaging.formats import COPY_AGAIN, check_ratio, damage_named, finished, label, one_of_many
from medsight_core.imaging.orientation import RAS_TO_LPS, Arrangement, arrange, bad_geometry
from medsight_core.imaging.values import real_values
from medsight_core.imaging.volume import Volume

HEADERS: Final = {348: (nib.Nifti1Header, b"n+1"), 540: (nib.Nifti2Header, b"n+2")}
"""By the size a header begins with: its class, and how the magic of a single file begins."""

UNITS_MM: Final = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
MAX_DATA_OFFSET: Final = 64 * 2**20
"""Extensions before the data larger than this are not a scan's."""

MAX_TRAILING: Final = 2**24
"""Bytes after the data that are read to reach the check sum of a compressed file."""


def read_nifti(path: Path, *, volume: str | None = None) -> Volume:
    """Reads ``.nii`` or ``.nii.gz``.

    Args:
        path: The file.
        volume: Which one, from 1, where the file holds several (time points, echoes).

    Raises:
        InputError: not_nifti, bad_header, bad_geometry, too_large, truncated, pixels_unreadable, several_volumes,
            unsupported_object.
    """
    with damage_named(path):
        compressed = _is_gzip(path)
        with cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb") as stream:
            header, consumed = _header(path, stream)
            shape, number = one_of_many(path, tuple(int(n) for n in header.get_data_shape()), volume)
            dtype = header.get_data_dtype()
            if dtype.kind == "c" or (dtype.names and len(dtype.names) != 3):
                raise InputError(
                    "unsupported_object", f"{label(path)} holds values of type {dtype}.", "Convert it first."
                )
            one = int(np.prod(shape)) * dtype.itemsize
            total = int(np.prod(header.get_data_shape())) * dtype.itemsize
            check_ratio(path, total)
            offset = int(header.get_data_offset())
            if not compressed and path.stat().st_size < offset + total:
                raise EOFError
            affine, warnings = _affine(path, header)
            arrangement = arrange(RAS_TO_LPS @ affine, shape, path)
            scale = _scale(path, header)
            if not consumed <= offset <= MAX_DATA_OFFSET:
                raise InputError("bad_header", f"{label(path)} places its data at byte {offset:,}.", COPY_AGAIN)
            _skip(stream, offset - consumed + (number - 1) * one)
            array = _read(stream, arrangement, shape, dtype, scale)
            if compressed:
                _to_the_end(stream, total - number * one + MAX_TRAILING)
    return finished(path, array, arrangement, warnings, kind="nifti")


def read_arrangement(path: Path) -> Arrangement:
    """How the axes (i, j, k) of a file that `read_nifti` reads become (slice, row, column); its values are not read.

    For what other programs say in voxels of the file, and for what is given back to them on its grid.

    Raises:
        InputError: As `read_nifti`, for what is wrong with the header.
    """
    with damage_named(path), cast(BinaryIO, gzip.open(path)) if _is_gzip(path) else path.open("rb") as stream:
        header, _ = _header(path, stream)
        shape, _ = one_of_many(path, tuple(int(n) for n in header.get_data_shape()), "1")
        affine, _ = _affine(path, header)
        return arrange(RAS_TO_LPS @ affine, shape, path)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _header(path: Path, stream: BinaryIO) -> tuple[Any, int]:
    """The header, and how many bytes of the stream it took."""
    start = stream.read(4)
    size = next(
        (n for n in HEADERS for order in ("little", "big") if int.from_bytes(start, cast(Any, order)) == n), None
    )
    if size is None:
        raise InputError(
            "not_nifti",
            f"{label(path)} is compressed, but there is no NIfTI inside.",
            "Unpack it and give what is inside.",
        )
    kind, magic = HEADERS[size]
    data = start + stream.read(size - 4)
    if len(data) < size:
        raise EOFError
    found = data[344:347] if size == 348 else data[4:7]
    if found != magic:
        raise InputError(
            "not_nifti",
            f"{label(path)} is half of a pair of files (.hdr and .img) or in the older Analyze format.",
            "Convert it to one .nii or .nii.gz file, for instance with nib-convert.",
        )
    try:
        header = kind.from_fileobj(BytesIO(data), check=False)
        header.check_fix(logger=logging.getLogger(__name__))
        return header, size
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise InputError(
            "bad_header", f"{label(path)} has a damaged header: {printable(str(error), 120)}.", COPY_AGAIN
        ) from error


def _affine(path: Path, header: Any) -> tuple[npt.NDArray[np.float64], list[str]]:
    """``(4, 4)`` (i, j, k, 1) to RAS mm, and what a person should know about it."""
    warnings = []
    if not np.isfinite(np.asarray(header["pixdim"], dtype=float)[1:4]).all():
        raise bad_geometry(path, "its voxel sizes are not finite")
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        warnings.append(f"{label(path)} does not say how the patient lies; left and right are not certain.")
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64).copy()
        unit = UNITS_MM.get(header.get_xyzt_units()[0], 1.0)
    except (ValueError, KeyError) as error:
        raise bad_geometry(path, "its orientation is not a rotation") from error
    affine[:3] *= unit
    return affine, warnings


def _scale(path: Path, header: Any) -> tuple[float, float]:
    if np.isinf([header["scl_slope"], header["scl_inter"]]).any():  # NaN means no scale; infinity is damage
        raise InputError("bad_rescale", f"{label(path)} scales its values by infinity.", COPY_AGAIN)
    slope, intercept = header.get_slope_inter()
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if not np.isfinite([slope, intercept]).all() or max(abs(slope), abs(intercept)) > 1e30:
        raise InputError("bad_rescale", f"{label(path)} scales its values by {slope:g} and {intercept:g}.", COPY_AGAIN)
    return slope, intercept


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0:
        piece = stream.read(min(count, 2**20))
        if not piece:
            raise EOFError
        count -= len(piece)


def _to_the_end(stream: BinaryIO, limit: int) -> None:
    """Reads what is left, for gzip checks its sum at the end only; but not for ever."""
    while limit > 0 and (piece := stream.read(2**20)):
        limit -= len(piece)


def _read(
    stream: BinaryIO,
    arrangement: Arrangement,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    scale: tuple[float, float],
) -> npt.NDArray[Any]:
    """Reads slab by slab along the file's last axis straight into the arranged array."""
    colour = dtype.names is not None
    array: npt.NDArray[Any] = (
        np.empty((*arrangement.shape, 3), np.uint8) if colour else np.empty(arrangement.shape, np.int16)
    )
    native = arrangement.native(array)
    length = shape[0] * shape[1] * dtype.itemsize
    for k in range(shape[2]):
        data = stream.read(length)
        if len(data) < length:
            raise EOFError
        if colour:
            native[:, :, k] = (
                np.frombuffer(data, np.uint8).reshape((3, shape[0], shape[1]), order="F").transpose(1, 2, 0)
            )
            continue
        slab = real_values(np.frombuffer(data, dtype).reshape(shape[:2], order="F"), *scale)
        if slab.dtype != array.dtype and array.dtype == np.int16:
            array = array.astype(np.float32)
            native = arrangement.native(array)
        native[:, :, k] = slab
    return array
