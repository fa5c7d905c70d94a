from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from numpy.typing import NDArray

from medsight_core.chat.turns import Finding
from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.measure import measure
from medsight_core.mrml import memory
from medsight_core.mrml.segments import Segments
from medsight_core.mrml.space import turned
from medsight_core.mrml.volumes import volume_of
from tests.slicer.bodies import GEOMETRIES, add_volume, blob, finding, finding_on_slice

LABELS = ("liver", "spleen", "lesion")


def three(frame: Frame) -> tuple[list[NDArray[np.bool_]], list[Finding]]:
    """Masks that overlap, and their findings."""
    masks = [blob(frame.shape, seed) for seed in range(3)]
    return masks, [finding(mask, frame, LABELS[n], f"1.{n + 1}") for n, mask in enumerate(masks)]


def slicers_own(segments: Segments, key: str, node: Any) -> NDArray[np.bool_]:
    """The mask as Slicer itself brings it onto the volume's grid."""
    return np.asarray(slicer.util.arrayFromSegmentBinaryLabelmap(segments.node, segments.ids[key], node) > 0)


def names(segments: Segments) -> list[str]:
    return [segments.node.GetSegmentation().GetSegment(one).GetName() for one in segments.ids.values()]


def tag(segment: Any, name: str) -> str:
    value = vtk.reference("")
    assert segment.GetTag(name, value), name
    return str(value)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_masks_come_back_bit_for_bit_and_overlaps_are_kept(scene: Any, name: str) -> None:
    node = add_volume(name)
    segments = Segments(node, volume_of(node).require_frame())
    masks, findings = three(volume_of(node).require_frame())
    assert (masks[0] & masks[1]).any()
    segments.sync(findings)
    for mask, one in zip(masks, findings, strict=True):
        assert np.array_equal(segments.mask(segments.ids[one.key]), mask)
        assert np.array_equal(slicers_own(segments, one.key, node), mask)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_region_of_one_slice_lies_on_that_slice(scene: Any, name: str) -> None:
    node = add_volume(name)
    frame = volume_of(node).require_frame()
    k = frame.shape[0] - 1
    mask = blob(frame.shape, 5)
    segments = Segments(node, frame)
    segments.sync([finding_on_slice(mask, frame, k)])
    wanted = np.zeros_like(mask)
    wanted[k] = mask[k]
    assert np.array_equal(slicers_own(segments, "1.1", node), wanted)


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
    segments = Segments(node, frame)
    segments.sync([finding(mask, frame)])
    assert segments.node.GetTransformNodeID() == transform.GetID()
    assert np.array_equal(slicers_own(segments, "1.1", node), mask)
    # A place in the world is where the transform puts the voxel.
    through = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(transform, None, through)
    places = np.array([through.TransformPoint(point) for point in turned(frame.to_lps(np.argwhere(mask)))])
    assert np.linalg.norm(places - segments.centre(segments.ids["1.1"]), axis=1).min() < 1e-6


def test_segments_are_named_coloured_coded_and_say_where_they_come_from(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    segments.sync(
        [
            finding(blob(frame.shape, 0), frame, "left kidney", "1.1"),
            finding(blob(frame.shape, 1), frame, "liver lesion", "1.2"),
        ],
        {"Question": "Où? 肝臓", "Model": "medsight-mini 0123"},
    )
    kidney, lesion = (segments.node.GetSegmentation().GetSegment(one) for one in segments.ids.values())
    assert names(segments) == ["left kidney", "liver lesion"]
    assert kidney.GetColor() != lesion.GetColor()
    assert "SCT^64033007^Kidney~SCT^7771000^Left" in tag(kidney, kidney.GetTerminologyEntryTagName())
    assert tag(lesion, "DICOM.SegmentAlgorithmType") == "AUTOMATIC"
    assert tag(lesion, "DICOM.SegmentAlgorithmName") == "MedSIGHT"
    assert tag(lesion, "MedSIGHT.Code") == "[C0_16]"
    assert tag(lesion, "MedSIGHT.Question") == "Où? 肝臓"


def test_what_a_person_types_forges_no_other_tag(scene: Any, tmp_path: Path) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    typed = "a|MedSIGHT.Score:0.1\n|DICOM.SegmentAlgorithmType:MANUAL"
    segments.sync([finding(blob(frame.shape, 0), frame, typed, "1.1")], {"Question": typed, "Model": "m|n"})
    before = segments.node.GetSegmentation().GetNthSegment(0)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "x.seg.nrrd"))
    assert storage.WriteData(segments.node)
    again = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert storage.ReadData(again)
    after = again.GetSegmentation().GetNthSegment(0)
    for name in ("Name", "Question", "Score", "Model", "Key", "Code"):
        assert tag(after, f"MedSIGHT.{name}") == tag(before, f"MedSIGHT.{name}"), name
    assert tag(after, "DICOM.SegmentAlgorithmType") == "AUTOMATIC"
    assert tag(before, "MedSIGHT.Question").startswith("a¦MedSIGHT.Score:0.1 ¦DICOM")
    segments.sync([finding(blob(frame.shape, 0), frame, " ", "1.2")])
    assert names(segments) == [" "], "a segment without any name cannot be saved"


