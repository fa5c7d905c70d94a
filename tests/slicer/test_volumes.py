from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer

from medsight_core.errors import InputError
from medsight_core.mrml.volumes import INSTANCES, Header, volume_of
from tests.slicer.bodies import GEOMETRIES, add_volume, matrix


@pytest.mark.parametrize("name", GEOMETRIES)
def test_voxels_and_their_places_are_those_of_the_node(scene: Any, name: str) -> None:
    node = add_volume(name)
    volume = volume_of(node)
    assert np.array_equal(volume.array, slicer.util.arrayFromVolume(node))
    ijk_to_ras, shape = GEOMETRIES[name]
    index = np.stack(np.indices(shape), axis=-1).reshape(-1, 3)
    ras = index[:, ::-1] @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]
    assert np.allclose(volume.require_frame().to_lps(index), ras * (-1, -1, 1), atol=1e-9)


def test_a_later_change_in_the_scene_does_not_reach_the_volume(scene: Any) -> None:
    node = add_volume("axial")
    volume = volume_of(node)
    before = volume.array.copy()
    slicer.util.arrayFromVolume(node)[:] = 7
    assert np.array_equal(volume.array, before)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("uint8", "int16"), ("int16", "int16"), ("uint16", "int16"), ("int32", "int16"), ("float64", "float32")],
)
def test_values_are_kept_whatever_their_type(scene: Any, given: str, kept: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(given)
    volume = volume_of(slicer.util.addVolumeFromArray(values))
    assert volume.array.dtype == kept
    assert np.array_equal(volume.array, values)


def test_what_does_not_fit_into_sixteen_bits_becomes_float(scene: Any) -> None:
    values = np.array([[[0, 65535, 40000]]], dtype=np.uint16)
    volume = volume_of(slicer.util.addVolumeFromArray(values))
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, values)


def test_an_image_in_colour_is_rgb(scene: Any) -> None:
    values = np.random.default_rng(0).integers(0, 256, (1, 5, 6, 4), dtype=np.uint8)
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode")
    slicer.util.updateVolumeFromArray(node, values)
    volume = volume_of(node)
    assert volume.is_colour
    assert np.array_equal(volume.array, values[..., :3])


@pytest.mark.parametrize("wrong", ["none", "labels", "empty", "nan", "sheared"])
def test_what_cannot_be_asked_about_is_named(scene: Any, wrong: str) -> None:
    node: Any = None
    if wrong == "labels":
        node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    elif wrong == "empty":
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    elif wrong == "nan":
        node = slicer.util.addVolumeFromArray(np.full((2, 2, 2), np.nan))
    elif wrong == "sheared":
        sheared = matrix()
        sheared[0, 2] = 1.0
        node = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5)), ijkToRAS=sheared)
    with pytest.raises(InputError) as caught:
        volume_of(node)
    assert caught.value.remedy


def test_nothing_of_the_scene_names_the_patient(scene: Any) -> None:
    node = add_volume("axial")
    node.SetName("DOE^JANE 1951")
    node.SetAttribute(INSTANCES, "1.2.3.4 1.2.3.5")
    volume = volume_of(node, Header(modality="CT", dicom_modality="CT"))
    assert volume.source.kind == "dicom"
    assert volume.has_place
    for canary in ("DOE", "1951", "1.2.3"):
        assert canary not in repr(volume.source)
