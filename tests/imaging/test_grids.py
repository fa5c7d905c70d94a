"""NIfTI, NRRD and pictures: axes are reordered for the eye, and every voxel stays where it was in the patient."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medsight_core.imaging.orientation import RAS_TO_LPS
from medsight_core.imaging.volume import Volume, open_volume

VIEWS = {  # by the axis of the patient (x, y, z) along which slices are thick: slice, row and column axes in LPS
    2: [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
    1: [(0, 1, 0), (0, 0, -1), (1, 0, 0)],
    0: [(-1, 0, 0), (0, 0, -1), (0, 1, 0)],
}


def assert_same_voxels(volume: Volume, data: np.ndarray, affine: np.ndarray) -> None:
    """Each voxel of the volume has the value that the file has at the same place in the patient."""
    frame = volume.require_frame()
    assert volume.array.shape == frame.shape
    indices = np.indices(frame.shape).reshape(3, -1).T
    indices = indices[:: max(1, len(indices) // 100_003)]  # of a large volume a part, in step with none of its axes
    points = frame.to_lps(indices)
    native = np.linalg.solve(RAS_TO_LPS @ affine, np.column_stack([points, np.ones(len(points))]).T)[:3].T
    rounded = np.rint(native).astype(int)
    np.testing.assert_allclose(native, rounded, atol=1e-3)
    np.testing.assert_array_equal(volume.array[tuple(indices.T)], data[tuple(rounded.T)])
    for k in range(volume.n_slices):
        assert volume.slice_frame(k).is_close(frame.slice(k))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    axes=st.permutations((0, 1, 2)),
    signs=st.tuples(*[st.sampled_from((-1, 1))] * 3),
    shape=st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(2, 5)),
    thick=st.integers(0, 2),
    angle=st.floats(-0.3, 0.3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    suffix=st.sampled_from((".nii", ".nii.gz", ".nrrd")),
)
def test_any_order_and_direction_of_axes(tmp_path_factory, axes, signs, shape, thick, angle, origin, suffix) -> None:  # type: ignore[no-untyped-def]
    spacing = np.ones(3)
    spacing[thick] = 3.0
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis in range(3):
        affine[axes[axis], axis] = signs[axis] * spacing[axis]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = origin
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = tmp_path_factory.mktemp("grid") / f"a{suffix}"
    if suffix == ".nrrd":
        image = sitk.GetImageFromArray(data.transpose(2, 1, 0))
        lps = RAS_TO_LPS @ affine
        image.SetSpacing([float(s) for s in spacing])
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        sitk.WriteImage(image, str(path))
    else:
        nib.save(nib.Nifti1Image(data, affine), path)
        affine = nib.load(path).affine  # as float32 holds it
    volume = open_volume(path)
    assert_same_voxels(volume, data, affine)
    view = VIEWS[axes[thick]]
    directions = volume.require_frame().direction.T
    assert all(float(d @ v) > 0.9 for d, v in zip(directions, np.array(view, dtype=float), strict=True))


def test_without_thick_slices_a_scan_is_axial(tmp_path: Path) -> None:
    data = np.zeros((4, 5, 6), np.int16)
    affine = np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii")
    frame = open_volume(tmp_path / "a.nii").require_frame()
    np.testing.assert_allclose(frame.direction.T, VIEWS[2])
    np.testing.assert_allclose(frame.normal, frame.direction[:, 0])  # slices run along DICOM's normal


def test_a_single_slice_is_shown_as_such(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((1, 9, 8), np.int16), np.eye(4)), tmp_path / "a.nii")
    assert open_volume(tmp_path / "a.nii").array.shape == (1, 8, 9)
    nib.save(nib.Nifti1Image(np.zeros((7, 9), np.int16), np.eye(4)), tmp_path / "b.nii")
    assert open_volume(tmp_path / "b.nii").array.shape == (1, 9, 7)


def test_a_slanted_grid_keeps_exact_slices_and_can_be_resampled(tmp_path: Path) -> None:
    affine = np.array([[1, 0, 0, 5.0], [0, 1, 0.8, -3], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    data = np.random.default_rng(0).integers(0, 99, (8, 9, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    assert volume.problem is not None and volume.problem.code == "gantry_tilt"
    for k in range(6):
        place = (RAS_TO_LPS @ affine @ (7, 8, k, 1))[:3]  # RAS: the largest i and j are the first column and row
        np.testing.assert_allclose(volume.slice_frame(k).origin, place, atol=1e-5)
        np.testing.assert_array_equal(volume.slice_array(k), data[::-1, ::-1, k].T)
    assert open_volume(tmp_path / "a.nii", resample=True).require_frame().spacing[0] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (np.array([0, 255], np.uint8), np.int16),
        (np.array([0, 30000], np.uint16), np.int16),
        (np.array([0, 65535], np.uint16), np.float32),
        (np.array([-70000, 5], np.int32), np.float32),
        (np.array([0.25, -8.5], np.float32), np.float32),
        (np.array([0.25, -8.5], np.float64), np.float32),
        (np.array([0.25, -8.5], ">f4"), np.float32),
        (np.array([-5, 300], ">i2"), np.int16),
    ],
)
def test_values_keep_exact_in_the_smallest_type(tmp_path: Path, data: np.ndarray, dtype: type) -> None:
    image = nib.Nifti1Image(np.broadcast_to(data, (4, 3, 2)).copy(), np.eye(4), dtype=data.dtype)
    nib.save(image, tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(np.unique(volume.array), np.sort(data).astype(dtype))


def test_scale_units_colour_and_values_that_are_none(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.diag([100.0, 100, 500, 1]))
    image.header.set_xyzt_units("micron")
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.require_frame().spacing, (0.5, 0.1, 0.1))
    assert volume.array.min() == 10 and volume.array.max() == 21.5

    colour = np.random.default_rng(0).integers(0, 255, (4, 3, 2, 3), dtype=np.uint8)
    packed = np.ascontiguousarray(colour).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(packed, RAS_TO_LPS), tmp_path / "b.nii")
    np.testing.assert_array_equal(open_volume(tmp_path / "b.nii").array, colour.transpose(2, 1, 0, 3))

    holes = np.full((2, 2, 2), np.nan, np.float32)
    holes[0] = 3
    nib.save(nib.Nifti1Image(holes, np.eye(4)), tmp_path / "c.nii")
    volume = open_volume(tmp_path / "c.nii")
    assert set(np.unique(volume.array)) == {0, 3}
    assert any("not finite" in warning for warning in volume.warnings)


def test_a_file_that_does_not_say_how_the_patient_lies(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 3, 2), np.int16), None)
    image.header.set_zooms((1.0, 1.0, 2.0))
    nib.save(image, tmp_path / "a.nii")
    assert any("left and right" in warning for warning in open_volume(tmp_path / "a.nii").warnings)


def test_a_label_map_lies_on_its_dicom_series(shared_data: Path) -> None:
    """The label map was made from the same slices: same frame, and its liver has the density of a liver."""
    scan = open_volume(shared_data / "dicom" / "ct_abdomen_totalseg")
    labels = open_volume(shared_data / "volumes" / "ct_abdomen_totalseg_dicom_seg.nii.gz")
    assert labels.require_frame().is_close(scan.require_frame())
    liver, aorta = (scan.array[labels.array == value].astype(float) for value in (5, 52))
    assert len(liver) > 10_000
    assert 40 < liver.mean() < 180 and liver.std() < 60
    if len(aorta):
        assert aorta.mean() > 0
    shifted = np.roll(labels.array, 40, axis=1) == 5
    assert scan.array[shifted].std() > 2 * liver.std()  # would not hold of a map that lies somewhere else
    reference = nib.load(shared_data / "volumes" / "ct_abdomen_totalseg_dicom_seg.nii.gz")
    assert_same_voxels(labels, np.asarray(reference.dataobj).astype(np.int16), reference.affine)


def test_pictures(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rgb = random.integers(0, 255, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    volume = open_volume(tmp_path / "a.png")
    np.testing.assert_array_equal(volume.array[0], rgb)
    frame = volume.require_frame()
    assert not frame.physical
    np.testing.assert_allclose(frame.to_lps((0, 2, 5)), (5, 2, 0))  # (x, y) is (column, row)

    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(open_volume(tmp_path / "grey.png").array[0], np.repeat(rgb[..., :1], 3, axis=2))

    deep = random.integers(0, 65535, (6, 9)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(open_volume(tmp_path / "deep.png").array[0], deep)

    turned = Image.fromarray(rgb)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    volume = open_volume(tmp_path / "turned.jpg")
    assert volume.array.shape == (1, 9, 6, 3)
    assert any("upright" in warning for warning in volume.warnings)
