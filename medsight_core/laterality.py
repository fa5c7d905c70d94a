"""Left and right of the patient, from places in the body (LPS: x grows to the patient's left), never from the picture.

A side needs a middle. It is that of the body, where both its flanks are in view, or that between two counterparts;
where there is neither, there is no side, and whoever asks is told so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsight_core.geometry import FloatArray, Frame
from medsight_core.naming import Side, same_name

NO_ORIENTATION: Final = (
    "Sides and directions of the body cannot be told here: the scan has no orientation in the patient."
)
ONE_SIDED: Final = (
    "Left and right cannot be told here: the middle of the body is not in view, and there is no counterpart to compare "
    "with."
)

PAIRED: Final = (
    "adrenal gland", "breast", "caudate nucleus", "clavicle", "common iliac artery", "eye", "femur", "hip",
    "hippocampus", "humerus", "kidney", "lateral ventricle", "lens", "lung", "optic nerve", "ovary", "parotid gland",
    "putamen", "scapula", "testis", "thalamus", "ureter",
)  # fmt: skip
"""Organs of which there is one on either side of the middle."""

ONE_SIDE_SHARE: Final = 0.8
"""Something lies on a side when at least this part of it does."""

_SKIN_HU: Final = -300.0
_CROPPED_SHARE: Final = 0.02
"""A flank that fills more than this part of the outermost plane is cut off."""
_LARGEST_GRID: Final = 96
_PAIR_MM: Final = 30.0
_PAIR_RATIO: Final = 4.0


def coordinates(frame: Frame, axis: int, corner: Iterable[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """LPS coordinate ``axis`` of every voxel of a box ``(slices, rows, columns)`` that begins at ``corner``."""
    steps = frame.direction[axis] * frame.spacing
    low, middle, high = (
        step * (np.arange(size) + start) for step, size, start in zip(steps, shape, corner, strict=True)
    )
    grid = frame.origin[axis] + low[:, None, None] + middle[None, :, None] + high[None, None, :]
    return np.asarray(grid, dtype=np.float32)


def body_midline(values: NDArray[Any], frame: Frame, *, modality: str) -> float | None:
    """Where the middle of the body lies: x in LPS mm; None where a flank is not in view.

    Args:
        values: ``(slices, rows, columns)`` of the scan.
        frame: Of the same shape.
        modality: "CT" tells skin from air by its HU, any other by Otsu's threshold.
    """
    if values.ndim != 3 or not frame.physical or min(values.shape[1:]) < 2:
        return None
    steps = [max(1, -(-size // _LARGEST_GRID)) for size in values.shape]
    small = np.asarray(values[tuple(slice(None, None, step) for step in steps)], dtype=np.float32)
    if not np.isfinite(small).all() or small.min() == small.max():
        return None
    image = sitk.GetImageFromArray(small)
    inside = image > _SKIN_HU if modality == "CT" else sitk.OtsuThreshold(image, 0, 1)
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(inside), sortByObjectSize=True) == 1
    body = sitk.GetArrayFromImage(largest).astype(bool)
    if not body.any():
        return None
    for axis in range(3):
        if abs(frame.direction[0, axis]) > 0.5:
            # The outermost planes on this axis are the flanks.
            faces = (body.take(0, axis).mean(), body.take(-1, axis).mean())
            if max(faces) > _CROPPED_SHARE or body.shape[axis] < 3:
                return None
    spread = Frame(
        shape=(body.shape[0], body.shape[1], body.shape[2]),
        origin=frame.origin,
        spacing=frame.spacing * steps,
        direction=frame.direction,
    )
    low, high = np.percentile(coordinates(spread, 0, (0, 0, 0), body.shape)[body], (1, 99))
    return float(low + high) / 2


def pair_midline(extents: list[tuple[int, float, float]]) -> float | None:
    """The middle between the two counterparts of a paired organ; None where the pieces are no such pair.

    Args:
        extents: Voxels, lowest and highest x of each piece.
    """
    if len(extents) < 2:
        return None
    (size, *one), (other_size, *other) = sorted(extents, reverse=True)[:2]
    right, left = sorted((one, other))
    apart = (left[0] + left[1]) / 2 - (right[0] + right[1]) / 2
    if size > _PAIR_RATIO * other_size or left[0] <= right[1] or apart < _PAIR_MM:
        return None
    return (right[1] + left[0]) / 2


def anchored_midline(centroids: dict[str, FloatArray]) -> float | None:
    """The middle between structures whose names say their sides, "left lung" and "right lung"."""
    middles = [
        (place[0] + centroids[name.replace("left", "right")][0]) / 2
        for name, place in centroids.items()
        if "left" in name and name.replace("left", "right") in centroids
    ]
    return float(np.mean(middles)) if middles else None


def counterparts(names: Iterable[str]) -> tuple[str, ...]:
    """Those of some names that stand for what there is one of on either side."""
    known = tuple(names)
    sided = {one for name in known for one in (name, name.replace("left", "right")) if "left" in name}
    whole = {*known}
    return tuple(
        name
        for name in known
        if any(same_name(name, organ) for organ in PAIRED)
        or (name in sided and name.replace("left", "right") in whole and name.replace("right", "left") in whole)
    )


def side_at(x: NDArray[np.float32], midline: float) -> Side | Literal["middle"]:
    """On which side of the patient the voxels with these x lie."""
    share = float((x > midline).mean())
    if share >= ONE_SIDE_SHARE:
        return "left"
    return "right" if share <= 1 - ONE_SIDE_SHARE else "middle"
