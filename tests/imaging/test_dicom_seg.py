"""DICOM Segmentations: exact, valid, and at the right place, whatever the source."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from scipy.spatial.transform import Rotation

from medsight_core.errors import InputError, MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.dicom_seg import read_dicom_seg, write_dicom_seg
from medsight_core.imaging.volume import Source, Volume, open_volume
from medsight_core.regions import Region, Span
from tests.imaging.synthetic import Series, change_file, write_series

MODEL = {"model_name": "medsight-mini", "model_digest": "sha256:" + 57 * "a"}
REAL = {
    "CT": "ct_abdomen_totalseg",
    "CT uncompressed": "seg_ct3slice_liver/ct",
    "MR": "mr_brain_PGBM-003_FLAIR",
    "CR": "cr_extremity_j2k",
    "DX": "dx_chest/dx_image.dcm",
    "US J2K": "us/US1_J2KR.dcm",
    "US colour": "us/gdcm-US-ALOKA-16.dcm",
    "enhanced CT": "ct_compressed/eCT_Supplemental.dcm",
    "enhanced MR JPEG-LS": "mr_multiframe/emri_small_jpeg_ls_lossless.dcm",
    "CT without place": "ct_compressed/693_J2KR.dcm",
}
PACKAGED = ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm")


def region(volume: Volume, k: int, mask: np.ndarray, label: str = "liver", code: str = "[C0_1]") -> Region:
    return Region(
        code=code, label=label, span=Span(0, 0), score=0.75, slice_index=k, mask=mask, frame=volume.slice_frame(k)
    )


def blobs(volume: Volume, slices: list[int]) -> list[Region]:
    """Three overlapping ragged masks on each slice."""
    random = np.random.default_rng(7)
    rows, columns = volume.array.shape[1:3]
    found = []
    for n, label in enumerate(("liver", "lesion in the liver", "left kidney")):
        for k in slices:
            mask = np.zeros((rows, columns), dtype=bool)
            mask[n : rows // 2 + n, columns // 4 :] = True
            found.append(region(volume, k, mask & (random.random(mask.shape) < 0.7), label, f"[C0_{n}]"))
    return found


def box(volume: Volume, k: int = 0, label: str = "liver", code: str = "[C0_1]", at: int = 2) -> Region:
    mask = np.zeros(volume.array.shape[1:3], dtype=bool)
    mask[at : at + 5, at : at + 7] = True
    return region(volume, k, mask, label, code)


def assert_exact(path: Path, volume: Volume, regions: list[Region]) -> None:
    """Each mask comes back voxel for voxel, on the image it was found on, and nothing else is in the file."""
    source = volume.source
    stored = read_dicom_seg(path)
    assert len(stored) == len(regions)
    for wanted in regions:
        k = wanted.slice_index
        image = source.paths[k] if len(source.paths) == volume.n_slices else source.paths[0]
        header = pydicom.dcmread(image, stop_before_pixels=True)
        uid = header.get("SOPInstanceUID") or header.file_meta.MediaStorageSOPInstanceUID
        number = source.frame_numbers[k] if int(header.get("NumberOfFrames") or 1) > 1 else None
        (found,) = [s for s in stored if (s.label, s.sop_instance_uid, s.frame_number) == (wanted.label, uid, number)]
        np.testing.assert_array_equal(found.mask, wanted.mask)
        if found.frame is not None:
            affine = volume.slice_frame(k).affine
            np.testing.assert_allclose(found.frame.affine[:3, 1:], affine[:3, 1:], atol=1e-4)


def assert_valid(path: Path) -> None:
    """dciodvfy, of David Clunie's dicom3tools, has nothing to call an error."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, errors="replace")
    lines = (done.stdout + done.stderr).splitlines()
    assert any(line.startswith("Segmentation") for line in lines), lines
    assert [line for line in lines if line.startswith("Error")] == []


def read_by_dcmqi(path: Path, folder: Path) -> dict[int, sitk.Image]:
    """What dcmqi, which 3D Slicer reads by, makes of the file: one image per segment."""
    program = Path(sys.executable).parent / "segimage2itkimage"
    if not program.exists():
        pytest.skip("dcmqi is not installed")
    folder.mkdir()
    subprocess.run(
        [str(program), "--inputDICOM", str(path), "--outputDirectory", str(folder), "--outputType", "nrrd"],
        capture_output=True,
        check=True,
    )
    return {int(file.stem.split("-")[-1]): sitk.ReadImage(str(file)) for file in folder.glob("*.nrrd")}


