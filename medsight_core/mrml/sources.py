"""The DICOM files that a volume of a scene was read from, and the same voxels in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.multival import MultiValue

from medsight_core.errors import InputError, MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.dicom import MODALITIES, read_dicom_series
from medsight_core.imaging.volume import Volume
from medsight_core.mrml.volumes import Header, instance_uids

FileOf = Callable[[str], str]
"""Gives the file of a SOP Instance UID, "" where there is none: ``slicer.dicomDatabase.fileForInstance``."""

HEADER_TAGS: Final = ("Modality", "WindowCenter", "WindowWidth", "PhotometricInterpretation", "SeriesInstanceUID")

GRID_TOLERANCE: Final = 0.02
"""Of a voxel: how far the same voxel may lie apart in the scene and in the files."""


def files_of(node: Any, file_of: FileOf) -> tuple[Path, ...]:
    """The files that a volume node was read from, each once.

    Raises:
        InputError: not_dicom, instances_missing.
    """
    uids = instance_uids(node)
    if not uids:
        raise InputError(
            "not_dicom",
            f'"{node.GetName()}" was not loaded from the DICOM database.',
            "Export as .seg.nrrd or NIfTI, or import the scan with the DICOM module and ask again.",
        )
    found = [file_of(uid) for uid in uids]
    missing = sum(not name or not Path(name).is_file() for name in found)
    if missing:
        raise InputError(
            "instances_missing",
            f"{missing} of the {len(uids)} images of this series are not in the DICOM database any more.",
            "Import the series again with the DICOM module.",
        )
    return tuple(dict.fromkeys(Path(name) for name in found))


def header_of(node: Any, file_of: FileOf) -> Header:
    """What the files say that voxels do not; an empty header where there are none or they cannot be read."""
    try:
        path = files_of(node, file_of)[0]
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))
        code = str(dataset.get("Modality", "")).strip()
        window = (_first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth")))
    except Exception:  # a header only helps; pydicom raises many kinds of errors on damaged files
        return Header()
    centre, width = window
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        centre = width = None  # Slicer's reader turns the values round, and the window is meant for them as they were
    return Header(
        modality=MODALITIES.get(code, "unknown"),
        dicom_modality=code or None,
        window=(centre, width) if centre is not None and width is not None and width >= 1 else None,
    )


def source_volume(node: Any, file_of: FileOf) -> Volume:
    """The scan as it is read from its files, for writing what refers to them.

    Raises:
        InputError: not_dicom, instances_missing, and all that a series can be refused for.
    """
    return read_source(files_of(node, file_of))


def read_source(paths: Sequence[Path]) -> Volume:
    """The scan as it is read from the files of `files_of`; may be done in any thread.

    Raises:
        InputError: unreadable_source, and all that a series can be refused for.
    """
    try:
        header = dcmread(paths[0], stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        uid = header.get("SeriesInstanceUID", "")
    except Exception as error:  # pydicom raises many kinds of errors on damaged files
        raise InputError(
            "unreadable_source",
            f"{paths[0].name}, an image of this series, cannot be read any more: {error}.",
            "Import the series again with the DICOM module.",
        ) from error
    return read_dicom_series(paths, str(uid))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reordering:
    """From the voxels of one grid to the same voxels of another: axes turned and swapped, nothing interpolated.

    Attributes:
        axes: For each axis of the target, the axis of the source that it is.
        flips: Whether it runs the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array ``(slices, rows, columns)`` of the source in the order of the target."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return np.transpose(array, self.axes)[steps]


def reordering(source: Frame, target: Frame) -> Reordering:
    """How the voxels of one frame lie in another one.

    Raises:
        MedSightError: other_grid: they are not the same voxels.
    """
    start = target.to_index(source.to_lps((0, 0, 0)))
    steps = np.stack([target.to_index(source.to_lps(np.eye(3)[axis])) - start for axis in range(3)], axis=1)
    rounded = np.rint(steps)
    axes = np.abs(rounded).argmax(axis=1)
    found = Reordering(
        axes=(int(axes[0]), int(axes[1]), int(axes[2])),
        flips=tuple(bool(rounded[n, axes[n]] < 0) for n in range(3)),  # type: ignore[arg-type]
    )
    shape = tuple(source.shape[axis] for axis in found.axes)
    same = sorted(found.axes) == [0, 1, 2] and shape == tuple(target.shape)
    if same:
        ends = target.to_index(source.corners())
        wanted = np.array(target.shape) - 1
        apart = np.minimum(np.abs(ends), np.abs(ends - wanted)).max()
        same = bool(apart <= GRID_TOLERANCE)
    if not same:
        raise MedSightError(
            "other_grid",
            "The voxels in the scene are not those of the DICOM files: the volume was cropped, resampled or moved.",
            "Export as .seg.nrrd or NIfTI, or ask about the volume as it was imported.",
        )
    return found


def _first(value: Any) -> float | None:
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
