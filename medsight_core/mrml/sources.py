"""The DICOM files that a volume of a scene was read from, and the same voxels in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import slicer
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.multival import MultiValue

from medsight_core.errors import InputError, MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.burned_in import pixel_text
from medsight_core.imaging.dicom import MODALITIES, read_dicom_series
from medsight_core.imaging.dicom_header import read_header
from medsight_core.imaging.volume import Volume
from medsight_core.mrml.volumes import Header, instance_uids

FileOf = Callable[[str], str]
"""Gives the file of a SOP Instance UID, "" where there is none: ``slicer.dicomDatabase.fileForInstance``."""

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
    """What a scan's files say that its voxels do not, or what Slicer noted of them; empty where nothing is known.

    A series whose images have no UIDs of their own is not in the DICOM database, but the volume knows the file that it
    was read from. Where the files are elsewhere, as for a scene from another computer, Slicer's subject hierarchy still
    has the modality.

    Args:
        node: Of the volume.
        file_of: Finds the files of DICOM instances.
    """
    try:
        header = read_header(_a_file(node, file_of))
        code = header.text("Modality").strip()
        window = (_first(header.dataset.get("WindowCenter")), _first(header.dataset.get("WindowWidth")))
    except Exception:  # a header only helps; pydicom raises many kinds of errors on damaged files
        code = _noted_modality(node)
        return Header(modality=MODALITIES.get(code, "unknown"), dicom_modality=code or None)
    centre, width = window
    inverted = header.layout.photometric == "MONOCHROME1"
    if inverted:
        centre = width = None  # the window is meant for the values as they were
    return Header(
        modality=MODALITIES.get(code, "unknown"),
        dicom_modality=code or None,
        window=(centre, width) if centre is not None and width is not None and width >= 1 else None,
        inverted=inverted,
        pixel_text=pixel_text([header]),
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


def _a_file(node: Any, file_of: FileOf) -> Path:
    """A file of the scan: of its instances, else the one that the volume itself was read from."""
    if instance_uids(node):
        return files_of(node, file_of)[0]
    storage = node.GetStorageNode()
    return Path((storage.GetFullNameFromFileName() if storage is not None else "") or "")


def _noted_modality(node: Any) -> str:
    """The DICOM modality that Slicer's DICOM module notes beside a volume; "" where it did not."""
    scene = node.GetScene()
    hierarchy: Any = None if scene is None else scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    item = 0 if hierarchy is None else hierarchy.GetItemByDataNode(node)
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    return (hierarchy.GetItemAttribute(item, name) or "").strip() if item else ""


def _first(value: Any) -> float | None:
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