def test_other_segmentations_and_a_persons_edits_are_left_alone(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    theirs = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "by hand")
    theirs.SetReferenceImageGeometryParameterFromVolumeNode(node)
    drawn = blob(frame.shape, 9).astype(np.uint8)
    their_id = theirs.GetSegmentation().AddEmptySegment("", "drawn")
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, theirs, their_id, node)
    segments = Segments(node, frame)
    _, findings = three(frame)
    segments.sync(findings[:1])
    edited = blob(frame.shape, 3).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, segments.node, segments.ids["1.1"], node)
    segments.sync(findings[:2])
    segments.sync(findings[:1])
    assert list(segments.ids) == ["1.1"]
    assert np.array_equal(segments.mask(segments.ids["1.1"]), edited > 0)
    segments.sync([])
    segments.sync(findings[:1])
    assert np.array_equal(segments.mask(segments.ids["1.1"]), edited > 0)
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(theirs, their_id, node), drawn)


def test_what_is_taken_away_comes_back_at_its_place(scene: Any) -> None:
    node = add_volume("oblique")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    masks, findings = three(frame)
    segments.sync(findings)
    segments.sync([findings[0], findings[2]])
    assert names(segments) == ["liver", "lesion"]
    segments.sync(findings)
    assert names(segments) == ["liver", "spleen", "lesion"]
    for mask, one in zip(masks, findings, strict=True):
        assert np.array_equal(slicers_own(segments, one.key, node), mask)


def test_names_and_visibility_follow_the_conversation_and_a_persons_own_choice_stays(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    _, findings = three(frame)
    segments.sync(findings)
    segmentation, display = segments.node.GetSegmentation(), segments.node.GetDisplayNode()
    segmentation.GetSegment(segments.ids["1.2"]).SetName("my spleen")
    display.SetSegmentVisibility(segments.ids["1.3"], False)
    segments.sync([replace(findings[0], name="cyst", hidden=True), *findings[1:]])
    assert names(segments) == ["cyst", "my spleen", "lesion"]
    assert [bool(display.GetSegmentVisibility(one)) for one in segments.ids.values()] == [False, True, False]
    segments.sync(findings)
    assert names(segments) == ["liver", "my spleen", "lesion"]
    assert [bool(display.GetSegmentVisibility(one)) for one in segments.ids.values()] == [True, True, False]


def test_what_a_person_deleted_elsewhere_stays_deleted(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    _, findings = three(frame)
    segments.sync(findings[:2])
    segments.node.GetSegmentation().RemoveSegment(segments.ids["1.1"])
    segments.sync(findings)
    assert names(segments) == ["spleen", "lesion"]
    scene.RemoveNode(segments.node)
    segments.sync(findings)
    assert segments.node is None


def test_one_segment_stands_out(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    segments.sync(three(frame)[1])
    display = segments.node.GetDisplayNode()
    display.SetSegmentOpacity2DFill(segments.ids["1.3"], 0.4)
    for key in ("1.2", "1.3", "1.2"):
        segments.emphasise(segments.ids[key])
    opacity = [display.GetSegmentOpacity2DFill(one) for one in segments.ids.values()]
    assert opacity[1] > max(opacity[0], opacity[2])
    segments.emphasise(None)
    assert [display.GetSegmentOpacity2DFill(one) for one in segments.ids.values()] == [1.0, 1.0, 0.4]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_measurements_are_those_of_the_whole_mask(scene: Any, name: str) -> None:
    node = add_volume(name)
    volume = volume_of(node)
    frame = volume.require_frame()
    mask = blob(frame.shape, 2)
    segments = Segments(node, frame)
    segments.sync([finding(mask, frame)])
    ours, whole = segments.measured(segments.ids["1.1"]), measure(mask, frame, values=volume.array)
    assert ours.volume_mm3 == pytest.approx(whole.volume_mm3, rel=1e-9)
    assert ours.mean == pytest.approx(whole.mean, rel=1e-9)
    assert np.allclose(ours.centroid_lps, whole.centroid_lps)


def test_a_mask_of_another_grid_or_without_voxels_is_refused(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    other = volume_of(add_volume("oblique")).require_frame()
    segments = Segments(node, frame)
    good = finding(blob(frame.shape, 0), frame)
    with pytest.raises(InputError, match="grid"):
        segments.sync([good, finding(blob(frame.shape, 0), other, key="1.2")])
    with pytest.raises(InputError, match="no voxels"):
        segments.sync([good, finding(np.zeros(frame.shape, dtype=bool), frame, key="1.2")])
    assert segments.node is None


def test_segments_and_conversation_come_back_from_a_saved_scene(scene: Any, tmp_path: Path) -> None:
    node = add_volume("oblique")
    frame = volume_of(node).require_frame()
    masks, findings = three(frame)
    Segments(node, frame).sync(findings, {"Question": "Où?"})
    memory.remember(node, "Wo ist die Leber? 肝臓 \U0001f600")
    for one in _nodes("vtkMRMLStorableNode"):
        one.AddDefaultStorageNode()
    bundle = tmp_path / "scene.mrb"
    assert scene.WriteToMRB(str(bundle))
    scene.Clear(False)
    assert scene.ReadFromMRB(str(bundle))
    (again,) = _nodes("vtkMRMLScalarVolumeNode")
    segments = Segments(again, volume_of(again).require_frame(), known=("1.1", "1.2", "1.3"))
    assert names(segments) == list(LABELS)
    assert memory.remembered(again) == "Wo ist die Leber? 肝臓 \U0001f600"
    segments.sync(findings[1:])
    segments.sync(findings)
    for mask, one in zip(masks, findings, strict=True):
        assert np.array_equal(slicers_own(segments, one.key, again), mask)


def _nodes(kind: str) -> Sequence[Any]:
    return list(slicer.util.getNodesByClass(kind))
