"""What the table says of a finding, against what ITK and VTK measure of the label map that Slicer exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from medsight_core.mrml.segments import Segments
from medsight_core.mrml.volumes import volume_of
from tests.slicer.bodies import GEOMETRIES, add_volume, blob, finding

CLOSE = 1e-6
"""Relative."""


def exported(segments: Segments, node: Any, segment_id: str) -> tuple[NDArray[np.uint8], Any]:
    """A segment as Slicer itself exports it on the volume's grid: the array, and the node."""
    labels = node.GetScene().AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    ids = vtk.vtkStringArray()
    ids.InsertNextValue(segment_id)
    logic = slicer.modules.segmentations.logic()
    assert logic.ExportSegmentsToLabelmapNode(segments.node, ids, labels, node)
    return (slicer.util.arrayFromVolume(labels) > 0).astype(np.uint8), labels


def itk(labels: NDArray[np.uint8], node: Any) -> dict[str, float]:
    """What ITK's label statistics say."""
    spacing = [float(one) for one in node.GetSpacing()]
    image, values = sitk.GetImageFromArray(labels), sitk.GetImageFromArray(slicer.util.arrayFromVolume(node))
    for one in (image, values):
        one.SetSpacing(spacing)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(image)
    grey = sitk.LabelIntensityStatisticsImageFilter()
    grey.Execute(image, values)
    return {
        "volume": shape.GetPhysicalSize(1),
        "mean": grey.GetMean(1),
        "sd": grey.GetStandardDeviation(1),
        "minimum": grey.GetMinimum(1),
        "maximum": grey.GetMaximum(1),
    }


def accumulated(labels: Any, node: Any) -> tuple[float, int]:
    """Mean and number of voxels as Slicer's Segment Statistics takes them: with vtkImageAccumulate under a stencil."""
    threshold = vtk.vtkImageThreshold()
    threshold.SetInputData(labels.GetImageData())
    threshold.ThresholdByUpper(1)
    threshold.SetInValue(1)
    threshold.SetOutValue(0)
    threshold.SetOutputScalarTypeToUnsignedChar()
    stencil = vtk.vtkImageToImageStencil()
    stencil.SetInputConnection(threshold.GetOutputPort())
    stencil.ThresholdByUpper(1)
    statistics = vtk.vtkImageAccumulate()
    statistics.SetInputData(node.GetImageData())
    stencil.Update()
    statistics.SetStencilData(stencil.GetOutput())
    statistics.Update()
    return statistics.GetMean()[0], statistics.GetVoxelCount()


def longest(mask: NDArray[np.bool_], node: Any) -> float:
    """The longest line on one slice between the corners of a blob's pixels' sides: every pair is tried."""
    across, down, _ = node.GetSpacing()
    found = 0.0
    for plane in mask:
        rows, columns = np.nonzero(plane)
        if not len(rows):
            continue
        ends = np.concatenate([(rows + dr) * [[1], [0]] + (columns + dc) * [[0], [1]]
                               for dr, dc in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))], axis=1)  # fmt: skip
        found = max(found, float(pdist(ends.T * (down, across)).max()))
    return found


def compare(segments: Segments, node: Any, segment_id: str) -> None:
    measured = segments.measured(segment_id)
    labels, label_node = exported(segments, node, segment_id)
    said = itk(labels, node)
    assert measured.volume_mm3 == pytest.approx(said["volume"], rel=CLOSE)
    for name in ("mean", "minimum", "maximum"):
        assert getattr(measured, name) == pytest.approx(said[name], rel=CLOSE, abs=CLOSE), name
    if measured.sd is not None:
        assert measured.sd == pytest.approx(said["sd"], rel=CLOSE)
    mean, voxels = accumulated(label_node, node)
    assert (measured.voxels, measured.mean) == (voxels, pytest.approx(mean, rel=CLOSE, abs=CLOSE))
    assert measured.volume_mm3 == pytest.approx(voxels * abs(np.prod(node.GetSpacing())), rel=CLOSE)


@pytest.fixture
def ellipsoid() -> Any:
    """A mask of one piece on each slice, so that its longest line is that of the slice."""

    def made(shape: tuple[int, int, int]) -> NDArray[np.bool_]:
        z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
        middle = [(n - 1) / 2 for n in shape]
        apart = ((y - middle[1]) / (shape[1] / 3)) ** 2 + ((x - middle[2]) / (shape[2] / 4)) ** 2
        return np.asarray(apart + ((z - middle[0]) / shape[0]) ** 2 < 1)

    return made


@pytest.mark.parametrize("name", list(GEOMETRIES))
def test_figures_are_those_of_itk_and_vtk(scene: Any, name: str) -> None:
    node = add_volume(name)
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    segments.sync([finding(blob(frame.shape, n), frame, f"finding {n}", f"1.{n}") for n in range(3)])
    for segment_id in segments.ids.values():
        compare(segments, node, segment_id)


@pytest.mark.parametrize("name", list(GEOMETRIES))
def test_the_diameter_is_that_of_every_pair_of_points(scene: Any, ellipsoid: Any, name: str) -> None:
    node = add_volume(name)
    frame = volume_of(node).require_frame()
    mask = ellipsoid(frame.shape)
    segments = Segments(node, frame)
    segments.sync([finding(mask, frame)])
    measured = segments.measured(segments.ids["1.1"])
    assert measured.diameter.length_mm == pytest.approx(longest(mask, node), rel=CLOSE)
    ends = (measured.diameter.start, measured.diameter.end)
    assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(measured.diameter.length_mm, rel=CLOSE)
    assert frame.to_index(ends[0])[0] == pytest.approx(frame.to_index(ends[1])[0], abs=1e-9), "on one slice"


def test_figures_follow_a_persons_edit(scene: Any) -> None:
    node = add_volume("oblique")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    segments.sync([finding(blob(frame.shape, n), frame, f"finding {n}", f"1.{n}") for n in range(2)])
    edited, other = segments.ids.values()
    before = segments.measured(edited), segments.measured(other)
    mask = segments.mask(edited)
    mask[0] = False
    mask[2, 2:6, 3:20] = True  # beyond the box that it had
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), segments.node, edited, node)
    compare(segments, node, edited)
    assert segments.measured(edited).voxels == mask.sum() != before[0].voxels
    assert segments.measured(other).voxels == before[1].voxels
    compare(segments, node, other)


def test_figures_do_not_change_under_a_transform(scene: Any) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    found = [finding(blob(frame.shape, 4), frame)]
    segments.sync(found)
    before = segments.measured(segments.ids["1.1"]).to_json()
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "twice as large")
    twice = vtk.vtkTransform()
    twice.Scale(2.0, 2.0, 2.0)
    transform.SetMatrixTransformToParent(twice.GetMatrix())
    node.SetAndObserveTransformNodeID(transform.GetID())
    segments.sync(found)
    assert segments.measured(segments.ids["1.1"]).to_json() == before, "of the scan as it was taken"
