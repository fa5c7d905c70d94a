"""Markups that a person placed in a view, as strokes on the slices of a volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medsight_core.backend import Stroke
from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Volume
from medsight_core.mrml.space import FloatArray, from_world, matrix_of, turned
from medsight_core.outline import lasso
from medsight_core.regions import Prompt

EDGE_TOLERANCE = 1e-6
"""Of a voxel: rounding on the way through RAS and transforms."""


def strokes_of(markups: Any, volume_node: Any, volume: Volume, *, positive: bool = True) -> tuple[Stroke, ...]:
    """What a markups node says about a volume.

    Points become points; a ROI a box on the slice of its centre; an open curve a scribble; a closed curve a lasso. The
    markups may lie under other transforms than the volume.

    Args:
        markups: A point list, ROI or curve node.
        volume_node: The node that ``volume`` was made of.
        volume: The scan.
        positive: False where it marks what does not belong.

    Raises:
        InputError: nothing_drawn, prompt_outside, prompt_on_several_slices, bad_prompt, bad_geometry.
    """
    frame = volume.require_frame()
    if markups.IsA("vtkMRMLMarkupsROINode"):
        return (_box(markups, volume_node, volume, positive=positive),)
    index = _indices(_world_points(markups), volume_node, frame)
    if markups.IsA("vtkMRMLMarkupsClosedCurveNode"):
        k = _common_slice(index, "outline")
        return (Stroke(slice_index=k, prompt=lasso(_on_slice(index, k, frame), volume.slice_frame(k))),)
    if markups.IsA("vtkMRMLMarkupsCurveNode"):
        k = _common_slice(index, "scribble")
        prompt = Prompt(kind="scribble", points=_on_slice(index, k, frame), positive=positive)
        return (Stroke(slice_index=k, prompt=prompt),)
    return tuple(_point(one, frame, positive=positive) for one in index)


def click(ras: npt.ArrayLike, volume_node: Any, volume: Volume, *, positive: bool = True) -> Stroke:
    """A click in a view, given in world RAS mm ``(3,)``.

    Raises:
        InputError: prompt_outside.
    """
    frame = volume.require_frame()
    return _point(_indices(np.asarray(ras, dtype=np.float64)[None], volume_node, frame)[0], frame, positive=positive)


def _world_points(markups: Any) -> FloatArray:
    count = markups.GetNumberOfControlPoints()
    if not count:
        raise InputError("nothing_drawn", f'"{markups.GetName()}" has no points yet.', "Place one in a slice view.")
    found = np.zeros((count, 3))
    for n in range(count):
        point = [0.0, 0.0, 0.0]
        markups.GetNthControlPointPositionWorld(n, point)
        found[n] = point
    return found


def _indices(world: FloatArray, volume_node: Any, frame: Frame) -> FloatArray:
    """World RAS as continuous (slice, row, column), all of them inside the volume."""
    index = frame.to_index(turned(from_world(world, volume_node)))
    reach = np.array(frame.shape) - 0.5 + EDGE_TOLERANCE
    outside = ((index < -0.5 - EDGE_TOLERANCE) | (index > reach)).any(axis=1)
    if outside.any():
        n = int(np.flatnonzero(outside)[0])
        which = "The point" if len(index) == 1 else f"Point {n + 1} of {len(index)}"
        raise InputError("prompt_outside", f"{which} lies outside the volume.", "Place it on the image.")
    return np.clip(index, -0.5, np.array(frame.shape) - 0.5)


def _slice_of(index: float, count: int) -> int:
    return int(np.clip(np.floor(index + 0.5), 0, count - 1))


def _point(index: FloatArray, frame: Frame, *, positive: bool) -> Stroke:
    k = _slice_of(index[0], frame.shape[0])
    return Stroke(
        slice_index=k, prompt=Prompt(kind="point", points=_on_slice(index[None], k, frame), positive=positive)
    )


def _on_slice(index: FloatArray, k: int, frame: Frame) -> FloatArray:
    """LPS mm of points moved onto the plane of slice ``k``, and onto the centres of its outermost pixels' squares."""
    moved = index.copy()
    moved[:, 0] = k
    return frame.to_lps(moved)


def _common_slice(index: FloatArray, what: str) -> int:
    slices = np.floor(index[:, 0] + 0.5).astype(int)
    if (slices != slices[0]).any():
        raise InputError(
            "prompt_on_several_slices",
            f"The {what} crosses {slices.max() - slices.min() + 1} slices of the scan; it must lie on one.",
            "Draw it in the view that shows the slices as they were acquired.",
        )
    return int(slices[0])


def _box(roi: Any, volume_node: Any, volume: Volume, *, positive: bool) -> Stroke:
    """A box on the slice through the ROI's centre, around where its own corners fall there, however it is turned."""
    frame = volume.require_frame()
    centre = [0.0, 0.0, 0.0]
    roi.GetCenterWorld(centre)
    size = np.zeros(3)
    roi.GetSizeWorld(size)
    axes = matrix_of(roi.GetObjectToWorldMatrix())[:3, :3]
    ends = (np.indices((2, 2, 2)).reshape(3, -1).T - 0.5) * size
    corners = np.array(centre) + ends @ (axes / np.linalg.norm(axes, axis=0)).T
    middle = _indices(np.array([centre]), volume_node, frame)[0]
    k = _slice_of(middle[0], frame.shape[0])
    index = frame.to_index(turned(from_world(corners, volume_node)))
    low, high = index[:, 1:].min(axis=0), index[:, 1:].max(axis=0)
    limits = np.array(frame.shape[1:]) - 0.5
    low, high = np.clip(low, -0.5, limits), np.clip(high, -0.5, limits)
    points = frame.to_lps(np.array([[k, *low], [k, *high]]))
    return Stroke(slice_index=k, prompt=Prompt(kind="box", points=points, positive=positive))
