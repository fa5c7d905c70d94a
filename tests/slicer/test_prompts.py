from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
import vtk

from medsight_core.errors import InputError
from medsight_core.mrml.prompts import click, strokes_of
from medsight_core.mrml.space import to_world, turned
from medsight_core.mrml.views import is_acquired_plane, jump_to, shown_slice
from medsight_core.mrml.volumes import volume_of
from tests.slicer.bodies import GEOMETRIES, add_volume


def markups(scene: Any, kind: str, world: Any) -> Any:
    node = scene.AddNewNodeByClass(f"vtkMRMLMarkups{kind}Node")
    for point in world:
        node.AddControlPointWorld(vtk.vtkVector3d(*map(float, point)))
    return node


def world_of(node: Any, index: Any) -> Any:
    return to_world(turned(volume_of(node).require_frame().to_lps(np.array(index, dtype=float))), node)


def move(scene: Any, node: Any) -> None:
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved = vtk.vtkTransform()
    moved.Translate(25, -4, 3)
    moved.RotateWXYZ(30, 1, 1, 0)
    transform.SetMatrixTransformToParent(moved.GetMatrix())
    node.SetAndObserveTransformNodeID(transform.GetID())


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_point_falls_on_its_voxel(scene: Any, name: str, moved: bool) -> None:
    node = add_volume(name)
    if moved:
        move(scene, node)
    volume = volume_of(node)
    k, row, column = volume.n_slices - 1, 7, 11
    world = world_of(node, [[k + (0.3 if volume.n_slices > 1 else 0.0), row, column]])
    (stroke,) = strokes_of(markups(scene, "Fiducial", world), node, volume, positive=False)
    assert stroke.slice_index == k
    assert not stroke.prompt.positive
    assert np.allclose(volume.slice_frame(k).to_index(stroke.prompt.points), [[0, row, column]], atol=1e-6)
    assert click(world[0], node, volume).slice_index == k


def test_a_click_into_a_picture_falls_on_its_pixel_wherever_the_scene_shows_it(scene: Any) -> None:
    """A TIFF brings a spacing, and a person may centre the volume: its pixels are not at whole millimetres then."""
    node = add_volume("left-handed")
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName("skin.tif")
    scene.AddNode(storage)
    node.SetAndObserveStorageNodeID(storage.GetID())
    volume = volume_of(node)
    assert volume.source.kind == "image"
    assert not volume.has_place
    ijk_to_ras = GEOMETRIES["left-handed"][0]
    world = (ijk_to_ras @ (11, 7, 3, 1))[:3]
    stroke = click(world, node, volume)
    assert stroke.slice_index == 3
    assert np.allclose(volume.slice_frame(3).to_index(stroke.prompt.points), [[0, 7, 11]], atol=1e-6)


@pytest.mark.parametrize("outside", [[-0.6, 5, 5], [2, -0.6, 5], [2, 5, 29.6], [2, 200, 5]])
def test_a_point_outside_is_refused_in_words(scene: Any, outside: list[float]) -> None:
    node = add_volume("axial")
    with pytest.raises(InputError, match="outside the volume"):
        click(world_of(node, [outside])[0], node, volume_of(node))


def test_a_curve_is_a_scribble_and_a_closed_one_an_outline(scene: Any) -> None:
    node = add_volume("oblique")
    volume = volume_of(node)
    corners = [[3, 4, 5], [3, 4, 12], [3, 10, 12], [3, 10, 5]]
    (scribble,) = strokes_of(markups(scene, "Curve", world_of(node, corners)), node, volume)
    assert (scribble.slice_index, scribble.prompt.kind, len(scribble.prompt.points)) == (3, "scribble", 4)
    (outline,) = strokes_of(markups(scene, "ClosedCurve", world_of(node, corners)), node, volume)
    assert outline.prompt.mask is not None
    assert outline.prompt.mask[5:10, 6:12].all()
    with pytest.raises(InputError, match="crosses 4 slices"):
        strokes_of(markups(scene, "Curve", world_of(node, [[1, 4, 5], [4, 4, 5]])), node, volume)


def test_a_roi_is_a_box_on_the_slice_of_its_centre(scene: Any) -> None:
    node = add_volume("axial")
    volume = volume_of(node)
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    low, high = world_of(node, [[2, 4, 5], [2, 10, 15]])
    roi.SetCenterWorld((low + high) / 2)
    roi.SetSizeWorld(np.abs(high - low) + (0, 0, 1))
    (box,) = strokes_of(roi, node, volume)
    assert (box.slice_index, box.prompt.kind) == (2, "box")
    index = np.sort(volume.slice_frame(2).to_index(box.prompt.points)[:, 1:], axis=0)
    assert np.allclose(index, [[4, 5], [10, 15]], atol=1e-6)


def test_a_roi_turned_with_the_volume_is_the_box_that_was_drawn(scene: Any) -> None:
    node = add_volume("oblique")
    volume = volume_of(node)
    axes = volume.require_frame().direction[:, ::-1] * np.array([[-1.0], [-1.0], [1.0]])  # columns, rows, slices in RAS
    turn = vtk.vtkMatrix4x4()
    for row, column in np.ndindex(3, 3):
        turn.SetElement(row, column, axes[row, column])
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    low, high = world_of(node, [[2, 4, 5], [2, 10, 15]])
    for row in range(3):
        turn.SetElement(row, 3, (low + high)[row] / 2)
    roi.SetAndObserveObjectToNodeMatrix(turn)
    roi.SetSize(10 * 0.7, 6 * 0.7, 1.0)
    (box,) = strokes_of(roi, node, volume)
    assert box.slice_index == 2
    index = np.sort(volume.slice_frame(2).to_index(box.prompt.points)[:, 1:], axis=0)
    assert np.allclose(index, [[4, 5], [10, 15]], atol=1e-6)


def test_no_point_is_no_prompt(scene: Any) -> None:
    node = add_volume("axial")
    with pytest.raises(InputError, match="no points yet"):
        strokes_of(markups(scene, "Fiducial", []), node, volume_of(node))


def test_views_show_a_slice_and_go_where_they_are_sent(scene: Any) -> None:
    node = add_volume("axial")
    volume = volume_of(node)
    frame = volume.require_frame()
    logics = {}
    for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal")):
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(scene.app_logic)
        logic.SetMRMLScene(scene)
        view = logic.AddSliceNode(name)
        view.SetOrientation(orientation)
        view.SetDimensions(200, 150, 1)
        logic.GetSliceCompositeNode().SetBackgroundVolumeID(node.GetID())
        logic.FitSliceToBackground()
        view.UpdateMatrices()
        logics[name] = logic
    red, yellow = (logics[name].GetSliceNode() for name in ("Red", "Yellow"))
    assert is_acquired_plane(red, node, frame)
    assert not is_acquired_plane(yellow, node, frame)
    for k in range(volume.n_slices):
        jump_to(scene, world_of(node, [[k, 9, 14]])[0])
        assert shown_slice(red, node, frame) == k
