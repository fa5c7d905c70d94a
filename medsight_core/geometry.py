"""Where pixels lie: in the patient (`Frame`) and from one pixel grid to another (`GridTransform`).

Two conventions hold everywhere in this project. Points in the patient are millimetres in LPS, DICOM's axes: x grows to
the patient's left, y to the back (posterior), z to the head (superior). Coordinates of pixels are continuous and a
whole number is a pixel's *centre*: the square of pixel 0 reaches from -0.5 to 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float64]

ORTHOGONALITY_TOLERANCE: Final = 1e-3
"""Largest deviation of ``direction.T @ direction`` from the identity: real headers carry four to six digits."""

FRAME_TOLERANCE_VOXELS: Final = 0.02
"""Two frames are close when no voxel centre moves by more than this part of the smallest spacing."""

SQUARE_TOLERANCE: Final = 2e-3
"""Pixels whose height and width differ by no more than this share are square: headers carry few digits."""

CONTAINS_TOLERANCE_VOXELS: Final = 1e-6
"""Slack of `Frame.contains` for a point on the outer face of the outermost voxel, in voxels."""


def _read_only(values: npt.ArrayLike, shape: tuple[int, ...], name: str) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a value that is not finite: {array.tolist()}.")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """Where a voxel array lies in the patient. Array axes are (slice, row, column).

    Attributes:
        shape: Number of slices, rows and columns.
        origin: ``(3,)`` LPS mm of the centre of voxel (0, 0, 0).
        spacing: ``(3,)`` mm between neighbouring voxel centres along (slice, row, column), positive.
        direction: ``(3, 3)``; its *columns* are the unit vectors in LPS of the (slice, row, column) index axes.
        physical: False when no spacing is known; the units are then pixels and lengths mean nothing in the body.

    Raises:
        ValueError: A value is not finite, a spacing is not positive, the directions are not orthonormal.
    """

    shape: tuple[int, int, int]
    origin: FloatArray
    spacing: FloatArray
    direction: FloatArray
    physical: bool = True

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape is {self.shape}, expected three positive numbers (slices, rows, columns).")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "origin", _read_only(self.origin, (3,), "origin"))
        object.__setattr__(self, "spacing", _read_only(self.spacing, (3,), "spacing"))
        object.__setattr__(self, "direction", _read_only(self.direction, (3, 3), "direction"))
        if (self.spacing <= 0).any():
            raise ValueError(f"spacing is {self.spacing.tolist()}, expected three positive lengths.")
        skew = np.abs(self.direction.T @ self.direction - np.eye(3)).max()
        if skew > ORTHOGONALITY_TOLERANCE:
            raise ValueError(f"direction is not orthonormal (off by {skew:.2g}); expected perpendicular unit columns.")

    @classmethod
    def from_affine(cls, affine: npt.ArrayLike, shape: Sequence[int], physical: bool = True) -> Frame:
        """Builds a frame from ``affine`` ``(4, 4)``, which maps (slice, row, column, 1) to LPS mm."""
        matrix = _read_only(affine, (4, 4), "affine")
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        if (spacing == 0).any():
            raise ValueError("affine has a column of length zero; expected three axes with a positive spacing.")
        slices, rows, columns = shape
        return cls(
            shape=(slices, rows, columns),
            origin=matrix[:3, 3],
            spacing=spacing,
            direction=matrix[:3, :3] / spacing,
            physical=physical,
        )

    @classmethod
    def of_pixels(cls, shape: Sequence[int]) -> Frame:
        """A frame without a place in the body: LPS (x, y, z) is simply (column, row, slice) in pixels."""
        slices, rows, columns = shape
        return cls(
            shape=(slices, rows, columns),
            origin=np.zeros(3),
            spacing=np.ones(3),
            direction=np.eye(3)[::-1],
            physical=False,
        )

    @property
    def affine(self) -> FloatArray:
        """``(4, 4)``: maps (slice, row, column, 1) to LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.direction * self.spacing
        matrix[:3, 3] = self.origin
        return matrix

    @property
    def pixel_area(self) -> float:
        """Area in mm² (pixels² when not physical) of one pixel in the plane of a slice."""
        return float(self.spacing[1] * self.spacing[2])

    @property
    def pixel_aspect(self) -> Fraction:
        """Height of a pixel by its width, 1 where they are the same but for rounding; in a fraction of small numbers.

        Exact arithmetic on a `GridTransform` goes on with it; what rounding to a small fraction changes is less than
        `SQUARE_TOLERANCE` of it.
        """
        height, width = float(self.spacing[1]), float(self.spacing[2])
        ratio = max(height, width) / min(height, width)
        if ratio - 1 <= SQUARE_TOLERANCE:
            return Fraction(1)
        fraction = Fraction(ratio).limit_denominator(500)
        return fraction if height > width else 1 / fraction

    @property
    def normal(self) -> FloatArray:
        """``(3,)`` unit vector perpendicular to the slices, by the right hand from column axis to row axis (DICOM)."""
        return np.asarray(np.cross(self.direction[:, 2], self.direction[:, 1]), dtype=np.float64)

    def to_lps(self, indices: npt.ArrayLike) -> FloatArray:
        """Maps ``(..., 3)`` continuous (slice, row, column) to ``(..., 3)`` LPS mm."""
        points: FloatArray = np.asarray(indices, dtype=np.float64) @ (self.direction * self.spacing).T + self.origin
        return points

    def to_index(self, points: npt.ArrayLike) -> FloatArray:
        """Maps ``(..., 3)`` LPS mm to ``(..., 3)`` continuous (slice, row, column)."""
        offsets = np.asarray(points, dtype=np.float64) - self.origin
        indices = np.linalg.solve(self.direction * self.spacing, offsets[..., None])[..., 0]
        return np.asarray(indices, dtype=np.float64)

    def slice(self, k: int) -> Frame:
        """The frame of slice ``k`` alone, shape (1, rows, columns)."""
        if not 0 <= k < self.shape[0]:
            raise IndexError(f"slice {k} is outside 0 to {self.shape[0] - 1}.")
        return Frame(
            shape=(1, *self.shape[1:]),
            origin=self.to_lps((k, 0, 0)),
            spacing=self.spacing,
            direction=self.direction,
            physical=self.physical,
        )

    def contains(self, point: npt.ArrayLike) -> bool:
        """Whether the LPS point ``(3,)`` lies within a voxel of this frame; a voxel reaches half way to the next."""
        index = self.to_index(point)
        low, high = -0.5 - CONTAINS_TOLERANCE_VOXELS, np.array(self.shape) - 0.5 + CONTAINS_TOLERANCE_VOXELS
        return bool(((index >= low) & (index <= high)).all())

    def corners(self) -> FloatArray:
        """``(8, 3)`` LPS mm of the centres of the outermost voxels."""
        last = np.array(self.shape) - 1
        return self.to_lps(np.indices((2, 2, 2)).reshape(3, -1).T * last)

    def is_close(self, other: Frame) -> bool:
        """Whether both grids have the same voxels: no centre apart by over `FRAME_TOLERANCE_VOXELS` of a spacing."""
        if self.shape != other.shape or self.physical != other.physical:
            return False
        tolerance = FRAME_TOLERANCE_VOXELS * min(self.spacing.min(), other.spacing.min())
        # An affine map moves no voxel further than it moves one of the corners.
        return bool(np.linalg.norm(self.corners() - other.corners(), axis=1).max() <= tolerance)


