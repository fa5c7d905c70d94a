"""Structured reports: valid, tied to the segmentation, with the numbers SimpleITK measures, and plainly a draft."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.sr.codedict import codes

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.dicom_seg import write_dicom_seg
from medsight_core.imaging.dicom_sr import write_dicom_sr
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.measure import Measurements, measure
from medsight_core.regions import Span, VolumeRegion
from tests.imaging.synthetic import write_series

MODEL = {"model_name": "medsight-mini", "model_digest": "sha256:" + 57 * "a"}


def region(volume: Volume, where: Any, label: str, code: str = "[C0_1]") -> VolumeRegion:
    assert volume.frame is not None
    mask = np.zeros(volume.array.shape[:3], bool)
    mask[where] = np.random.default_rng(3).random(mask[where].shape) < 0.8
    return VolumeRegion(code=code, label=label, span=Span(0, 0), score=0.75, mask=mask, frame=volume.frame)


def three(volume: Volume) -> list[VolumeRegion]:
    """An organ on many slices, a lesion on one of them, and another lesion of the same name that overlaps it."""
    last = volume.n_slices - 1
    return [
        region(volume, np.s_[: last + 1, 2:20, 3:19], "liver"),
        region(volume, np.s_[last : last + 1, 5:9, 5:9], "lesion in the left kidney", "[C0_2]"),
        region(volume, np.s_[last // 2 :, 4:14, 4:15], "lesion in the left kidney", "[C0_2]"),
    ]


def measured(regions: list[VolumeRegion], volume: Volume) -> list[Measurements]:
    values = None if volume.is_colour else volume.array
    return [measure(one.mask, one.frame, values=values) for one in regions]


def write(volume: Volume, regions: list[VolumeRegion], folder: Path, comment: str = "") -> Path:
    segmentation, report = folder / "segmentation.dcm", folder / "report.dcm"
    assert write_dicom_seg(regions, volume, segmentation, **MODEL) == segmentation
    made = write_dicom_sr(regions, measured(regions, volume), volume, segmentation, report, comment=comment, **MODEL)
    assert made == report
    return report


def assert_valid(path: Path) -> None:
    """dciodvfy, of David Clunie's dicom3tools, has nothing to call an error."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, errors="replace")
    lines = (done.stdout + done.stderr).splitlines()
    assert "Comprehensive3DSR" in lines, lines
    assert [line for line in lines if line.startswith("Error")] == []


def numbers(group: Any) -> dict[tuple[str, str], tuple[float, str]]:
    """Name and derivation of each measurement of a group -> value and UCUM unit."""
    found = {}
    for one in group.get_measurements():
        derivation = "" if one.derivation is None else one.derivation.meaning
        found[one.name.meaning, derivation] = (one.value, one.unit.value)
    return found


def itk(array: np.ndarray, frame: Frame) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(frame.spacing[::-1].tolist())
    return image


