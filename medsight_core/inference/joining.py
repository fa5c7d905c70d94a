"""Masks of single slices become one structure in space: islands go, holes are filled, and each step is told.

SimpleITK does the work, on the box around the mask, so that a small structure in a large scan costs little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsight_core.geometry import Frame

ISLAND: Final = 0.02
"""A component with less than this part of the largest one's voxels is an island."""

FEWEST_SLICES: Final = 3
"""With fewer slices there is no third dimension to judge by, and a mask stays as it was drawn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joined:
    """A structure in space.

    Attributes:
        mask: ``(slices, rows, columns)`` bool.
        components: Connected parts that are left.
        islands: Components that were removed.
        removed, filled: Voxels that were taken away and added.
        steps: The same in words, one sentence each; empty where nothing was changed.
    """

    mask: NDArray[np.bool_]
    components: int
    islands: int = 0
    removed: int = 0
    filled: int = 0
    steps: tuple[str, ...] = ()


def join(mask: NDArray[np.bool_], frame: Frame, *, label: str, island: float = ISLAND) -> Joined:
    """Joins what was drawn of one structure slice by slice.

    Args:
        mask: ``(slices, rows, columns)`` bool; not changed.
        frame: Of the same shape; for lengths only.
        label: For the sentences.
        island: See `ISLAND`; 0 keeps every component, as of lesions, of which the smallest may be the one that matters.
    """
    box = bounding_box(mask)
    if box is None:
        return Joined(mask=mask, components=0)
    image = sitk.GetImageFromArray(mask[box].astype(np.uint8))
    parts = sitk.ConnectedComponent(image, True)  # also across edges and corners
    sizes = np.bincount(sitk.GetArrayViewFromImage(parts).ravel())[1:]
    if len(mask) < FEWEST_SLICES:
        return Joined(mask=mask, components=len(sizes))
    kept = sizes >= island * sizes.max()
    islands, removed = int((~kept).sum()), int(sizes[~kept].sum())
    if islands:
        image = sitk.GetImageFromArray(np.concatenate(([False], kept))[sitk.GetArrayViewFromImage(parts)].astype("u1"))
    del parts
    filled_image = sitk.BinaryFillhole(image, True)
    before, after = (sitk.GetArrayViewFromImage(one).astype(bool) for one in (image, filled_image))
    filled = int(np.count_nonzero(after)) - int(np.count_nonzero(before))
    steps = []
    if islands:
        count = "1 small island" if islands == 1 else f"{islands} small islands"
        steps.append(f"{label}: {count} ({_size(removed, frame)}) removed.")
    if filled:
        steps.append(f"{label}: holes of {_size(filled, frame)} filled.")
    if not steps:
        return Joined(mask=mask, components=len(sizes))
    joined = np.zeros_like(mask)
    joined[box] = after
    return Joined(
        mask=joined,
        components=int(kept.sum()),
        islands=islands,
        removed=removed,
        filled=filled,
        steps=tuple(steps),
    )


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """The smallest box with all voxels of a mask; None for an empty one."""
    ends = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        covered = np.flatnonzero(mask.any(axis=others))
        if not len(covered):
            return None
        ends.append(slice(int(covered[0]), int(covered[-1]) + 1))
    return ends[0], ends[1], ends[2]


def _size(voxels: int, frame: Frame) -> str:
    if not frame.physical:
        return f"{voxels:,} voxels"
    volume = voxels * float(np.prod(frame.spacing))
    return f"{volume / 1000:,.1f} ml" if volume >= 100 else f"{volume:,.1f} mm³"
