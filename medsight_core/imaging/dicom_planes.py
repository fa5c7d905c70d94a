"""The planes of a DICOM file: where each frame lies and how its stored values become real ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset

from medsight_core.errors import InputError
from medsight_core.geometry import ORTHOGONALITY_TOLERANCE, Frame
from medsight_core.imaging.dicom_header import Header, bad, name, numbers, text

FLOAT32_SAFE: Final = 1e37
"""Rescaled values beyond this cannot be told from an overflow."""

_CENTIMETRE: Final = 3
"""Physical Units X Direction of an ultrasound region (PS3.3 C.8.5.5)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """One frame of one file.

    Attributes:
        header: Of the file.
        index: Number of the frame in the file, from 0.
        frame: Its exact place, shape (1, rows, columns).
        placed: Whether the place is the patient's (False: only a spacing, or nothing, is known).
        slope, intercept: Value = stored * slope + intercept.
        window: Centre and width for display, where the file gives a usable one.
        instance: Instance Number, for what has no place.
    """

    header: Header
    index: int
    frame: Frame
    placed: bool
    slope: float
    intercept: float
    window: tuple[float, float] | None
    instance: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path


def read_planes(header: Header) -> tuple[Plane, ...]:
    """All planes of a file, by its functional groups where it has them (PS3.3 C.7.6.16), else by its main attributes.

    Raises:
        InputError: bad_geometry, bad_rescale.
    """
    dataset, path = header.dataset, header.path
    try:
        shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
        each = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    except Exception as error:
        raise bad("bad_header", path, "Functional Groups", "unreadable", "sequences") from error
    if not shared and not each:
        return tuple(_plane(header, index, [dataset]) for index in range(header.layout.frames))
    if len(each) != header.layout.frames:
        raise bad("bad_header", path, "PerFrameFunctionalGroupsSequence", f"{len(each)} items", "one per frame")
    return tuple(_plane(header, index, _groups(group, *shared) + [dataset]) for index, group in enumerate(each))


def _groups(*owners: Dataset) -> list[Dataset]:
    """The data sets in which an attribute of a frame may stand: own functional groups first, then the shared ones."""
    found = []
    for owner in owners:
        for keyword in (
            "PlanePositionSequence",
            "PlaneOrientationSequence",
            "PixelMeasuresSequence",
            "PixelValueTransformationSequence",
            "FrameVOILUTSequence",
        ):
            found.extend(list(owner.get(keyword) or [])[:1])
    return found


def _plane(header: Header, index: int, places: list[Dataset]) -> Plane:
    def find(keyword: str, count: int, code: str) -> tuple[float, ...] | None:
        for place in places:
            values = numbers(place, keyword, count, code=code, path=header.path)
            if values is not None:
                return values
        return None

    slope, intercept = _rescale(header, find)
    frame, placed = _place(header, find)
    instance = text(header.dataset, "InstanceNumber")
    return Plane(
        header=header,
        index=index,
        frame=frame,
        placed=placed,
        slope=slope,
        intercept=intercept,
        window=next(filter(None, map(_window, places)), None),
        instance=int(instance) if re.fullmatch(r"-?[0-9]{1,12}", instance) else 0,
    )


def _rescale(header: Header, find: Any) -> tuple[float, float]:
    slope = (find("RescaleSlope", 1, "bad_rescale") or (1.0,))[0]
    intercept = (find("RescaleIntercept", 1, "bad_rescale") or (0.0,))[0]
    largest = abs(slope) * 2.0**header.layout.bits_stored + abs(intercept)
    if slope == 0 or largest > FLOAT32_SAFE:
        raise bad(
            "bad_rescale", header.path, "RescaleSlope, RescaleIntercept", f"{slope:g}, {intercept:g}", "usable numbers"
        )
    return slope, intercept


