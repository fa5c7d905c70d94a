"""Many frames in one DICOM file: functional groups, films, colour."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, UltrasoundMultiFrameImageStorage, generate_uid

from medsight_core.errors import InputError
from medsight_core.imaging.volume import open_volume
from tests.imaging.synthetic import Series, change_file, header, save, write_series


def enhanced(path: Path, series: Series, order: list[int], **changes: object) -> Path:
    """One multi-frame object of the slices of a series, frames in the given order, with a rescale per frame."""
    first = pydicom.dcmread(series.paths[0])
    dataset = header(rows=first.Rows, columns=first.Columns)
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.InstanceNumber = 1
    dataset.NumberOfFrames = len(order)
    shared, each, pixels = Dataset(), [], []
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    for number in order:
        source = pydicom.dcmread(series.paths[number])
        group, position, value = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = source.ImagePositionPatient
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, -1024, "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([position]), Sequence([value])
        each.append(group)
        pixels.append(source.PixelData)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(each)
    dataset.PixelData = b"".join(pixels)
    dataset["PixelData"].VR = "OW"
    for name, new in changes.items():
        setattr(dataset, name, new)
    return save(dataset, path)


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_frames_are_sorted_and_rescaled(tmp_path: Path, orientation: str) -> None:
    series = write_series(tmp_path / "s", shape=(5, 12, 14), orientation=orientation)
    path = enhanced(tmp_path / "e.dcm", series, [3, 0, 4, 1, 2])
    volume = open_volume(path)
    np.testing.assert_allclose(volume.array, series.array)
    assert volume.require_frame().is_close(series.frame)
    assert volume.source.frame_numbers == (2, 4, 5, 1, 3)
    assert volume.source.paths == (path,)


def test_a_gap_in_a_multiframe_object_is_named(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", shape=(5, 12, 14))
    volume = open_volume(enhanced(tmp_path / "e.dcm", series, [0, 1, 3, 4]))
    assert volume.problem is not None and volume.problem.code == "missing_slices"


def test_groups_that_do_not_fit_the_frames(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", shape=(3, 12, 14))
    path = enhanced(tmp_path / "e.dcm", series, [0, 1, 2])
    dataset = pydicom.dcmread(path)
    change_file(path, PerFrameFunctionalGroupsSequence=Sequence(dataset.PerFrameFunctionalGroupsSequence[:2]))
    with pytest.raises(InputError) as caught:
        open_volume(path)
    assert caught.value.code == "bad_header"


def test_a_real_enhanced_ct_reads_as_by_highdicom(shared_data: Path) -> None:
    path = shared_data / "dicom" / "ct_compressed" / "eCT_Supplemental.dcm"
    volume = open_volume(path)
    theirs = highdicom.imread(path).get_volume(apply_presentation_lut=False)
    frame = volume.require_frame()
    for index in np.ndindex(volume.n_slices, 2, 2):
        point = frame.to_lps(index)
        at = np.linalg.solve(theirs.affine, (*point, 1))[:3]
        np.testing.assert_allclose(at, np.rint(at), atol=1e-3)
        assert theirs.array[tuple(np.rint(at).astype(int))] == volume.array[index]
    np.testing.assert_allclose(np.sort(theirs.array.ravel()), np.sort(volume.array.ravel()))


@pytest.mark.parametrize("name", ["emri_small.dcm", "emri_small_RLE.dcm", "emri_small_jpeg_ls_lossless.dcm"])
def test_compressed_frames_equal_plain_ones(shared_data: Path, name: str) -> None:
    folder = shared_data / "dicom" / "mr_multiframe"
    np.testing.assert_array_equal(
        open_volume(folder / name).array, pydicom.dcmread(folder / "emri_small.dcm").pixel_array
    )


def film(path: Path, frames: np.ndarray, photometric: str = "RGB", regions: bool = True) -> Path:
    """An ultrasound film ``(frames, rows, columns, 3)``."""
    dataset = header(rows=frames.shape[1], columns=frames.shape[2])
    dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundMultiFrameImageStorage, generate_uid()
    dataset.Modality = "US"
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.NumberOfFrames = len(frames)
    if regions:
        region = Dataset()
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
        dataset.SequenceOfUltrasoundRegions = Sequence([region])
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OB"
    return save(dataset, path)


def test_a_film_has_frames_and_a_scale_but_no_grid(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (4, 6, 8, 3), dtype=np.uint8)
    volume = open_volume(film(tmp_path / "a.dcm", frames))
    np.testing.assert_array_equal(volume.array, frames)
    assert volume.modality == "Ultrasound"
    assert volume.problem is not None and volume.problem.code == "cine"
    assert volume.source.frame_numbers == (1, 2, 3, 4)
    assert volume.slice_frame(2).physical
    np.testing.assert_allclose(volume.slice_frame(2).spacing[1:], (0.3, 0.2))
    assert not open_volume(film(tmp_path / "b.dcm", frames, regions=False)).slice_frame(0).physical


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    grey = np.full((1, 4, 4, 3), 128, np.uint8)
    grey[..., 0] = 77
    np.testing.assert_array_equal(open_volume(film(tmp_path / "a.dcm", grey, "YBR_FULL")).array, 77)


def test_a_palette_becomes_rgb(shared_data: Path) -> None:
    path = shared_data / "dicom" / "us" / "gdcm-US-ALOKA-16.dcm"
    dataset = pydicom.dcmread(path)
    expected = apply_color_lut(dataset.pixel_array, dataset)
    np.testing.assert_array_equal(open_volume(path).array[0], expected >> 8)


def test_every_real_file_opens_or_says_why_not(shared_data: Path) -> None:
    """Over the whole data pack; what cannot be opened is no scan, or named as one of a few kinds."""
    opened, refused = 0, {}
    paths = [*(shared_data / "dicom").rglob("*.dcm"), *(shared_data / "volumes").rglob("*.n*")]
    paths += [*(shared_data / "dicom").rglob("*.nrrd")]
    for path in paths:
        if path.suffix not in (".dcm", ".gz", ".nrrd"):
            continue
        try:
            volume = open_volume(path)
        except InputError as error:
            refused[path.name] = error.code
            continue
        opened += 1
        assert np.isfinite(volume.array).all()
        assert volume.array.shape[:3] == (len(volume.slice_frames), *volume.slice_frames[0].shape[1:])
    assert opened > 90
    assert set(refused.values()) <= {"not_an_image", "unsupported_object"}, refused
