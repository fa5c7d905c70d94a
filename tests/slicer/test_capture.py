"""What a slice view shows is what the volume holds there: pixel by pixel, in all three directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from medsight_core.mrml.space import from_world, matrix_of, turned
from medsight_core.mrml.views import is_acquired_plane, jump_to, shown_slice
from medsight_core.mrml.volumes import volume_of
from tests.slicer.bodies import GEOMETRIES, add_volume
from tests.slicer.desk import ras_of

SIZE = (64, 48)
AWAY = 0.02
"""Of a voxel: a pixel's centre this near to the border between two voxels may show either of them."""


def slice_logic(scene: Any, node: Any, orientation: str) -> Any:
    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLApplicationLogic(scene.app_logic)
    logic.SetMRMLScene(scene)
    view = logic.AddSliceNode(orientation)
    view.SetOrientation(orientation)
    view.SetDimensions(*SIZE, 1)
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(node.GetID())
    logic.FitSliceToBackground()
    view.UpdateMatrices()
    return logic


def seen(logic: Any) -> tuple[np.ndarray, np.ndarray]:
    """The values that a view shows, not interpolated, ``(height, width)``, and where they are."""
    reslice = logic.GetBackgroundLayer().GetReslice()
    reslice.SetInterpolationModeToNearestNeighbor()
    reslice.Update()
    image = reslice.GetOutput()
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(SIZE[1], SIZE[0])
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    xy = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)], axis=-1)
    return values, (xy @ matrix_of(logic.GetSliceNode().GetXYToRAS()).T)[..., :3]


@pytest.mark.parametrize("orientation", ["Axial", "Sagittal", "Coronal"])
@pytest.mark.parametrize("name", list(GEOMETRIES))
@pytest.mark.parametrize("moved", [False, True])
def test_a_displayed_pixel_is_the_voxel_that_lies_there(scene: Any, name: str, orientation: str, moved: bool) -> None:
    node = add_volume(name)
    node.CreateDefaultDisplayNodes()
    if moved:
        transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        turn = vtk.vtkTransform()
        turn.Translate(14.0, -6.5, 3.0)
        turn.RotateWXYZ(25.0, 0.2, 0.9, 0.4)
        transform.SetMatrixTransformToParent(turn.GetMatrix())
        node.SetAndObserveTransformNodeID(transform.GetID())
    volume = volume_of(node)
    frame = volume.require_frame()
    logic = slice_logic(scene, node, orientation)
    jump_to(scene, np.array(ras_of(node, *(np.array(frame.shape) // 2))))
    values, ras = seen(logic)
    index = frame.to_index(turned(from_world(ras.reshape(-1, 3), node))).reshape(ras.shape)
    nearest = np.floor(index + 0.5).astype(int)
    clear = (np.abs(index - nearest) < 0.5 - AWAY).all(axis=-1)
    inside = clear & ((nearest >= 0) & (nearest < np.array(frame.shape))).all(axis=-1)
    assert inside.sum() > 20
    assert np.array_equal(values[inside], volume.array[tuple(nearest[inside].T)])


@pytest.mark.parametrize("turn", ["axial", "left-handed", "oblique"])
def test_the_slice_that_is_asked_about_is_the_one_that_is_shown(scene: Any, turn: str) -> None:
    node = add_volume(turn)
    node.CreateDefaultDisplayNodes()
    volume = volume_of(node)
    frame = volume.require_frame()
    logic = slice_logic(scene, node, "Axial")
    view = logic.GetSliceNode()
    view.RotateToVolumePlane(node)
    assert is_acquired_plane(view, node, frame)
    for k in range(frame.shape[0]):
        jump_to(scene, np.array(ras_of(node, k, frame.shape[1] / 2 + 0.25, frame.shape[2] / 2 + 0.25)))
        assert shown_slice(view, node, frame) == k
        values, _ = seen(logic)
        middle = values[SIZE[1] // 2, SIZE[0] // 2]
        assert middle in volume.array[k]