def assert_same_place(image: sitk.Image, volume: Volume, masks: dict[int, np.ndarray]) -> None:
    """The voxels of ``image`` that are set lie where the masks are in the patient, and there are as many."""
    found = np.argwhere(sitk.GetArrayFromImage(image) > 0)
    points = np.array([image.TransformIndexToPhysicalPoint([int(v) for v in index[::-1]]) for index in found])
    wanted = np.concatenate(
        [volume.slice_frame(k).to_lps(np.c_[np.zeros(mask.sum()), np.argwhere(mask)]) for k, mask in masks.items()]
    )
    assert points.shape == wanted.shape

    def ordered(places: np.ndarray) -> np.ndarray:
        rounded = np.round(places, 1)
        return places[np.lexsort(rounded.T)]

    np.testing.assert_allclose(ordered(points), ordered(wanted), atol=2e-3)


@pytest.mark.parametrize("name", REAL)
def test_real_sources_come_back_exactly_and_are_valid(name: str, shared_data: Path, tmp_path: Path) -> None:
    volume = open_volume(shared_data / "dicom" / REAL[name])
    regions = blobs(volume, [volume.middle])
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert_exact(path, volume, regions)
    assert_valid(path)


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_sources_come_back_exactly_and_are_valid(name: str, tmp_path: Path) -> None:
    volume = open_volume(Path(str(get_testdata_file(name, download=False))))
    regions = blobs(volume, [volume.n_slices - 1])
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert_exact(path, volume, regions)
    assert_valid(path)


@pytest.mark.parametrize("name", ["CT", "MR", "CT uncompressed"])
def test_dcmqi_reads_the_masks_of_scattered_slices_at_their_place(name: str, shared_data: Path, tmp_path: Path) -> None:
    volume = open_volume(shared_data / "dicom" / REAL[name])
    slices = sorted({0, 1, volume.n_slices - 1})
    regions = blobs(volume, slices)
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert_exact(path, volume, regions)
    images = read_by_dcmqi(path, tmp_path / "dcmqi")
    assert sorted(images) == [1, 2, 3]
    for number, image in images.items():
        masks = {r.slice_index: np.asarray(r.mask) for r in regions if r.code == f"[C0_{number - 1}]"}
        assert_same_place(image, volume, masks)


