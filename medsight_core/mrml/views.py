"""What slice views show of a volume, and bringing them to a region."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from medsight_core.geometry import Frame
from medsight_core.mrml.space import FloatArray, from_world, matrix_of, to_world, turned


def shown_slice(slice_node: Any, volume_node: Any, frame: Frame) -> int | None:
    """The slice of the volume that lies nearest to what a view shows, at the view's centre.

    Args:
        slice_node: Of the view.
        volume_node: The volume's node.
        frame: Of its voxels.

    Returns:
        Its index; None where the view's centre lies outside the slices.
    """
    centre = matrix_of(slice_node.GetSliceToRAS())[:3, 3]
    k = frame.to_index(turned(from_world(centre[None], volume_node)))[0, 0]
    return int(np.floor(k + 0.5)) if -0.5 <= k < frame.shape[0] - 0.5 else None


def is_acquired_plane(slice_node: Any, volume_node: Any, frame: Frame, *, degrees: float = 10.0) -> bool:
    """Whether a view shows slices as they were acquired, up to a tilt."""
    matrix = matrix_of(slice_node.GetSliceToRAS())
    line = np.array([matrix[:3, 3], matrix[:3, 3] + matrix[:3, 2]])
    ends = turned(from_world(line, volume_node))
    direction = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    return bool(abs(direction @ frame.direction[:, 0]) >= np.cos(np.radians(degrees)))


def jump_to(scene: Any, ras: FloatArray) -> None:
    """Centres all views on a point in world RAS mm ``(3,)``; 3D views go on looking from the same side."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *map(float, ras), slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    for camera in scene.GetNodesByClass("vtkMRMLCameraNode"):
        before = np.array(camera.GetFocalPoint())
        camera.SetFocalPoint(*map(float, ras))
        camera.SetPosition(*(np.array(camera.GetPosition()) - before + ras))
        camera.ResetClippingRange()


def centre_in_world(lps: FloatArray, volume_node: Any) -> FloatArray:
    """A place in a volume, LPS mm ``(3,)`` of its own, in world RAS mm, where the views are."""
    world: FloatArray = to_world(turned(lps)[None], volume_node)[0]
    return world
