from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import slicer
import vtk

from medsight_core.errors import MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.dicom_seg import read_dicom_seg
from medsight_core.mrml.export import FORMATS, check, export
from medsight_core.mrml.segments import Segments
from medsight_core.mrml.sources import header_of, reordering, source_volume
from medsight_core.mrml.volumes import INSTANCES, volume_of
from tests.imaging.synthetic import Series, write_series
from tests.slicer.bodies import add_volume, blob, finding, matrix

MODEL = {"model": "medsight-mini", "digest": "0123456789abcdef"}


def load(scene: Any, series: Series) -> tuple[Any, Callable[[str], str]]:
    """A series as Slicer's own reader brings it into a scene, and what its DICOM database would answer."""
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(series.paths[0]))
    for path in series.paths:
        storage.AddFileName(str(path))
    storage.SetSingleFile(0)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    assert storage.ReadData(node)
    files = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): str(path) for path in series.paths}
    node.SetAttribute(INSTANCES, " ".join(files))
    return node, lambda uid: files.get(uid, "")


def found_in(node: Any, *, labels: tuple[str, ...] = ("liver", "lesion")) -> Segments:
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    segments.sync([finding(blob(frame.shape, n), frame, label, f"1.{n}") for n, label in enumerate(labels)])
    return segments


@pytest.mark.parametrize("turn", [0.0, 30.0])
def test_a_dicom_segmentation_lies_on_the_images_it_was_found_on(scene: Any, tmp_path: Path, turn: float) -> None:
    direction = matrix((1, 1, 1), turn=turn)[:3, :3] * (-1, -1, 1)
    series = write_series(tmp_path / "series", orientation=(*direction[:, 0], *direction[:, 1]))
    node, file_of = load(scene, series)
    volume = volume_of(node, header_of(node, file_of))
    assert (volume.modality, volume.source.dicom_modality) == ("CT", "CT")
    segments = found_in(node)
    notes = check(segments, node, "dicom", file_of)
    assert not [note for note in notes if note.stops]
    path = export(segments, node, "dicom", tmp_path / "out.dcm", file_of, **MODEL)
    frame = volume.require_frame()
    stored = {one: np.zeros(frame.shape, dtype=bool) for one in ("liver", "lesion")}
    scan = source_volume(node, file_of)
    numbers = {
        str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): k
        for k, path in enumerate(scan.source.paths)
    }
    on_files = {one: np.zeros(scan.array.shape, dtype=bool) for one in stored}
    for mask in read_dicom_seg(path):
        on_files[mask.label][numbers[mask.sop_instance_uid]] = mask.mask
    back = reordering(scan.require_frame(), frame)
    for label, segment_id in zip(stored, segments.ids.values(), strict=True):
        assert np.array_equal(back(on_files[label]), segments.mask(segment_id))
    if shutil.which("dciodvfy"):
        said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, said


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=3)))
def test_the_same_voxels_are_found_however_they_are_stored(order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    target = Frame.from_affine(
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix((0.7, 0.9, 2.5), turn=25.0)[:, [2, 1, 0, 3]], (4, 5, 6)
    )
    values = np.arange(120).reshape(4, 5, 6)
    stored = np.transpose(values, order)
    affine = target.affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            stored = np.flip(stored, axis)
            affine[:3, 3] += affine[:3, axis] * (stored.shape[axis] - 1)
            affine[:, axis] *= -1
    source = Frame.from_affine(affine, stored.shape)
    assert np.array_equal(reordering(source, target)(stored), values)


def test_voxels_that_are_not_the_same_are_refused(scene: Any) -> None:
    frame = volume_of(add_volume("oblique")).require_frame()
    for change in (
        {"origin": frame.origin + 0.1},
        {"spacing": frame.spacing * 1.01},
        {"shape": (frame.shape[0], frame.shape[1], frame.shape[2] - 1)},
    ):
        with pytest.raises(MedSightError, match="not those of the DICOM files"):
            reordering(replace(frame, **change), frame)


def test_what_would_fail_or_be_lost_is_said_beforehand(scene: Any, tmp_path: Path) -> None:
    node = add_volume("axial")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)

    def sentences(format: Any = "dicom", file_of: Callable[[str], str] = lambda uid: "") -> str:
        return " ".join(note.sentence for note in check(segments, node, format, file_of))

    assert "no finding" in sentences()
    labels = ("liver", "liver", "blorb", "spleen")
    segments.sync([finding(blob(frame.shape, n), frame, label, f"1.{n}") for n, label in enumerate(labels)])
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        np.zeros(frame.shape, dtype=np.uint8), segments.node, segments.ids["1.3"], node
    )
    assert '"spleen" is empty' in sentences()
    assert 'Several findings are called "liver"' in sentences()
    assert 'does not know "blorb"' in sentences()
    assert "not loaded from the DICOM database" in sentences()
    assert "not loaded" not in sentences("seg.nrrd")
    assert "overlap" in sentences("nii.gz")
    node.SetAttribute(INSTANCES, "1.2.3 1.2.4")
    assert "2 of the 2 images" in sentences()
    transform = scene.AddNewNodeByClass("vtkMRMLTransformNode", "bend")
    spline = vtk.vtkThinPlateSplineTransform()
    transform.SetAndObserveTransformToParent(spline)
    node.SetAndObserveTransformNodeID(transform.GetID())
    assert 'deformed by the transform "bend"' in sentences()
    with pytest.raises(MedSightError) as caught:
        export(segments, node, "dicom", tmp_path / "out.dcm", lambda uid: "", **MODEL)
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS[1:])
def test_other_formats_hold_the_same_masks(scene: Any, tmp_path: Path, format: Any) -> None:
    node = add_volume("oblique")
    frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    halves = np.zeros(frame.shape, dtype=bool)
    halves[:, :9] = True
    masks = [halves, ~halves]
    segments.sync(
        [
            finding(mask, frame, label, f"1.{n}")
            for n, (mask, label) in enumerate(zip(masks, ("liver", "spleen"), strict=True))
        ]
    )
    before = scene.GetNumberOfNodes()
    path = export(segments, node, format, tmp_path / f"out.{format}", lambda uid: "", **MODEL)
    assert scene.GetNumberOfNodes() == before
    assert list(tmp_path.iterdir()) == [path]
    if format == "nii.gz":
        storage, read = slicer.vtkMRMLVolumeArchetypeStorageNode(), scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        storage.SetFileName(str(path))
        assert storage.ReadData(read)
        turn = reordering(volume_frame(read), frame)
        labels = turn(slicer.util.arrayFromVolume(read))
        assert all(np.array_equal(labels == n + 1, mask) for n, mask in enumerate(masks))
    else:
        storage, read = slicer.vtkMRMLSegmentationStorageNode(), scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        storage.SetFileName(str(path))
        assert storage.ReadData(read)
        for one, mask in zip(read.GetSegmentation().GetSegmentIDs(), masks, strict=True):
            assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(read, one, node) > 0, mask)


def volume_frame(labels: Any) -> Frame:
    """Where the voxels of a label map lie."""
    copy = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(labels).astype(np.int16))
    ijk_to_ras = vtk.vtkMatrix4x4()
    labels.GetIJKToRASMatrix(ijk_to_ras)
    copy.SetIJKToRASMatrix(ijk_to_ras)
    return volume_of(copy).require_frame()