Scale = tuple[Fraction, Fraction]


@dataclass(frozen=True, kw_only=True)
class GridTransform:
    """An axis-aligned map from one 2-D pixel grid to another: letterbox, crop, flip, resize, and their compositions.

    The map is held in exact fractions and in *edge* coordinates (a grid reaches from 0 to its size), where a resize is
    a plain factor; so an inverse is exact, and a transform followed by its inverse equals the identity.

    Attributes:
        source: Rows and columns of the grid that is mapped.
        target: Rows and columns of the grid it is mapped to.
        scale: Factor along (row, column); negative where the axis is flipped.
        offset: Added after the factor, along (row, column), in edge coordinates of the target.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    scale: Scale
    offset: Scale

    def __post_init__(self) -> None:
        for name, size in (("source", self.source), ("target", self.target)):
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"{name} is {size}, expected two positive numbers (rows, columns).")
        if not all(self.scale):
            raise ValueError("scale holds a zero; a transform has an inverse only if neither factor is zero.")

    @classmethod
    def identity(cls, source: tuple[int, int]) -> GridTransform:
        """Leaves a grid of ``source`` = (rows, columns) as it is."""
        return cls.resize(source, source)

    @classmethod
    def resize(cls, source: tuple[int, int], target: tuple[int, int]) -> GridTransform:
        """Stretches ``source`` to fill ``target``, both (rows, columns)."""
        scale = (Fraction(target[0], source[0]), Fraction(target[1], source[1]))
        return cls(source=source, target=target, scale=scale, offset=(Fraction(0), Fraction(0)))

    @classmethod
    def letterbox(
        cls, source: tuple[int, int], target: tuple[int, int], *, aspect: Fraction = Fraction(1)
    ) -> GridTransform:
        """Fits ``source`` whole and centred into ``target``, nothing cut off; what is left over is padding.

        The picture takes a whole number of rows and columns of the target, so its proportions change by less than one
        target pixel; the transform knows the two exact factors.

        Args:
            source: Rows and columns.
            target: Rows and columns, of square pixels.
            aspect: Height of a source pixel by its width; the picture comes out in its true proportions.
        """
        size = (source[0] * aspect, Fraction(source[1]))  # in widths of a source pixel
        factor = min(target[0] / size[0], target[1] / size[1])
        inner = tuple(max(1, math.floor(n * factor + Fraction(1, 2))) for n in size)
        offset = tuple(Fraction((t - n) // 2) for t, n in zip(target, inner, strict=True))
        return cls(
            source=source,
            target=target,
            scale=(Fraction(inner[0], source[0]), Fraction(inner[1], source[1])),
            offset=(offset[0], offset[1]),
        )

    @classmethod
    def crop(cls, source: tuple[int, int], *, top: int, left: int, size: tuple[int, int]) -> GridTransform:
        """Keeps ``size`` = (rows, columns) of ``source`` from row ``top`` and column ``left`` on; may reach outside."""
        return cls(
            source=source, target=size, scale=(Fraction(1), Fraction(1)), offset=(Fraction(-top), Fraction(-left))
        )

    @classmethod
    def flip(cls, source: tuple[int, int], *, rows: bool = False, columns: bool = False) -> GridTransform:
        """Reverses the order of the rows, of the columns, or of both."""
        return cls(
            source=source,
            target=source,
            scale=(Fraction(-1 if rows else 1), Fraction(-1 if columns else 1)),
            offset=(Fraction(source[0] if rows else 0), Fraction(source[1] if columns else 0)),
        )

    def inverse(self) -> GridTransform:
        """The exact map from the target grid to the source grid."""
        return GridTransform(
            source=self.target,
            target=self.source,
            scale=(1 / self.scale[0], 1 / self.scale[1]),
            offset=(-self.offset[0] / self.scale[0], -self.offset[1] / self.scale[1]),
        )

    def then(self, other: GridTransform) -> GridTransform:
        """This transform followed by ``other``, whose source must be this one's target."""
        if self.target != other.source:
            raise ValueError(f"cannot compose: this maps to a grid of {self.target}, the other from {other.source}.")
        return GridTransform(
            source=self.source,
            target=other.target,
            scale=(self.scale[0] * other.scale[0], self.scale[1] * other.scale[1]),
            offset=(
                self.offset[0] * other.scale[0] + other.offset[0],
                self.offset[1] * other.scale[1] + other.offset[1],
            ),
        )

    def points(self, xy: npt.ArrayLike) -> FloatArray:
        """Maps ``(..., 2)`` continuous (column, row) of the source to (column, row) of the target (pixel centres)."""
        scale = np.array([float(self.scale[1]), float(self.scale[0])])
        # From centre to edge coordinates and back costs half a pixel on either side; taken together here.
        half = Fraction(1, 2)
        shift = [float(self.offset[axis] + half * self.scale[axis] - half) for axis in (1, 0)]
        mapped: FloatArray = np.asarray(xy, dtype=np.float64) * scale + np.array(shift)
        return mapped

    def image(self, array: npt.NDArray[Any], fill: float = 0.0) -> npt.NDArray[Any]:
        """Resamples a picture into the target grid: linear, and antialiased where it shrinks.

        Args:
            array: ``(rows, columns)`` or ``(rows, columns, channels)`` on the source grid, float32 or uint8.
            fill: Value of target pixels whose centre lies outside the source.

        Returns:
            ``(height, width[, channels])`` on the target grid, of the same dtype.
        """
        if array.dtype not in (np.float32, np.uint8):
            raise TypeError(f"picture has dtype {array.dtype}, expected float32 or uint8.")
        if array.shape[:2] != self.source or array.ndim not in (2, 3):
            raise ValueError(f"picture has shape {array.shape}, expected {self.source} with or without channels.")
        (top, bottom, box_y, rows), (left, right, box_x, columns) = self._overlap(0), self._overlap(1)
        result = np.full((*self.target, *array.shape[2:]), fill, dtype=array.dtype)
        if top >= bottom or left >= right:
            return result
        # Pixels outside the common part have no say: the padding of a letterbox must not bleed into the picture's rim.
        part = array.take(rows, axis=0).take(columns, axis=1)
        box = (box_x[0], box_y[0], box_x[1], box_y[1])
        result[top:bottom, left:right] = _resize(part, (bottom - top, right - left), box)
        return result

    def back(self, array: npt.NDArray[Any], fill: float = 0.0) -> npt.NDArray[np.float32]:
        """Brings an array on the target grid, at any resolution, back to the source grid.

        Args:
            array: ``(height, width)``; covers the whole target grid, for instance mask logits at half its size.
            fill: Value of source pixels that the target does not show.

        Returns:
            ``(rows, columns)`` float32 on the source grid.
        """
        if array.ndim != 2:
            raise ValueError(f"array has shape {array.shape}, expected two axes (height, width).")
        shape = (array.shape[0], array.shape[1])
        transform = GridTransform.resize(shape, self.target).then(self.inverse())
        return transform.image(np.ascontiguousarray(array, dtype=np.float32), fill)

    def _overlap(self, axis: int) -> tuple[int, int, tuple[float, float], npt.NDArray[np.intp]]:
        """Where source and target meet along one axis.

        Returns:
            First and last+1 target pixel that has its centre in the source; the source pixels that these touch, in the
            order of the target, the outermost repeated where a target pixel reaches beyond it; and the exact extent of
            the target pixels in edge coordinates of these source pixels.
        """
        size, scale = self.source[axis], abs(self.scale[axis])
        flipped = self.scale[axis] < 0
        offset = self.offset[axis] - (size * scale if flipped else 0)
        half = Fraction(1, 2)
        first = max(0, math.ceil(offset - half))
        last = max(first, min(self.target[axis], math.ceil(offset + size * scale - half)))
        low, high = (first - offset) / scale, (last - offset) / scale
        touched = np.arange(math.floor(low), math.ceil(high)).clip(0, size - 1)
        box = (float(low - math.floor(low)), float(high - math.floor(low)))
        return first, last, box, size - 1 - touched if flipped else touched


def _resize(array: npt.NDArray[Any], size: tuple[int, int], box: tuple[float, float, float, float]) -> npt.NDArray[Any]:
    """Resizes the part ``box`` = (left, top, right, bottom, edge coordinates) of ``array`` to ``size`` with Pillow."""
    if array.ndim == 3 and not (array.dtype == np.uint8 and array.shape[2] == 3):
        return np.stack([_resize(array[..., c], size, box) for c in range(array.shape[2])], axis=-1)
    picture = Image.fromarray(np.ascontiguousarray(array))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))
