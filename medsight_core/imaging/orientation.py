"""Brings a grid of voxels into the order a radiologist expects: axes are reordered and reversed, never sampled.

Axial slices run from feet to head with the front of the body at the top, coronal ones from front to back and sagittal
ones from left to right with the head at the top; the patient's right is on the left of axial and coronal pictures. The
order of slices follows DICOM's normal (right hand from the picture's columns to its rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError
from medsight_core.geometry import ORTHOGONALITY_TOLERANCE, Frame
from medsight_core.imaging.files import printable
from medsight_core.imaging.stacking import stack

RAS_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])

THICK_SLICES: Final = 1.2
"""An axis whose spacing is larger than the others by this factor is the one the scan was sliced along."""

# By the LPS axis (x, y, z) that the slices are stacked along: LPS axis and sign of (slice, row, column).
_VIEWS: Final = {
    2: ((2, 1), (1, 1), (0, 1)),  # axial
    1: ((1, 1), (2, -1), (0, 1)),  # coronal
    0: ((0, -1), (2, -1), (1, 1)),  # sagittal
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrangement:
    """How the axes of a file become (slice, row, column).

    Attributes:
        axes: The file's axis that becomes slice, row and column.
        reversed: Whether it is reversed.
        shape: (slices, rows, columns).
        affine: ``(4, 4)``, (slice, row, column, 1) to LPS mm.
    """

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    def view(self, native: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view in (slice, row, column[, channel]) order of an array in the file's order (i, j, k[, channel])."""
        turned = native.transpose((*self.axes, *range(3, native.ndim)))
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.reversed)]

    def native(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The inverse of `view`: a writable view in the file's order of an array in (slice, row, column) order."""
        turned = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.reversed)]
        inverse = tuple(int(n) for n in np.argsort(self.axes))
        return turned.transpose((*inverse, *range(3, array.ndim)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """Frames of an arranged grid; ``problem`` where it is slanted and has no frame as a whole."""

    frame: Frame | None
    slice_frames: tuple[Frame, ...]
    problem: InputError | None


def arrange(affine: npt.NDArray[np.float64], shape: tuple[int, int, int], path: Path) -> Arrangement:
    """Chooses the arrangement for a grid with ``affine`` ``(4, 4)``, (i, j, k, 1) to LPS mm, and ``shape`` (i, j, k).

    Raises:
        InputError: bad_geometry.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths <= 0).any():
        raise bad_geometry(path, "its grid has an axis of no or infinite length")
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < ORTHOGONALITY_TOLERANCE:
        raise bad_geometry(path, "the axes of its grid lie in one plane")
    world, _ = _nearest_axes(affine)
    return turned(affine, shape, stacked_along=world[_slice_axis(lengths, shape, world)])


def turned(
    affine: npt.NDArray[np.float64], shape: tuple[int, int, int], *, stacked_along: int, keep_order: bool = False
) -> Arrangement:
    """The arrangement that stacks the slices of a sound grid along an LPS axis (0, 1 or 2), as it is looked at.

    Args:
        affine: ``(4, 4)``, (i, j, k, 1) to LPS mm.
        shape: (i, j, k).
        stacked_along: Which axis; 2 makes axial slices, 1 coronal, 0 sagittal ones.
        keep_order: Let the slices follow each other as they do, in whichever direction that is.
    """
    world, signs = _nearest_axes(affine)
    view = _VIEWS[stacked_along]
    axes = tuple(world.index(axis) for axis, _ in view)
    flips = [signs[axis] != sign for axis, (_, sign) in zip(axes, view, strict=True)]
    if keep_order:
        flips[0] = False
    ours_to_file = np.zeros((4, 4))
    ours_to_file[3, 3] = 1
    for index, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        ours_to_file[axis, index] = -1 if flip else 1
        ours_to_file[axis, 3] = shape[axis] - 1 if flip else 0
    return Arrangement(
        axes=(axes[0], axes[1], axes[2]),
        reversed=(flips[0], flips[1], flips[2]),
        shape=(shape[axes[0]], shape[axes[1]], shape[axes[2]]),
        affine=affine @ ours_to_file,
    )


def stacking_axis(frame: Frame) -> int:
    """The LPS axis that the slices of a grid are stacked along, most nearly."""
    return _nearest_axes(frame.affine)[0][0]


def runs_backwards(frame: Frame) -> bool:
    """Whether the slices of a grid follow each other against the order of this module: head to feet, say."""
    world, signs = _nearest_axes(frame.affine)
    return signs[0] != _VIEWS[world[0]][0][1]


def _nearest_axes(affine: npt.NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """For each axis of the grid the world axis (LPS) that it follows most nearly, each taken once, and its sign."""
    from nibabel.orientations import io_orientation  # here, because 3D Slicer has no nibabel and asks about planes

    orientation = io_orientation(affine)  # LPS in, LPS out
    return [int(axis) for axis in orientation[:, 0]], [int(sign) for sign in orientation[:, 1]]


def _slice_axis(lengths: npt.NDArray[np.float64], shape: tuple[int, int, int], world: list[int]) -> int:
    """The file's axis along which it was sliced: a single slice, else clearly thicker slices, else axial."""
    single = [axis for axis in range(3) if shape[axis] == 1]
    if len(single) == 1:
        return single[0]
    thickest = int(lengths.argmax())
    if lengths[thickest] >= THICK_SLICES * np.delete(lengths, thickest).max():
        return thickest
    return world.index(2)


def place(arrangement: Arrangement) -> Placed:
    """The frames of an arranged grid. A grid slanted against its slices (gantry tilt) keeps exact slice frames only.

    Raises:
        InputError: bad_geometry, where even a slice is not a rectangle.
    """
    try:
        frame = Frame.from_affine(arrangement.affine, arrangement.shape)
    except ValueError:
        frames = _slice_frames(arrangement)
        laid = stack(frames)
        return Placed(frame=laid.frame, slice_frames=tuple(frames[k] for k in laid.order), problem=laid.problem)
    return Placed(frame=frame, slice_frames=tuple(frame.slice(k) for k in range(frame.shape[0])), problem=None)


def _slice_frames(arrangement: Arrangement) -> list[Frame]:
    slices, rows, columns = arrangement.shape
    through, down, along = (arrangement.affine[:3, axis] for axis in range(3))
    spacing = np.linalg.norm(down), np.linalg.norm(along)
    down, along = down / spacing[0], along / spacing[1]
    normal = np.cross(along, down)
    if abs(down @ along) > ORTHOGONALITY_TOLERANCE:
        raise bad_geometry(None, "rows and columns of its slices are not perpendicular")
    normal = normal / np.linalg.norm(normal)
    return [
        Frame(
            shape=(1, rows, columns),
            origin=arrangement.affine[:3, 3] + k * through,
            spacing=np.array([abs(through @ normal), *spacing]),
            direction=np.stack([normal, down, along], axis=1),
        )
        for k in range(slices)
    ]


def bad_geometry(path: Path | None, what: str) -> InputError:
    """The error for a grid that cannot be a scan's."""
    return InputError(
        "bad_geometry",
        f"{printable(path.name) if path else 'The file'} cannot be placed in the patient: {what}.",
        "The file is damaged or was written wrongly; export it again from where it came.",
    )
