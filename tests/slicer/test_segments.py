from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk

from medsight_core.errors import InputError
from medsight_core.measure import measure
from medsight_core.mrml import memory
from medsight_core.mrml.segments import Findings
from medsight_core.mrml.space import turned
from medsight_core.mrml.volumes import volume_of
from tests.slicer.bodies import GEOMETRIES, add_volume, blob, region, region_on_slice


def findings(node: Any) -> Findings:
    return Findings(node, volume_of(node).require_frame())


def slicers_own(found: Findings, segment_id: str, node: Any) -> Any:
    """The mask as Slicer itself exports it onto the volume's grid."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(found.node, segment_id, node) > 0


@pytest.mark.parametrize("name", GEOMETRIES)
def test_masks_come_back_bit_for_bit_and_overlaps_are_kept(scene: Any, name: str) -> None:
    node = add_volume(name)
    frame = volume_of(node).require_frame()
    masks = [blob(frame.shape, seed) for seed in range(3)]
    assert (masks[0] & masks[1]).any()
    found = Findings(node, frame)
    ids = found.insert(
        [region(mask, frame, label) for mask, label in zip(masks, ("liver", "spleen", "lesion"), strict=True)]
    )
    for mask, segment_id in zip(masks, ids, strict=True):
        assert np.array_equal(found.mask(segment_id), mask)
        assert np.array_equal(slicers_own(found, segment_id, node), mask)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_region_of_one_slice_lies_on_that_slice(scene: Any, name: str) -> None:
    node = add_volume(name)
    frame = volume_of(node).require_frame()
    k = frame.shape[0] - 1
    mask = blob(frame.shape, 5)
    found = Findings(node, frame)
    (segment_id,) = found.insert([region_on_slice(mask, frame, k)])
    wanted = np.zeros_like(mask)
    wanted[k] = mask[k]
    assert np.array_equal(slicers_own(found, segment_id, node), wanted)


@pytest.mark.parametrize("kind", ["shift", "rotation", "nested", "non-linear"])
def test_masks_follow_the_volume_under_its_transforms(scene: Any, kind: str) -> None:
    node = add_volume("oblique")
    transform = scene.AddNewNodeByClass(
        "vtkMRMLTransformNode" if kind == "non-linear" else "vtkMRMLLinearTransformNode"
    )
    if kind == "non-linear":
        spline = vtk.vtkThinPlateSplineTransform()
        source, target = vtk.vtkPoints(), vtk.vtkPoints()
        for corner in np.indices((2, 2, 2)).reshape(3, -1).T * 60.0:
            source.InsertNextPoint(corner)
            target.InsertNextPoint(corner * 1.05 + (4, -3, 2) * np.sin(corner))
        spline.SetSourceLandmarks(source)
        spline.SetTargetLandmarks(target)
        spline.SetBasisToR()
        transform.SetAndObserveTransformToParent(spline)
    else:
        moved = vtk.vtkTransform()
        moved.Translate(25, 0, 3)
        if kind != "shift":
            moved.RotateWXYZ(30, 1, 1, 0)
        transform.SetMatrixTransformToParent(moved.GetMatrix())
    node.SetAndObserveTransformNodeID(transform.GetID())
    if kind == "nested":
        above = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        turn = vtk.vtkTransform()
        turn.RotateZ(40)
        above.SetMatrixTransformToParent(turn.GetMatrix())
        transform.SetAndObserveTransformNodeID(above.GetID())
    frame = volume_of(node).require_frame()
    mask = blob(frame.shape, 1)
    found = Findings(node, frame)
    (segment_id,) = found.insert([region(mask, frame)])
    assert found.node.GetTransformNodeID() == transform.GetID()
    assert np.array_equal(slicers_own(found, segment_id, node), mask)
    # A place in the world is where the transform puts the voxel.
    through = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(transform, None, through)
    index = np.argwhere(mask)
    places = np.array([through.TransformPoint(point) for point in turned(frame.to_lps(index))])
    assert np.linalg.norm(places - found.centre(segment_id), axis=1).min() < 1e-6


def test_segments_are_named_coloured_coded_and_say_where_they_come_from(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    found = Findings(node, frame)
    ids = found.insert(
        [region(blob(frame.shape, 0), frame, "left kidney"), region(blob(frame.shape, 1), frame, "liver lesion")],
        {"Question": "Où? 肝臓", "Model": "medsight-mini 0123"},
    )
    segments = [found.node.GetSegmentation().GetSegment(one) for one in ids]
    assert [segment.GetName() for segment in segments] == ["left kidney", "liver lesion"]
    assert segments[0].GetColor() != segments[1].GetColor()

    def tag(segment: Any, name: str) -> str:
        value = vtk.reference("")
        assert segment.GetTag(name, value), name
        return str(value)

    assert "SCT^64033007^Kidney~SCT^7771000^Left" in tag(segments[0], segments[0].GetTerminologyEntryTagName())
    assert tag(segments[1], "DICOM.SegmentAlgorithmType") == "AUTOMATIC"
    assert tag(segments[1], "DICOM.SegmentAlgorithmName") == "MedSIGHT"
    assert tag(segments[1], "MedSIGHT.Code") == "[C0_16]"
    assert tag(segments[1], "MedSIGHT.Question") == "Où? 肝臓"


def test_other_segmentations_and_a_persons_edits_are_left_alone(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    theirs = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "by hand")
    theirs.SetReferenceImageGeometryParameterFromVolumeNode(node)
    drawn = blob(frame.shape, 9).astype(np.uint8)
    their_id = theirs.GetSegmentation().AddEmptySegment("", "drawn")
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, theirs, their_id, node)
    found = Findings(node, frame)
    (first,) = found.insert([region(blob(frame.shape, 0), frame)])
    edited = blob(frame.shape, 3).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, found.node, first, node)
    found.insert([region(blob(frame.shape, 1), frame, "spleen")])
    found.undo()
    assert found.ids == (first,)
    assert np.array_equal(found.mask(first), edited > 0)
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(theirs, their_id, node), drawn)


def test_every_step_is_taken_back_and_made_again(scene: Any) -> None:
    node = add_volume("oblique")
    frame = volume_of(node).require_frame()
    found = Findings(node, frame)
    masks = [blob(frame.shape, seed) for seed in range(3)]
    ids = found.insert(
        [region(mask, frame, label) for mask, label in zip(masks, ("liver", "spleen", "lesion"), strict=True)]
    )
    found.remove(ids[1])
    assert found.ids == (ids[0], ids[2])
    found.rename(ids[0], "Cyst")
    assert found.node.GetSegmentation().GetSegment(ids[0]).GetName() == "Cyst"
    assert found.undo()
    assert found.node.GetSegmentation().GetSegment(ids[0]).GetName() == "liver"
    assert found.undo()
    assert found.ids == ids
    assert all(np.array_equal(slicers_own(found, one, node), mask) for one, mask in zip(ids, masks, strict=True))
    assert found.undo()
    assert found.ids == ()
    assert not found.undo()
    assert found.redo()
    assert found.redo()
    assert found.redo()
    assert not found.redo()
    assert found.ids == (ids[0], ids[2])
    assert found.node.GetSegmentation().GetSegment(ids[0]).GetName() == "Cyst"


@pytest.mark.parametrize("name", GEOMETRIES)
def test_measurements_are_those_of_the_whole_mask(scene: Any, name: str) -> None:
    node = add_volume(name)
    volume = volume_of(node)
    frame = volume.require_frame()
    mask = blob(frame.shape, 2)
    found = Findings(node, frame)
    (segment_id,) = found.insert([region(mask, frame)])
    ours, whole = found.measured(segment_id), measure(mask, frame, values=volume.array)
    assert ours.volume_mm3 == pytest.approx(whole.volume_mm3, rel=1e-9)
    assert ours.mean == pytest.approx(whole.mean, rel=1e-9)
    assert np.allclose(ours.centroid_lps, whole.centroid_lps)


def test_a_mask_of_another_grid_or_without_voxels_is_refused(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    other = volume_of(add_volume("oblique")).require_frame()
    found = Findings(node, frame)
    with pytest.raises(InputError, match="grid"):
        found.insert([region(blob(frame.shape, 0), frame), region(blob(frame.shape, 0), other)])
    with pytest.raises(InputError, match="no voxels"):
        found.insert([region(np.zeros(frame.shape, dtype=bool), frame)])
    assert found.node is None


def test_scene_and_conversation_come_back_from_a_saved_scene(scene: Any, tmp_path: Path) -> None:
    node = add_volume("oblique")
    frame = volume_of(node).require_frame()
    masks = [blob(frame.shape, seed) for seed in range(2)]
    found = Findings(node, frame)
    found.insert(
        [region(mask, frame, label) for mask, label in zip(masks, ("liver", "spleen"), strict=True)],
        {"Question": "Où?"},
    )
    memory.remember(node, "Wo ist die Leber? 肝臓 \U0001f600")
    bundle = tmp_path / "scene.mrb"
    for one in slicer.util.getNodesByClass("vtkMRMLStorableNode"):
        one.AddDefaultStorageNode()
    assert scene.WriteToMRB(str(bundle))
    scene.Clear(False)
    assert scene.ReadFromMRB(str(bundle))
    (again,) = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    restored = Findings(again, volume_of(again).require_frame())
    assert [restored.node.GetSegmentation().GetSegment(one).GetName() for one in restored.ids] == ["liver", "spleen"]
    assert all(np.array_equal(restored.mask(one), mask) for one, mask in zip(restored.ids, masks, strict=True))
    assert memory.remembered(again) == "Wo ist die Leber? 肝臓 \U0001f600"
    restored.remove(restored.ids[0])
    restored.undo()
    assert np.array_equal(restored.mask(restored.ids[0]), masks[0])