def test_an_anonymised_source_without_its_type_2_tags_is_enough(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", anonymised=True, changes={"SliceThickness": None})
    removed = pydicom.dcmread(series.paths[0])
    assert not any(name in removed for name in ("PatientName", "PatientID", "StudyID", "StudyDate", "SliceThickness"))
    volume = open_volume(series.folder)
    regions = blobs(volume, [2, 5])
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert_exact(path, volume, regions)
    assert_valid(path)
    assert pydicom.dcmread(path).PatientName == ""


def test_values_that_cannot_be_copied_are_left_out(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", shape=(2, 24, 32))
    with pytest.warns(UserWarning):
        for path in series.paths:
            dataset = pydicom.dcmread(path)
            dataset.PatientSex, dataset.PatientBirthDate, dataset.StudyTime = "X?", "no date", "late"
            dataset.save_as(path)
    volume = open_volume(series.folder)
    written = write_dicom_seg([box(volume)], volume, tmp_path / "answer.dcm", **MODEL)
    assert written is not None
    assert_valid(written)
    read = pydicom.dcmread(written)
    assert (read.PatientSex, read.PatientBirthDate, read.StudyTime) == ("", "", "")
    assert read.PatientID == "CANARY-42"


def test_names_and_labels_of_any_script_are_kept(tmp_path: Path) -> None:
    names = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Ωμέγα^山田"}
    volume = open_volume(write_series(tmp_path / "in", shape=(1, 24, 32), changes=names).folder)
    hostile = "Läsion\\der\nLeber \x00" + 100 * "x"
    path = write_dicom_seg([box(volume, label=hostile)], volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert_valid(path)
    read = pydicom.dcmread(path)
    assert str(read.PatientName) == "Ωμέγα^山田"
    label = read.SegmentSequence[0].SegmentLabel
    assert label.startswith("Läsion der Leber x") and len(label.encode()) == 64


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal", "oblique", "feet_up"])
@pytest.mark.parametrize("slices", [1, 6])
def test_a_bright_square_is_segmented_where_it_is(orientation: str, slices: int, tmp_path: Path) -> None:
    stored = np.zeros((slices, 20, 30), dtype=np.uint16)
    k = slices - 1
    stored[k, 4:9, 12:20] = 3000
    series = write_series(tmp_path / "in", stored=stored, spacing=(4.0, 0.5, 1.5), orientation=orientation)
    volume = open_volume(series.folder)
    at = next(i for i in range(slices) if (volume.array[i] > 1000).any())
    mask = volume.array[at] > 1000
    assert mask.sum() == 40
    path = write_dicom_seg([region(volume, at, mask)], volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    # The true corners come from how the series was written, not from how it was read.
    true = series.slice_frames[k].to_lps([[0, 4, 12], [0, 8, 19]])
    (stored_mask,) = read_dicom_seg(path)
    assert stored_mask.frame is not None
    inside = np.argwhere(stored_mask.mask)
    np.testing.assert_allclose(
        stored_mask.frame.to_lps([[0, *inside.min(axis=0)], [0, *inside.max(axis=0)]]), true, atol=1e-4
    )
    (image,) = read_by_dcmqi(path, tmp_path / "dcmqi").values()
    for point in true:
        assert image[image.TransformPhysicalPointToIndex(point.tolist())] == 1
    assert int(sitk.GetArrayFromImage(image).astype(bool).sum()) == 40


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turn=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    slices=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_orientation(
    turn: tuple[float, ...],
    spacing: tuple[float, float, float],
    origin: tuple[float, ...],
    slices: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    axes = Rotation.from_euler("xyz", turn).as_matrix()
    orientation = (*axes[:, 0], *axes[:, 1])
    series = write_series(folder, shape=(slices, 9, 12), spacing=spacing, origin=origin, orientation=orientation)
    volume = open_volume(series.folder)
    random = np.random.default_rng(seed)
    regions = [region(volume, k, random.random((9, 12)) < 0.5) for k in range(slices)]
    path = write_dicom_seg(regions, volume, folder / "answer.seg.dcm", **MODEL)
    assert path is not None
    assert_exact(path, volume, regions)


@pytest.mark.parametrize(
    "odd", [{"tilt_degrees": 15.0}, {"missing": (3,)}, {"nudged": {4: 0.9}}], ids=["tilt", "missing", "irregular"]
)
def test_slices_that_are_no_grid_keep_each_its_exact_place(odd: dict[str, Any], tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in", orientation="oblique", **odd).folder)
    assert volume.frame is None
    regions = blobs(volume, list(range(volume.n_slices)))
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert_exact(path, volume, regions)
    assert_valid(path)
    shared = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0]
    assert "SpacingBetweenSlices" not in shared.PixelMeasuresSequence[0]


def test_two_slices_far_apart_do_not_make_the_slices_thick(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in", spacing=(2.5, 0.8, 0.7)).folder)
    path = write_dicom_seg([box(volume, 1), box(volume, 6)], volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    measures = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == 2.5


def test_each_frame_of_an_enhanced_object_keeps_its_place_and_number(shared_data: Path, tmp_path: Path) -> None:
    volume = open_volume(shared_data / "dicom" / REAL["enhanced CT"])
    regions = blobs(volume, [0, 1])
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert {stored.frame_number for stored in read_dicom_seg(path)} == {1, 2}
    assert_exact(path, volume, regions)
    assert_valid(path)
    for number, image in read_by_dcmqi(path, tmp_path / "dcmqi").items():
        masks = {r.slice_index: np.asarray(r.mask) for r in regions if r.code == f"[C0_{number - 1}]"}
        assert_same_place(image, volume, masks)


def test_a_frame_of_a_loop_is_referred_to_by_its_number(tmp_path: Path) -> None:
    volume = open_volume(Path(str(get_testdata_file("examples_ybr_color.dcm", download=False))))
    path = write_dicom_seg([box(volume, 11)], volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    read = pydicom.dcmread(path)
    assert read.SourceImageSequence[0].ReferencedFrameNumber == volume.source.frame_numbers[11] == 12
    assert read.SourceImageSequence[0].ReferencedSOPClassUID.name == "Ultrasound Multi-frame Image Storage"


def test_overlapping_regions_are_all_kept(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    regions = [box(volume, 3, "liver"), box(volume, 3, "lesion", "[C0_2]", at=4)]
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert_exact(path, volume, regions)
    assert pydicom.dcmread(path).SegmentsOverlap == "YES"


def test_one_finding_on_several_slices_is_one_segment_and_twice_on_a_slice_is_two(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    regions = [box(volume, 1), box(volume, 2), box(volume, 2, at=9)]
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    assert [s.segment_number for s in read_dicom_seg(path)] == [1, 1, 2]


def test_what_a_segment_says_about_itself(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    regions = [
        box(volume, 1, "cyst in the left kidney", "[C2_16]"),
        box(volume, 1, "left lung", "[C1_3]"),
        box(volume, 1, "frobnication", "[C1_4]"),
    ]
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", **MODEL)
    assert path is not None
    segmentation = hd.seg.segread(path)
    cyst, lung, unknown = segmentation.SegmentSequence
    assert cyst.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert cyst.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Cyst"
    kidney = cyst.AnatomicRegionSequence[0]
    assert (kidney.CodeMeaning, kidney.AnatomicRegionModifierSequence[0].CodeMeaning) == ("Kidney", "Left")
    kind = lung.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeMeaning, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("Lung", "Left")
    assert lung.SegmentDescription == "[C1_3] score 0.75."
    assert "unknown to the terminology" in unknown.SegmentDescription
    assert len({tuple(s.RecommendedDisplayCIELabValue) for s in segmentation.SegmentSequence}) == 3
    assert len({s.TrackingUID for s in segmentation.SegmentSequence}) == 3
    algorithm = lung.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (MODEL["model_name"], MODEL["model_digest"])
    assert (segmentation.SegmentationType, segmentation.ContentQualification) == ("BINARY", "RESEARCH")
    assert segmentation.SeriesDescription == "MedSIGHT AI - not for diagnosis"
    assert segmentation.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
    assert segmentation.SeriesInstanceUID != volume.source.series_uid
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == volume.source.series_uid
    assert segmentation.FrameOfReferenceUID == volume.source.frame_of_reference_uid


def test_empty_frames_are_kept_on_request(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in", shape=(5, 24, 32)).folder)
    regions = [box(volume, 3), box(volume, 1, "spleen", "[C0_2]")]
    path = write_dicom_seg(regions, volume, tmp_path / "answer.dcm", keep_empty_frames=True, **MODEL)
    assert path is not None
    stored = read_dicom_seg(path)
    assert len(stored) == 10
    assert sum(s.mask.any() for s in stored) == 2
    assert_valid(path)


@pytest.mark.parametrize("empty_mask", [False, True])
def test_no_finding_writes_nothing(empty_mask: bool, tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in", shape=(1, 24, 32)).folder)
    regions = [region(volume, 0, np.zeros((24, 32), dtype=bool))] if empty_mask else []
    assert write_dicom_seg(regions, volume, tmp_path / "out" / "answer.dcm", **MODEL) is None
    assert not (tmp_path / "out").exists()


def refused(code: str, regions: list[Region], volume: Volume, path: Path) -> MedSightError:
    """The error, after a check that it leaves no trace."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(MedSightError) as caught:
        write_dicom_seg(regions, volume, path, **MODEL)
    assert caught.value.code == code
    assert caught.value.remedy
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not list(path.parent.glob(".medsight-*"))
    return caught.value


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return write_series(tmp_path / "in", shape=(3, 24, 32))


def test_a_region_outside_the_scan_is_refused(series: Series, tmp_path: Path) -> None:
    volume = open_volume(series.folder)
    regions = [box(volume, 1)]
    short = open_volume(series.paths[0])
    assert isinstance(refused("slice_out_of_range", regions, short, tmp_path / "a.dcm"), InputError)


def test_a_region_of_another_grid_is_refused(series: Series, tmp_path: Path) -> None:
    volume = open_volume(series.folder)
    other = open_volume(write_series(tmp_path / "wide", shape=(3, 24, 40)).folder)
    error = refused("bad_mask", [box(other, 1)], volume, tmp_path / "a.dcm")
    assert "(24, 40)" in error.sentence and "(24, 32)" in error.sentence
    moved = open_volume(write_series(tmp_path / "moved", shape=(3, 24, 32), origin=(0, 0, 0)).folder)
    refused("other_grid", [box(moved, 1)], volume, tmp_path / "a.dcm")


def test_a_source_that_is_not_dicom_is_refused(tmp_path: Path) -> None:
    frame = Frame(shape=(1, 24, 32), origin=np.zeros(3), spacing=np.ones(3), direction=np.eye(3))
    source = Source(kind="nifti", paths=(tmp_path / "scan.nii.gz",))
    volume = Volume(
        array=np.zeros((1, 24, 32), np.int16), frame=frame, slice_frames=(frame,), modality="CT", source=source
    )
    assert ".seg.nrrd" in refused("not_dicom", [box(volume)], volume, tmp_path / "a.dcm").remedy


def test_a_resampled_scan_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in", tilt_degrees=15.0).folder
    volume = open_volume(folder, resample=True)
    assert volume.frame is not None
    refused("resampled", [box(volume, 2)], volume, tmp_path / "a.dcm")


def test_files_that_have_changed_or_gone_are_refused(series: Series, tmp_path: Path) -> None:
    volume = open_volume(series.folder)
    change_file(volume.source.paths[1], ImagePositionPatient=[1, 2, 3])
    refused("resampled", [box(volume, 1)], volume, tmp_path / "a.dcm")
    volume.source.paths[2].unlink()
    refused("unreadable_source", [box(volume, 2)], volume, tmp_path / "a.dcm")


def test_several_images_without_a_place_are_refused_and_one_is_not(tmp_path: Path) -> None:
    volume = open_volume(Path(str(get_testdata_file("examples_ybr_color.dcm", download=False))))
    error = refused("no_geometry", [box(volume, 1), box(volume, 2)], volume, tmp_path / "a.dcm")
    assert ".seg.nrrd" in error.remedy


def together(series: Series, frames: tuple[Frame, ...]) -> Volume:
    """The files of a series as a volume whose slices are no grid."""
    return Volume(
        array=np.zeros((len(frames), *frames[0].shape[1:]), np.int16),
        frame=None,
        slice_frames=frames,
        modality="CT",
        source=Source(kind="dicom", paths=series.paths),
        problem=InputError("irregular_spacing", "The slices are no grid."),
    )


def test_slices_at_the_same_place_are_refused(tmp_path: Path) -> None:
    # highdicom would drop the second mask and say nothing.
    series = write_series(tmp_path / "in", shape=(3, 24, 32), spacing=(2.0, 1.0, 1.0), nudged={2: -2.0})
    volume = together(series, series.slice_frames)
    refused("same_place", [box(volume, 1), box(volume, 2)], volume, tmp_path / "a.dcm")
    path = write_dicom_seg([box(volume, 0), box(volume, 2)], volume, tmp_path / "a.dcm", **MODEL)
    assert path is not None and len(read_dicom_seg(path)) == 2


def test_slices_that_are_not_parallel_are_refused(tmp_path: Path) -> None:
    one = write_series(tmp_path / "one", shape=(1, 24, 32), frame_of_reference_uid="2.25.1")
    two = write_series(tmp_path / "two", shape=(1, 24, 32), frame_of_reference_uid="2.25.1", orientation="coronal")
    both = Series(**(vars(one) | {"paths": one.paths + two.paths}))
    volume = together(both, one.slice_frames + two.slice_frames)
    refused("mixed_orientation", [box(volume, 0), box(volume, 1)], volume, tmp_path / "a.dcm")


def test_slices_of_different_pixel_size_are_refused(tmp_path: Path) -> None:
    first = {"shape": (1, 24, 32), "frame_of_reference_uid": "2.25.1"}
    one = write_series(tmp_path / "one", **first)
    two = write_series(tmp_path / "two", spacing=(2.5, 0.8, 0.9), origin=(-10, -20, 50), **first)
    both = Series(**(vars(one) | {"paths": one.paths + two.paths}))
    volume = together(both, one.slice_frames + two.slice_frames)
    refused("mixed_spacing", [box(volume, 0), box(volume, 1)], volume, tmp_path / "a.dcm")


def test_an_error_leaves_the_file_that_was_there(series: Series, tmp_path: Path) -> None:
    volume = open_volume(series.folder)
    path = tmp_path / "answer.dcm"
    assert write_dicom_seg([box(volume, 1)], volume, path, **MODEL) == path
    volume.source.paths[1].unlink()
    refused("unreadable_source", [box(volume, 1)], volume, path)


def test_a_full_disk_leaves_nothing_and_spares_the_old_file(series: Series, tmp_path: Path) -> None:
    volume = open_volume(series.folder)
    path = tmp_path / "out" / "answer.dcm"
    path.parent.mkdir()
    path.write_text("the old one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        refused("not_written", [box(volume, 1)], volume, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(path.parent.iterdir()) == [path]


def test_a_name_that_a_folder_has_is_refused(series: Series, tmp_path: Path) -> None:
    volume = open_volume(series.folder)
    (tmp_path / "answer.dcm").mkdir()
    refused("not_written", [box(volume, 1)], volume, tmp_path / "answer.dcm")
