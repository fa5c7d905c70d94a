"""Brings parallel but irregular slices to a regular grid: tilted, unevenly spaced or with slices missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medsight_core.geometry import Frame
from medsight_core.imaging.files import check_size
from medsight_core.imaging.stacking import RESAMPLABLE, typical_gap
from medsight_core.imaging.volume import Volume


def resample(volume: Volume) -> Volume:
    """A regular copy of a volume whose slices are parallel and in order, by linear interpolation.

    The new slices keep orientation and pixel spacing, lie straight above each other, and are as far apart as the old
    ones typically are. Where a slanted stack does not reach, the smallest value of the scan fills the grid.

    Raises:
        InputError: too_large; or the volume's own problem, where its slices are not parallel or share places.
    """
    if volume.problem is None:
        return volume
    if volume.problem.code not in RESAMPLABLE:
        volume.require_frame()
    slices = volume.slice_frames
    frame = _regular_frame(slices)
    check_size("The resampled scan", frame.shape)
    fill = float(volume.array.min())
    array = np.empty(frame.shape, dtype=np.float32)
    heights = np.array([(s.origin - slices[0].origin) @ slices[0].normal for s in slices])
    moved: dict[int, npt.NDArray[Any]] = {}  # at most the two neighbours of the slice being made
    for k in range(frame.shape[0]):
        height = min(k * frame.spacing[0], heights[-1])
        below = int(np.clip(np.searchsorted(heights, height, side="right") - 1, 0, len(slices) - 2))
        part = float((height - heights[below]) / (heights[below + 1] - heights[below]))
        moved = {
            n: moved[n] if n in moved else _in_plane(volume.slice_array(n), slices[n], frame, fill)
            for n in (below, below + 1)
        }
        array[k] = (1 - part) * moved[below] + part * moved[below + 1]
    if volume.array.dtype == np.int16:
        array = np.rint(array, out=array).astype(np.int16)
    note = f"{volume.problem.sentence} It was resampled to a regular grid {frame.spacing[0]:.3g} mm apart."
    return dataclasses.replace(
        volume,
        array=array,
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(frame.shape[0])),
        source=dataclasses.replace(volume.source, resampled=True, frame_numbers=()),
        warnings=(*volume.warnings, note),
        problem=None,
    )


def _regular_frame(slices: Sequence[Frame]) -> Frame:
    """The grid that holds all slices, on the directions of the first one."""
    first = slices[0]
    axes = np.column_stack([first.normal, first.direction[:, 1:]])
    offsets = (np.array([s.origin for s in slices]) - first.origin) @ axes
    gap = typical_gap(np.diff(offsets[:, 0]))
    spacing = np.array([gap, *first.spacing[1:]])
    low, high = offsets.min(axis=0), offsets.max(axis=0)
    extra = np.ceil((high - low) / spacing - 1e-3).astype(int)
    return Frame(
        shape=(int(extra[0]) + 1, first.shape[1] + int(extra[1]), first.shape[2] + int(extra[2])),
        origin=first.origin + axes @ np.array([0.0, low[1], low[2]]),
        spacing=spacing,
        direction=axes,
    )


def _in_plane(array: npt.NDArray[Any], source: Frame, target: Frame, fill: float) -> npt.NDArray[Any]:
    """One slice moved within its own plane to the pixel grid of ``target``."""
    shift = (source.origin - target.origin) @ target.direction[:, 1:]
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((float(source.spacing[2]), float(source.spacing[1])))
    image.SetOrigin((float(shift[1]), float(shift[0])))
    grid = sitk.Image(target.shape[2], target.shape[1], sitk.sitkFloat32)
    grid.SetSpacing((float(target.spacing[2]), float(target.spacing[1])))
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, fill))