def _place(header: Header, find: Any) -> tuple[Frame, bool]:
    layout, path, code = header.layout, header.path, "bad_geometry"
    shape = (1, layout.rows, layout.columns)
    spacing = find("PixelSpacing", 2, code)
    between = find("SpacingBetweenSlices", 1, code) or find("SliceThickness", 1, code) or (1.0,)
    # Some scanners write a negative or zero slice spacing; the positions decide, this is only a depth for one slice.
    depth = abs(between[0]) or 1.0
    position, orientation = find("ImagePositionPatient", 3, code), find("ImageOrientationPatient", 6, code)
    if spacing is not None and min(spacing) <= 0:
        raise bad(code, path, "PixelSpacing", str(list(spacing)), "two positive lengths in mm")
    if position is None or orientation is None or spacing is None:
        return _unplaced(header, shape, spacing, find), False
    along_row, down_column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(along_row), np.linalg.norm(down_column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(along_row @ down_column)) > ORTHOGONALITY_TOLERANCE:
        raise bad(code, path, "ImageOrientationPatient", str(list(orientation)), "two perpendicular unit vectors")
    along_row, down_column = along_row / lengths[0], down_column / lengths[1]
    normal = np.cross(along_row, down_column)
    normal /= np.linalg.norm(normal)
    frame = Frame(
        shape=shape,
        origin=np.array(position),
        spacing=np.array([depth, *spacing]),
        direction=np.stack([normal, down_column, along_row], axis=1),
    )
    return frame, True


def _unplaced(header: Header, shape: tuple[int, int, int], spacing: tuple[float, ...] | None, find: Any) -> Frame:
    """A frame for an image without patient coordinates: its spacing where there is one, else pixels."""
    pixels = Frame.of_pixels(shape)
    if spacing is None:
        spacing = find("ImagerPixelSpacing", 2, "bad_geometry") or find("NominalScannedPixelSpacing", 2, "bad_geometry")
        spacing = spacing or _ultrasound_spacing(header)
    if spacing is None:
        return pixels
    if min(spacing) <= 0:
        raise bad("bad_geometry", header.path, "ImagerPixelSpacing", str(list(spacing)), "two positive lengths in mm")
    return Frame(shape=shape, origin=pixels.origin, spacing=np.array([1.0, *spacing]), direction=pixels.direction)


def _ultrasound_spacing(header: Header) -> tuple[float, float] | None:
    """mm per (row, column) where all calibrated regions of an ultrasound image agree (PS3.3 C.8.5.5)."""
    found = set()
    try:
        for region in header.dataset.get("SequenceOfUltrasoundRegions") or []:
            if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == _CENTIMETRE:
                found.add((abs(10 * float(region.PhysicalDeltaY)), abs(10 * float(region.PhysicalDeltaX))))
    except Exception:  # an image without a scale is still an image; areas are then given in pixels
        return None
    spacing = found.pop() if len(found) == 1 else None
    return spacing if spacing and np.isfinite(spacing).all() and min(spacing) > 0 else None


def _window(place: Dataset) -> tuple[float, float] | None:
    """The first window of the file; None where it is missing or cannot be used, which is no reason to refuse a scan."""
    try:
        centre, width = (
            np.atleast_1d(np.asarray(place.get(k), dtype=float))[0] for k in ("WindowCenter", "WindowWidth")
        )
    except Exception:
        return None
    return (float(centre), float(width)) if np.isfinite([centre, width]).all() and width >= 1 else None


def check_same_size(planes: tuple[Plane, ...]) -> None:
    """Refuses a series whose images cannot lie in one array.

    Raises:
        InputError: mixed_sizes.
    """
    sizes: dict[str, int] = {}
    for plane in planes:
        layout = plane.header.layout
        kind = (
            f"{layout.rows} x {layout.columns}{' colour' if layout.samples == 3 or 'PAL' in layout.photometric else ''}"
        )
        sizes[kind] = sizes.get(kind, 0) + 1
    if len(sizes) > 1:
        listed = ", ".join(f"{count} of {kind}" for kind, count in sizes.items())
        raise InputError(
            "mixed_sizes",
            f"The series of {name(planes[0].path)} holds images of different sizes ({listed}).",
            "Put those of one size into a folder of their own.",
        )
