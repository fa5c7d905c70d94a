"""A volume node of a scene as a `Volume`: its voxels as they are stored, and where they lie without its transforms.

What a transform above the node does is left out on purpose: masks go back under the same transform, so they lie on the
same anatomy wherever it moves the volume.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import slicer
import vtk

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import PixelText, Source, Volume
from medsight_core.mrml.space import matrix_of

INSTANCES: Final = "DICOM.instanceUIDs"
"""Slicer's attribute of a volume node that was read from DICOM: its SOP Instance UIDs, with spaces between."""

PICTURES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Endings of files that have no place in a body, whatever spacing the reader makes up."""

IN_SCENE: Final = "in the scene"
"""Stands for a Frame of Reference UID: that there is one matters, which one is nobody's business."""

PROJECTIONS: Final = ("X-ray", "Ultrasound", "Endoscopy", "Dermoscopy", "Fundus", "OCT", "Pathology")
"""Modalities whose picture axes are not axes of the body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a scene's voxels do not say about themselves, as far as it is known.

    Attributes:
        modality: As `Volume.modality`.
        dicom_modality: DICOM Modality, such as "CT".
        window: Centre and width that the file proposes.
        inverted: Whether its grey values are stored the other way round (MONOCHROME1), so that Slicer's reader has
            turned them.
        pixel_text: What the file says of text about the patient in its pixels, as `Source.pixel_text`.
    """

    modality: str = "unknown"
    dicom_modality: str | None = None
    window: tuple[float, float] | None = None
    inverted: bool = False
    pixel_text: PixelText = "not said"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a volume node held when it was looked at: its place at once, its voxels when they are wanted.

    Copying the voxels of a large scan takes longer than a window may stand still. Looking is done in the main thread,
    copying may be done in any other.

    Attributes:
        outline: The volume without its voxels: there are only zeros, which take no memory.
        state: Equal for two readings between which neither voxels nor place changed.
        voxels: As the node holds them.
        name: Of the node.
    """

    outline: Volume
    state: tuple[Any, ...]
    voxels: npt.NDArray[Any]
    name: str
    _copy: list[Volume] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def volume(self) -> Volume:
        """The volume with a copy of its voxels, the same each time.

        Raises:
            InputError: unsupported_values.
        """
        with self._lock:
            if not self._copy:
                self._copy.append(replace(self.outline, array=_values(self.voxels, self.name)))
            return self._copy[0]


def volume_of(node: Any, header: Header | None = None) -> Volume:
    """A copy of a volume node's voxels with their place.

    Args:
        node: A scalar or an RGB volume.
        header: What is known beside the voxels.

    Raises:
        InputError: no_volume, label_map, empty_volume, inverted_values, unsupported_values, bad_geometry.
    """
    return reading_of(node, header).volume()


def reading_of(node: Any, header: Header | None = None) -> Reading:
    """Looks at a volume node; reads no voxels yet.

    Args:
        node: A scalar or an RGB volume.
        header: What is known beside the voxels.

    Raises:
        InputError: no_volume, label_map, empty_volume, inverted_values, bad_geometry.
    """
    header = header or Header()
    if node is None:
        raise InputError("no_volume", "No volume is chosen.", "Load a scan and choose it in the module.")
    is_tensor = node.IsA("vtkMRMLTensorVolumeNode") and not node.IsA("vtkMRMLVectorVolumeNode")
    if is_tensor or node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InputError(
            "label_map", f'"{node.GetName()}" holds labels or tensors, not an image.', "Choose the scan itself."
        )
    image = node.GetImageData()
    if image is None or min(image.GetDimensions()) < 1 or image.GetNumberOfPoints() == 0:
        raise InputError("empty_volume", f'The volume "{node.GetName()}" has no voxels.', "Load it again.")
    if header.inverted and header.modality == "CT":
        raise InputError(
            "inverted_values",
            f'The grey values of "{node.GetName()}" are stored the other way round (MONOCHROME1), and Slicer has '
            "turned them: they are not Hounsfield units.",
            "Load a copy of the scan that is stored as MONOCHROME2. Where the values have been put right since, choose "
            "CT as the kind of scan.",
        )
    voxels = slicer.util.arrayFromVolume(node)
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    is_dicom = bool(node.GetAttribute(INSTANCES))
    is_picture = not is_dicom and _file_name(node).endswith(PICTURES)
    frame = _frame(matrix_of(matrix), voxels.shape[:3], node.GetName(), physical=not is_picture)
    flat = is_picture or header.modality in PROJECTIONS
    is_colour = voxels.ndim == 4 and voxels.shape[3] > 1
    outline = Volume(
        array=np.broadcast_to(np.int16(0), (*frame.shape, 3) if is_colour else frame.shape),
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(frame.shape[0])),
        modality=header.modality,
        source=Source(
            kind="dicom" if is_dicom else "image" if is_picture else "nrrd",
            paths=(),
            frame_of_reference_uid=None if flat else IN_SCENE,
            dicom_modality=header.dicom_modality,
            window=header.window,
            pixel_text=header.pixel_text,
        ),
    )
    return Reading(
        outline=outline,
        state=(image.GetMTime(), voxels.shape, matrix_of(matrix).tobytes(), header),
        voxels=voxels,
        name=node.GetName(),
    )


def instance_uids(node: Any) -> tuple[str, ...]:
    """SOP Instance UIDs that a volume was read from; empty where it is not DICOM."""
    return tuple((node.GetAttribute(INSTANCES) or "").split())


def _values(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Voxels ``(slices, rows, columns[, 3])`` in one of the types that `Volume` has, never rounded."""
    if array.ndim == 4 and array.shape[3] in (3, 4) and array.dtype == np.uint8:
        return np.ascontiguousarray(array[..., :3])
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        what = f"{array.shape[3]} values of {array.dtype}" if array.ndim == 4 else f"values of {array.dtype}"
        raise InputError(
            "unsupported_values",
            f'"{name}" holds {what} per voxel; a grey image or RGB of 8 bits was expected.',
            "Convert it with the module Vector to Scalar Volume.",
        )
    if array.dtype == np.int16:
        return array.copy()
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(
                "unsupported_values", f'"{name}" holds values that are not finite.', "Replace them before asking."
            )
        return array.astype(np.float32)
    low, high = int(array.min()), int(array.max())
    fits = np.iinfo(np.int16)
    return array.astype(np.int16 if fits.min <= low and high <= fits.max else np.float32)


def _frame(ijk_to_ras: npt.NDArray[np.float64], shape: Sequence[int], name: str, *, physical: bool) -> Frame:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ijk_to_ras
    affine[:, :3] = affine[:, 2::-1]  # Slicer counts (column, row, slice), our arrays (slice, row, column)
    try:
        # A picture is no body, but it lies where the scene shows it, and there it is clicked on.
        return Frame.from_affine(affine, shape, physical=physical)
    except ValueError as error:
        raise InputError(
            "bad_geometry",
            f'The voxels of "{name}" do not lie on a rectangular grid: {error}',
            "Resample the volume (module Resample Scalar Volume) and choose the result.",
        ) from error


def _file_name(node: Any) -> str:
    storage = node.GetStorageNode()
    return str((storage.GetFileName() if storage is not None else "") or "").lower()
