"""What is known of a scan in the scene beside its voxels: from its files, or from what Slicer noted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from medsight_core.errors import InputError
from medsight_core.imaging.burned_in import burned_in_risk
from medsight_core.mrml.sources import header_of
from medsight_core.mrml.volumes import INSTANCES, Header, volume_of
from tests.imaging.synthetic import change_file, write_series
from tests.slicer.bodies import add_volume
from tests.slicer.series import load


def nowhere(uid: str) -> str:
    """A DICOM database that knows nothing."""
    return ""


@pytest.mark.parametrize("turned_round", [False, True])
def test_a_window_is_not_taken_for_values_that_the_reader_turned_round(
    scene: Any, tmp_path: Path, turned_round: bool
) -> None:
    window = {"WindowCenter": "40", "WindowWidth": "400"}
    write_series(tmp_path / "series", monochrome1=turned_round, changes=window)
    header = header_of(*load(scene, tmp_path / "series"))
    assert header.window == (None if turned_round else (40.0, 400.0))
    assert header.inverted == turned_round


def test_a_series_whose_images_have_no_uids_is_known_by_its_own_file(scene: Any, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", modality="MR")
    for path in series.paths:
        change_file(path, SOPInstanceUID="")
    node, file_of = load(scene, tmp_path / "series")
    assert node.GetAttribute(INSTANCES) is None
    assert header_of(node, file_of).modality == "MR"


def test_a_real_series_without_uids_is_known_as_well(scene: Any, shared_data: Path) -> None:
    node, file_of = load(scene, shared_data / "dicom" / "ct_abdomen_totalseg")
    assert node.GetAttribute(INSTANCES) is None
    header = header_of(node, file_of)
    assert (header.modality, header.dicom_modality) == ("CT", "CT")


def test_where_the_files_are_elsewhere_the_scene_knows_the_modality(scene: Any, tmp_path: Path) -> None:
    node = add_volume("axial")
    node.SetAttribute(INSTANCES, "1.2.3 1.2.4")
    assert header_of(node, nowhere) == Header()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    hierarchy.SetItemAttribute(item, constants.GetDICOMSeriesModalityAttributeName(), "US")
    assert header_of(node, nowhere) == Header(modality="Ultrasound", dicom_modality="US")
    bundle = str(tmp_path / "scene.mrb")
    assert scene.WriteToMRB(bundle, None)
    scene.Clear(False)
    assert scene.ReadFromMRB(bundle, True)
    again = scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    assert header_of(again, nowhere).modality == "Ultrasound"


def test_a_file_that_is_not_dicom_says_nothing(scene: Any, tmp_path: Path) -> None:
    node = add_volume("axial")
    node.AddDefaultStorageNode()
    node.GetStorageNode().SetFileName(str(tmp_path / "scan.nrrd"))
    assert node.GetStorageNode().WriteData(node)
    assert header_of(node, nowhere) == Header()


def test_hounsfield_units_that_were_turned_round_are_refused(scene: Any, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", monochrome1=True, intercept=-1024)
    node, file_of = load(scene, tmp_path / "series")
    voxels = slicer.util.arrayFromVolume(node)
    assert not np.array_equal(np.sort(voxels, axis=None), np.sort(series.array, axis=None))  # it is as it is said
    with pytest.raises(InputError) as caught:
        volume_of(node, header_of(node, file_of))
    assert caught.value.code == "inverted_values"
    assert "Hounsfield" in str(caught.value) and "MONOCHROME2" in caught.value.remedy


def test_a_picture_without_units_may_be_turned_round(scene: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "series", modality="MR", monochrome1=True)
    node, file_of = load(scene, tmp_path / "series")
    assert volume_of(node, header_of(node, file_of)).modality == "MR"


@pytest.mark.parametrize(
    ("said", "risky"),
    [({}, False), ({"BurnedInAnnotation": "YES"}, True), ({"ConversionType": "DF"}, True)],
)
def test_text_in_the_pixels_is_warned_of_as_for_files(
    scene: Any, tmp_path: Path, said: dict[str, Any], risky: bool
) -> None:
    write_series(tmp_path / "series", changes=said)
    node, file_of = load(scene, tmp_path / "series")
    assert (burned_in_risk(volume_of(node, header_of(node, file_of))) is not None) == risky
