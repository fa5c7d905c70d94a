"""Compressed images that need another process, and every odd file that pydicom's own tests carry."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_frames

from medsight_core.errors import InputError
from medsight_core.imaging.dicom_header import read_header
from medsight_core.imaging.outside import OutsideDecoder
from medsight_core.imaging.volume import open_volume

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture
def lossless(shared_data: Path) -> Path:
    """A radiologist's commonest codec: JPEG lossless, first-order prediction."""
    return shared_data / "dicom" / "us" / "JPGLosslessP14SV1_1s_1f_8b.dcm"


def _frame(path: Path) -> bytes:
    return next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))


def test_jpeg_lossless_is_exact(lossless: Path) -> None:
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(lossless)))
    np.testing.assert_array_equal(open_volume(lossless).array, expected)


def test_monochrome1_is_not_inverted_on_the_way(lossless: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(lossless)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(open_volume(tmp_path / "a.dcm").array, open_volume(lossless).array)


@pytest.mark.parametrize("damage", ["cut", "header", "rubbish"])
def test_damage_ends_the_decoder_and_not_this_program(lossless: Path, tmp_path: Path, damage: str) -> None:
    frame = bytearray(_frame(lossless))
    if damage == "cut":
        frame = frame[: len(frame) // 2]
    elif damage == "header":
        frame[2:60] = bytes(58)
    else:
        frame = bytearray(b"\xff\xd8" + np.random.default_rng(0).bytes(5000) + b"\xff\xd9")
    dataset = pydicom.dcmread(lossless)
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path / "a.dcm")
    assert caught.value.code == "pixels_unreadable"


def test_the_decoder_is_started_anew_after_it_ended(lossless: Path) -> None:
    layout, frame = read_header(lossless).layout, _frame(lossless)
    with OutsideDecoder() as outside:
        first = outside.decode(layout, frame)
        process = outside._process
        assert process is not None
        process.kill()
        process.wait()
        np.testing.assert_array_equal(outside.decode(layout, frame), first)
        second = outside._process
        assert second is not None and second.pid != process.pid
    assert second.poll() is not None  # nothing is left running


def test_many_frames_share_one_process(lossless: Path) -> None:
    layout, frame = read_header(lossless).layout, _frame(lossless)
    with OutsideDecoder() as outside:
        pictures = [outside.decode(layout, frame) for _ in range(5)]
        pid = outside._process.pid if outside._process else 0
        outside.decode(layout, frame)
        assert outside._process is not None and outside._process.pid == pid
    assert all((picture == pictures[0]).all() for picture in pictures)


@pytest.mark.skipif(not TEST_FILES.is_dir(), reason="pydicom was installed without its test files")
def test_pydicoms_own_test_files(tmp_path: Path) -> None:
    """Values as pydicom decodes them, or a named error, over odd encodings, damage and objects that are no scans."""
    opened = compared = 0
    for path in sorted(TEST_FILES.glob("*.dcm")):
        copy = Path(shutil.copy(path, tmp_path))
        try:
            volume = open_volume(copy)
        except InputError as error:
            assert error.remedy and copy.name in str(error)
            continue
        opened += 1
        dataset = pydicom.dcmread(path)
        if volume.is_colour or "RescaleSlope" in dataset:
            continue
        try:
            expected = dataset.pixel_array
        except RuntimeError:  # pydicom alone has no decoder for it
            continue
        np.testing.assert_array_equal(volume.array.reshape(expected.shape), expected)
        compared += 1
    assert opened >= 40
    assert compared >= 12