@pytest.mark.parametrize(
    "name",
    [
        "dicom/ct_abdomen_totalseg",
        "dicom/seg_ct3slice_liver/ct",
        "dicom/mr_brain_PGBM-003_FLAIR",
        "dicom/ct_compressed/eCT_Supplemental.dcm",
    ],
)
def test_real_scans_give_valid_reports_with_the_numbers_of_simpleitk(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    volume = open_volume(shared_data / name)
    regions = three(volume)
    path = write(volume, regions, tmp_path)
    assert_valid(path)
    groups = hd.sr.srread(path).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 3
    for group, one in zip(groups, regions, strict=True):
        found = numbers(group)
        shape, values = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelIntensityStatisticsImageFilter()
        label = itk(one.mask.astype(np.uint8), one.frame)
        shape.Execute(label)
        values.Execute(label, itk(volume.array.astype(np.float64), one.frame))
        assert found["Volume", ""] == (pytest.approx(shape.GetPhysicalSize(1), rel=1e-6), "mm3")
        kind, unit = (
            ("Attenuation Coefficient", "[hnsf'U]") if volume.modality == "CT" else ("MR signal intensity", "1")
        )
        assert found[kind, "Mean"] == (pytest.approx(values.GetMean(1), rel=1e-6), unit)
        assert found[kind, "Standard Deviation"] == (pytest.approx(values.GetStandardDeviation(1), rel=1e-6), unit)
        assert found[kind, "Minimum"] == (values.GetMinimum(1), unit)
        assert found[kind, "Maximum"] == (values.GetMaximum(1), unit)
        (own,) = measured([one], volume)
        assert found["Long axis", ""] == (pytest.approx(own.diameter.length_mm, rel=1e-12), "mm")
        assert found["Short axis", ""] == (pytest.approx(own.perpendicular.length_mm, rel=1e-12), "mm")
        assert found["Certainty of Finding", ""] == (75.0, "%")


def test_each_group_points_at_its_segment_and_at_the_images_it_was_found_on(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    regions = three(volume)
    path = write(volume, regions, tmp_path)
    segmentation = hd.seg.segread(tmp_path / "segmentation.dcm")
    report = hd.sr.srread(path)
    uids = [str(pydicom.dcmread(one).SOPInstanceUID) for one in volume.source.paths]
    for number, (group, one) in enumerate(
        zip(report.content.get_volumetric_roi_measurement_groups(), regions, strict=True), start=1
    ):
        description = segmentation.get_segment_description(number)
        assert (group.tracking_uid, group.tracking_identifier) == (description.tracking_uid, description.tracking_id)
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert reference.referenced_segment_numbers == [number]
        images = {str(image.referenced_sop_instance_uid) for image in reference.source_images_for_segmentation}
        assert images == {uids[k] for k in np.flatnonzero(one.mask.any(axis=(1, 2)))}
        np.testing.assert_array_equal(
            segmentation.get_pixels_by_source_instance(
                [uids[k] for k in range(volume.n_slices)],
                segment_numbers=[number],
                assert_missing_frames_are_empty=True,
            )[..., 0].astype(bool),
            one.mask,
        )
    evidence = {
        str(item.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == {*uids, str(segmentation.SOPInstanceUID)}


def test_what_it_says_of_itself_is_that_it_is_a_draft_of_a_model(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    report = hd.sr.srread(write(volume, three(volume), tmp_path, comment="Draft, not verified.\nNo lesion."))
    assert (report.VerificationFlag, report.CompletionFlag, report.PreliminaryFlag) == (
        "UNVERIFIED", "PARTIAL", "PRELIMINARY",
    )  # fmt: skip
    assert "VerifyingObserverSequence" not in report
    assert report.SeriesDescription == "MedSIGHT AI - not for diagnosis"
    (context,) = report.content.get_observer_contexts()
    observer = context.observer_identifying_attributes
    assert context.observer_type.meaning == "Device"
    assert (observer.name, observer.serial_number) == (MODEL["model_name"], MODEL["model_digest"])
    comments = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    assert "Draft, not verified. No lesion." in comments
    for group in report.content.get_volumetric_roi_measurement_groups():
        words = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in group[0].ContentSequence}
        assert words["Algorithm Name"].TextValue == MODEL["model_name"]
        assert words["Algorithm Version"].TextValue == MODEL["model_digest"]


def test_findings_have_the_codes_of_their_terms(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    report = hd.sr.srread(write(volume, three(volume), tmp_path))
    liver, lesion, _ = report.content.get_volumetric_roi_measurement_groups()
    assert (liver.finding_type.value, liver.finding_category.meaning) == ("10200004", "Anatomical Structure")
    assert [site.value.value for site in liver.finding_sites] == ["10200004"]
    assert lesion.finding_type.meaning == "Lesion"
    assert lesion.finding_category.meaning == "Morphologically Abnormal Structure"
    (site,) = lesion.finding_sites
    assert (site.value.meaning, site.laterality.meaning) == ("Kidney", "Left")


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm"])
def test_an_image_by_itself_is_planar_and_has_no_volume(name: str, tmp_path: Path) -> None:
    volume = open_volume(Path(str(get_testdata_file(name, download=False))))
    path = write(volume, [region(volume, np.s_[:, 2:20, 3:19], "liver")], tmp_path)
    assert_valid(path)
    report = hd.sr.srread(path)
    assert report.content.get_volumetric_roi_measurement_groups() == []
    (group,) = report.content.get_planar_roi_measurement_groups()
    found = numbers(group)
    assert ("Volume", "") not in found
    assert found["Long axis", ""][1] == ("mm" if volume.slice_frame(0).physical else "{pixels}")
    assert group.referenced_segmentation_frame.referenced_frame_numbers == [1]


def test_an_anonymised_source_is_enough_and_nothing_is_made_up(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", anonymised=True, changes={"SliceThickness": None})
    volume = open_volume(series.folder)
    path = write(volume, three(volume), tmp_path)
    assert_valid(path)
    read = pydicom.dcmread(path)
    assert (read.PatientName, read.PatientID, read.StudyDate) == ("", "", "")
    assert read.StudyInstanceUID == pydicom.dcmread(series.paths[0]).StudyInstanceUID


def test_no_region_no_report(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    assert write_dicom_sr([], [], volume, tmp_path / "none.dcm", tmp_path / "report.dcm", **MODEL) is None
    assert not (tmp_path / "report.dcm").exists()


def test_a_segmentation_of_other_regions_is_refused(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    regions = three(volume)
    write_dicom_seg(regions[1:], volume, tmp_path / "segmentation.dcm", **MODEL)
    with pytest.raises(InputError) as caught:
        write_dicom_sr(
            regions, measured(regions, volume), volume, tmp_path / "segmentation.dcm", tmp_path / "a.dcm", **MODEL
        )
    assert caught.value.code == "other_segmentation" and caught.value.remedy
    assert not (tmp_path / "a.dcm").exists()


def test_regions_of_another_scan_are_refused(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    moved = open_volume(write_series(tmp_path / "moved", origin=(0, 0, 0)).folder)
    short = open_volume(write_series(tmp_path / "short", shape=(3, 24, 32)).folder)
    for other, code in ((moved, "other_grid"), (short, "bad_mask")):
        with pytest.raises(InputError) as caught:
            write_dicom_seg(three(other), volume, tmp_path / "segmentation.dcm", **MODEL)
        assert caught.value.code == code


def test_two_regions_of_one_name_stay_two_segments(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "in").folder)
    first = region(volume, np.s_[0:3, 2:8, 2:8], "lesion")
    second = region(volume, np.s_[2:6, 12:18, 12:18], "lesion")
    write_dicom_seg([first, second], volume, tmp_path / "segmentation.dcm", **MODEL)
    segmentation = hd.seg.segread(tmp_path / "segmentation.dcm")
    uids = [str(pydicom.dcmread(one).SOPInstanceUID) for one in volume.source.paths]
    pixels = segmentation.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    for number, one in enumerate((first, second)):
        np.testing.assert_array_equal(pixels[..., number].astype(bool), one.mask)
    assert codes.SCT.Lesion.value in str(segmentation.SegmentSequence[0])
