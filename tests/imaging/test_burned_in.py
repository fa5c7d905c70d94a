"""Text in pixels: who is warned before a scan is sent, and who is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    VideoEndoscopicImageStorage,
    VLPhotographicImageStorage,
)

from medsight_core.cli.info import describe
from medsight_core.imaging.burned_in import burned_in_risk
from medsight_core.imaging.planes import reformat
from medsight_core.imaging.volume import Volume, open_volume
from tests.imaging.synthetic import change_file, write_series


def series(folder: Path, **changes: object) -> Volume:
    return open_volume(write_series(folder, shape=(3, 12, 14), changes=changes).folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"BurnedInAnnotation": "YES"}, "Burned In Annotation: YES"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "captured screen"),
        ({"SOPClassUID": MultiFrameGrayscaleByteSecondaryCaptureImageStorage}, "captured screen"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "BurnedInAnnotation": "NO"}, "captured screen"),
        ({"Modality": "DX", "ConversionType": "DF"}, "digitised film"),
        ({"Modality": "CR", "ConversionType": "SD"}, "digitised film"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "captured screen"),
        ({"Modality": "US", "SOPClassUID": UltrasoundImageStorage}, "Ultrasound machines"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, "not reliable"),
        ({"Modality": "IVUS"}, "Ultrasound machines"),
        ({"Modality": "ES", "SOPClassUID": VideoEndoscopicImageStorage}, "endoscopic"),
        ({"Modality": "XC", "SOPClassUID": VLPhotographicImageStorage}, "Photographs"),
        ({"Modality": "OT"}, "Photographs"),
    ],
    ids=str,
)
def test_a_scan_that_may_hold_text_is_warned_about(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    volume = series(tmp_path / "s", **changes)
    risk = burned_in_risk(volume)
    assert risk is not None and said in risk
    assert risk.endswith("ask on this machine instead.")
    assert describe(volume)["burned_in"] == risk


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"BurnedInAnnotation": "NO"},
        {"BurnedInAnnotation": ""},
        {"Modality": "MR"},
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"Modality": "DX", "SOPClassUID": DigitalXRayImageStorageForPresentation, "BurnedInAnnotation": "NO"},
    ],
    ids=str,
)
def test_a_scanners_own_image_is_not(tmp_path: Path, changes: dict[str, object]) -> None:
    volume = series(tmp_path / "s", **changes)
    assert burned_in_risk(volume) is None
    assert describe(volume)["burned_in"] is None


def test_one_image_that_says_so_speaks_for_the_series(tmp_path: Path) -> None:
    written = write_series(tmp_path / "s", shape=(4, 12, 14), changes={"BurnedInAnnotation": "NO"})
    change_file(written.paths[2], BurnedInAnnotation="YES")
    volume = open_volume(written.folder)
    assert "YES" in (burned_in_risk(volume) or "")
    # Turned or resampled, its pixels are still the same.
    assert burned_in_risk(reformat(volume, "coronal").volume) == burned_in_risk(volume)


def test_one_silent_image_takes_the_no_away(tmp_path: Path) -> None:
    written = write_series(tmp_path / "s", shape=(4, 12, 14), changes={"BurnedInAnnotation": "NO", "Modality": "US"})
    assert open_volume(written.folder).source.pixel_text == "no"
    change_file(written.paths[1], BurnedInAnnotation=None)
    assert open_volume(written.folder).source.pixel_text == "not said"


def test_an_exported_picture_is_warned_about(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "a.png")
    assert "exported or photographed" in (burned_in_risk(open_volume(tmp_path / "a.png")) or "")


def test_real_scans(shared_data: Path) -> None:
    dicom = shared_data / "dicom"
    assert all(burned_in_risk(open_volume(path)) for path in sorted((dicom / "us").glob("*.dcm")))
    assert burned_in_risk(open_volume(dicom / "dx_chest" / "dx_image.dcm")) is None
    assert burned_in_risk(open_volume(dicom / "ct_abdomen_totalseg")) is None
