"""NRRD to a volume by SimpleITK, after its own text header was checked."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medsight_core.errors import InputError
from medsight_core.imaging.files import check_size
from medsight_core.imaging.formats import check_ratio, damage_named, finished, label, one_of_many
from medsight_core.imaging.orientation import arrange
from medsight_core.imaging.values import real_values
from medsight_core.imaging.volume import Volume

HEADER_LIMIT: Final = 1 << 20
"""Bytes within which the text header must end."""


def read_nrrd(path: Path, *, volume: str | None = None) -> Volume:
    """Reads ``.nrrd`` (header and data in one file).

    Args:
        path: The file.
        volume: Which one, from 1, where every voxel holds several values.

    Raises:
        InputError: As `read_nifti`; detached headers, which name other files to open, are refused.
    """
    with damage_named(path):
        fields, start = _fields(path)
        if "data file" in fields or "datafile" in fields:
            sentence = f"{label(path)} is a detached NRRD header, which names other files."
            raise InputError("unsupported_object", sentence, "Save it as one .nrrd file.")
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NrrdImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        dimension, components = reader.GetDimension(), reader.GetNumberOfComponents()
        if dimension not in (2, 3):
            raise InputError(
                "unsupported_object", f"{label(path)} has {dimension} axes, expected 2 or 3.", "Convert it first."
            )
        size = (*(int(n) for n in reader.GetSize()), 1)[:3]
        shape = (size[0], size[1], size[2])
        check_size(label(path), (components, *shape[::-1]))
        declared = int(np.prod(shape)) * components * _item_bytes(reader)
        check_ratio(path, declared)
        if fields.get("encoding", "") == "raw" and path.stat().st_size - start < declared:
            raise EOFError
        number = 1
        if components != 3:
            number = one_of_many(path, (*shape, components), volume)[1]
        arrangement = arrange(_affine(reader), shape, path)
        image = reader.Execute()
        stored = sitk.GetArrayViewFromImage(image)
        stored = stored if dimension == 3 else stored[None]
        colour = components == 3 and stored.dtype == np.uint8
        if components > 1 and not colour:
            stored = stored[
                ..., one_of_many(path, (*shape, components), volume)[1] - 1 if components == 3 else number - 1
            ]
        view = arrangement.view(stored.transpose((2, 1, 0, 3) if colour else (2, 1, 0)))
        array = np.ascontiguousarray(view) if colour else np.ascontiguousarray(real_values(view))
    return finished(path, array, arrangement, [], kind="nrrd")


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of the text header in lower case, and where the data begin."""
    with path.open("rb") as file:
        head = file.read(HEADER_LIMIT)
    end, gap = min(((head.find(mark), len(mark)) for mark in (b"\n\n", b"\r\n\r\n") if mark in head), default=(-1, 0))
    if end < 0:
        raise EOFError
    fields = {}
    for line in head[:end].decode("latin-1").splitlines():
        key, colon, value = line.partition(":")
        if colon and not value.startswith("="):
            fields[key.strip().lower()] = value.strip().lower()
    return fields, end + gap


def _item_bytes(reader: sitk.ImageFileReader) -> int:
    return int(np.dtype(sitk.extra._get_numpy_dtype(sitk.Image(1, 1, reader.GetPixelID()))).itemsize)


def _affine(reader: sitk.ImageFileReader) -> npt.NDArray[np.float64]:
    """``(4, 4)`` (i, j, k, 1) to LPS mm; ITK's world is LPS."""
    dimension = reader.GetDimension()
    affine = np.eye(4)
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)
    affine[:dimension, :dimension] = direction * np.array(reader.GetSpacing())
    affine[:dimension, 3] = reader.GetOrigin()
    return affine
