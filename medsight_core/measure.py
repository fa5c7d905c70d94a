"""What can be measured of a mask: volume, centroid, diameters, values, from the mask and its `Frame` alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from medsight_core.errors import InputError
from medsight_core.geometry import FloatArray, Frame

MM3_PER_ML: Final = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """A straight line on one slice.

    Attributes:
        slice_index: The slice it lies on.
        start: ``(3,)`` LPS mm.
        end: ``(3,)`` LPS mm.
        length_mm: In pixels where the frame has no spacing (`Measurements.physical` is False).
    """

    slice_index: int
    start: FloatArray
    end: FloatArray
    length_mm: float

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {
            "slice": self.slice_index,
            "length": round(self.length_mm, 4),
            "start_lps": self.start.round(4).tolist(),
            "end_lps": self.end.round(4).tolist(),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurements:
    """What `measure` found. Lengths are mm, or pixels where ``physical`` is False.

    Attributes:
        physical: Whether the frame has a spacing.
        voxels: How many the mask covers.
        volume_mm3: Their number times the volume of one; None without a spacing.
        centroid_lps: ``(3,)`` mean of their centres.
        slices: First and last slice with a part of the mask.
        diameter: The longest diameter on any one slice.
        perpendicular: The longest line at right angles to it on that slice.
        mean: Of the values under the mask. This and the next three are None without values.
        sd: Standard deviation of a sample (divided by n - 1); None for one voxel too.
        minimum: Smallest value.
        maximum: Largest value.
        components: Pieces that do not touch, not even at a corner.
    """

    physical: bool
    voxels: int
    volume_mm3: float | None
    centroid_lps: FloatArray
    slices: tuple[int, int]
    diameter: Line
    perpendicular: Line
    mean: float | None
    sd: float | None
    minimum: float | None
    maximum: float | None
    components: int

    @property
    def unit(self) -> str:
        """Of the lengths."""
        return "mm" if self.physical else "pixels"

    @property
    def volume_ml(self) -> float | None:
        """The volume in millilitres."""
        return None if self.volume_mm3 is None else self.volume_mm3 / MM3_PER_ML

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        numbers = {
            "volume_mm3": self.volume_mm3, "mean": self.mean, "sd": self.sd, "minimum": self.minimum,
            "maximum": self.maximum,
        }  # fmt: skip
        return {
            "voxels": self.voxels,
            **{name: None if value is None else round(value, 4) for name, value in numbers.items()},
            "centroid_lps": self.centroid_lps.round(4).tolist(),
            "slices": list(self.slices),
            "unit_of_length": self.unit,
            "longest_diameter": self.diameter.to_json(),
            "perpendicular": self.perpendicular.to_json(),
            "components": self.components,
        }


def measure(
    mask: NDArray[np.bool_], frame: Frame, *, values: NDArray[Any] | None = None, first_slice: int = 0
) -> Measurements:
    """Measures a mask.

    The diameter is that of RECIST: the longest straight line on one slice, in the plane of the slices as they were
    acquired (axial for an axial scan), and then the longest line at right angles to it. A mask's outline runs half
    way between the centres of a pixel inside and its neighbour outside, where marching squares draws it; so do the
    viewers and radiomics programs that measure a segmentation (Cornerstone3D in OHIF, Maximum2DDiameterSlice of
    PyRadiomics). A single pixel thus has its own width. A line joins two points of one connected piece, never two
    lesions; it may leave a piece that is bent. The perpendicular is exact within the convex hull of that piece.

    Args:
        mask: ``(slices, rows, columns)`` bool; a mask of one image has one slice.
        frame: Of the same shape.
        values: Of the same shape: HU for CT. Those that are not finite do not count.
        first_slice: Number of the mask's first slice in the scan, where the mask is only a part of it.

    Raises:
        InputError: bad_mask: shapes that differ; empty_mask: nothing to measure.
    """
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != frame.shape:
        raise InputError(
            "bad_mask",
            f"The mask to measure is {mask.dtype} of shape {mask.shape}; its frame needs bool of shape {frame.shape}.",
            "Measure a mask with the frame of its own grid.",
        )
    if values is not None and np.shape(values) != mask.shape:
        raise InputError(
            "bad_mask",
            f"The values to measure have shape {np.shape(values)}, the mask {mask.shape}; colours are not measured.",
            "Give one number per voxel, or none.",
        )
    box = ndimage.find_objects(mask.view(np.uint8))
    if not box:
        raise InputError(
            "empty_mask", "The mask is empty, so there is nothing to measure.", "Leave out what was not found."
        )
    part = mask[box[0]]
    corner = np.array([extent.start for extent in box[0]])
    # Voxels by slice, by row and by column: the mean of millions of indices without a list of them.
    profiles = [np.count_nonzero(part, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    voxels = int(profiles[0].sum())
    centre = np.array([profile @ np.arange(len(profile)) / voxels for profile in profiles])
    diameter, perpendicular = _diameters(part, frame, corner, first_slice)
    low, high = first_slice + corner[0], first_slice + corner[0] + part.shape[0] - 1
    return Measurements(
        physical=frame.physical,
        voxels=voxels,
        volume_mm3=voxels * float(np.prod(frame.spacing)) if frame.physical else None,
        centroid_lps=frame.to_lps(centre + corner),
        slices=(int(low), int(high)),
        diameter=diameter,
        perpendicular=perpendicular,
        **_statistics(None if values is None else np.asarray(values)[box[0]][part]),
        components=int(ndimage.label(part, np.ones((3, 3, 3)))[1]),
    )


def _statistics(values: NDArray[Any] | None) -> dict[str, float | None]:
    none: dict[str, float | None] = dict.fromkeys(("mean", "sd", "minimum", "maximum"))
    if values is None:
        return none
    wide = values.astype(np.float64)
    wide = wide[np.isfinite(wide)]
    if not len(wide):
        return none
    sd = float(wide.std(ddof=1)) if len(wide) > 1 else None
    return {"mean": float(wide.mean()), "sd": sd, "minimum": float(wide.min()), "maximum": float(wide.max())}


def _diameters(part: NDArray[np.bool_], frame: Frame, corner: NDArray[np.int_], first_slice: int) -> tuple[Line, Line]:
    """The longest line within one piece on one slice, and its perpendicular; ``corner`` is where ``part`` begins."""
    spacing = frame.spacing[1:]
    pieces: list[tuple[float, int, NDArray[np.float64]]] = []
    for k, plane in enumerate(part):
        labels, _ = ndimage.label(plane, np.ones((3, 3)))
        for number, where in enumerate(ndimage.find_objects(labels), start=1):
            outline = _outline(labels[where] == number) + [extent.start for extent in where]
            points = outline * spacing
            pieces.append((float(np.linalg.norm(np.ptp(points, axis=0))), k, points))
    # Most pieces are smaller than the largest one and need not be looked at: none is longer than its box's diagonal.
    best, chosen = -1.0, (0, np.zeros((0, 2)), np.zeros((2, 2)))
    for bound, k, points in sorted(pieces, key=lambda piece: (-piece[0], piece[1])):
        if bound <= best:
            break
        hull = points[ConvexHull(points).vertices]
        apart = cdist(hull, hull)
        if apart.max() > best:
            best = float(apart.max())
            farthest = np.unravel_index(int(apart.argmax()), apart.shape)
            chosen = (k, hull, hull[list(farthest)])
    k, hull, ends = chosen

    def line(points: NDArray[np.float64]) -> Line:
        index = np.column_stack((np.full(2, float(k)), points / spacing)) + corner
        start, end = frame.to_lps(index)
        length = float(np.linalg.norm(points[1] - points[0]))
        return Line(slice_index=int(first_slice + corner[0] + k), start=start, end=end, length_mm=length)

    return line(ends), line(_longest_across(hull, ends))


def _outline(piece: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``(n, 2)`` (row, column) on the outline of a piece, its convex hull among them: the ends of rows and columns."""
    points = []
    for axis in (0, 1):
        lines = np.moveaxis(piece, axis, 1)  # every line along ``axis`` is a row of this
        used = np.flatnonzero(lines.any(axis=1))
        first = lines[used].argmax(axis=1) - 0.5
        last = lines.shape[1] - lines[used, ::-1].argmax(axis=1) - 0.5
        for ends in (first, last):
            points.append(np.column_stack((ends, used) if axis == 0 else (used, ends)))
    return np.concatenate(points).astype(np.float64)


def _longest_across(hull: NDArray[np.float64], ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(2, 2)`` ends of the longest line in a convex polygon at right angles to its diameter ``ends``."""
    along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    across = np.array([-along[1], along[0]])
    u, v = (hull - ends[0]) @ along, (hull - ends[0]) @ across
    order = np.argsort(u)
    u, v = u[order], v[order]
    # Both sides of the polygon run from one end of the diameter to the other. The width between them is piecewise
    # linear with its corners at those of the polygon, so it is greatest at one of them.
    rim = np.isin(np.arange(len(u)), (0, len(u) - 1))
    upper, lower = (np.interp(u, u[side], v[side]) for side in (rim | (v > 0), rim | (v < 0)))
    widest = int(np.argmax(upper - lower))
    foot = ends[0] + u[widest] * along
    return np.array([foot + lower[widest] * across, foot + upper[widest] * across])
