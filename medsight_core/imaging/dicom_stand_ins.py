"""What a DICOM result refers to: headers that stand in for the slices of a scan, and the references put in afterwards.

highdicom wants all frames of a multi-frame object at once, drops masks of frames that share a place, and has no way
for one frame of an ultrasound loop or for a CT without a frame of reference. With one plain single-frame header per
slice all sources are alike. The class and UID of such a stand-in are invented; `refer_to_sources` replaces them.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage, generate_uid
from pydicom.valuerep import DA, TM, DSfloat

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Volume

ORIENTATION_TOLERANCE: Final = 1e-4
"""Direction cosines of one series that differ by less are the same: scanners round each slice by itself."""

SAME_PLACE_MM: Final = 1e-3
"""Slices that are closer than this along their normal cannot be told apart by a viewer."""

_OTHER_FORMAT: Final = "Save this answer as .seg.nrrd instead."
_TYPE_2: Final = (
    "PatientName PatientID PatientBirthDate PatientSex StudyID AccessionNumber StudyDate StudyTime "
    "ReferringPhysicianName"
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What one frame of the segmentation was made from."""

    sop_class: str
    sop_instance: str
    frame_number: int | None


def check_source(volume: Volume) -> None:
    source = volume.source
    if source.kind != "dicom":
        raise InputError(
            "not_dicom", f"The scan was read from {source.kind}, so no DICOM image can be referred to.", _OTHER_FORMAT
        )
    files = len(source.frame_numbers) or len(source.paths)
    if files != volume.n_slices:
        raise InputError(
            "resampled",
            f"The scan has {volume.n_slices} slices but its series has {files}: it was resampled.",
            "Ask again on the original slices, or save this answer as .seg.nrrd.",
        )


def stand_ins(volume: Volume, slices: Sequence[int]) -> tuple[list[Dataset], dict[str, Origin]]:
    """One plain single-frame header per slice, and what each of them, by its UID, stands for.

    Raises:
        InputError: unreadable_source, resampled.
    """
    paths, numbers = volume.source.paths, volume.source.frame_numbers
    found: list[Dataset] = []
    origins: dict[str, Origin] = {}
    headers: dict[Path, Dataset] = {}
    for k in slices:
        path = paths[k] if len(paths) == volume.n_slices else paths[0]
        if path not in headers:
            headers[path] = source_header(path)
        header = headers[path]
        number = numbers[k] if numbers else None
        stand_in = _stand_in(header, number, volume, k)
        many = number is not None and int(header.get("NumberOfFrames") or 1) > 1
        origins[stand_in.SOPInstanceUID] = Origin(
            sop_class=str(header.SOPClassUID),
            sop_instance=str(header.SOPInstanceUID),
            frame_number=number if many else None,
        )
        found.append(stand_in)
    return found, origins


def source_header(path: Path) -> Dataset:
    """A file's header with what an anonymiser may have taken out put back empty, and no value that cannot be copied.

    Raises:
        InputError: unreadable_source.
    """
    try:
        header = dcmread(path, stop_before_pixels=True)
        # Some anonymisers empty these; the file meta information still has them.
        for keyword in ("SOPClassUID", "SOPInstanceUID"):
            if not header.get(keyword):
                setattr(header, keyword, header.file_meta[f"MediaStorage{keyword}"].value)
    except Exception as error:
        raise InputError(
            "unreadable_source",
            f"{path.name} could be read before, but now cannot be referred to ({error}).",
            "Put the original files back.",
        ) from error
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not header.get(keyword):
            setattr(header, keyword, _invented_uid(keyword, header))
    if header.get("PatientIdentityRemoved") == "YES" and not header.get("DeidentificationMethodCodeSequence"):
        header.DeidentificationMethod = header.get("DeidentificationMethod") or "Not stated in the source images"
    for keyword in _TYPE_2.split():
        if not _is_valid(header, keyword):
            setattr(header, keyword, "")
    return header


def _invented_uid(keyword: str, header: Dataset) -> str:
    """The same for all results on the same source, so that they come together in one study."""
    known = header.get("FrameOfReferenceUID") or header.SOPInstanceUID
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{keyword} {known}').int}"


def _is_valid(header: Dataset, keyword: str) -> bool:
    try:
        value = header.get(keyword)
        if value is None:
            return False
        if keyword == "PatientSex":
            return str(value) in ("M", "F", "O", "")
        if "Date" in keyword:
            DA(str(value))
        if "Time" in keyword:
            TM(str(value))
    except Exception:  # bytes that are no text, dates that are none: what is not valid is not copied
        return False
    return True


def _stand_in(header: Dataset, number: int | None, volume: Volume, k: int) -> Dataset:
    stand_in = Dataset()
    # Elements of its own: those of a copied data set are shared, and to set one would change the header.
    stand_in.update({element.tag: copy.copy(element) for element in _readable(header)})
    groups = list(_groups(header, number))
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames"):
        if keyword in stand_in:
            delattr(stand_in, keyword)
    position, orientation, spacing, thickness = (
        next((group[keyword].value for group in groups if group.get(keyword)), None)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    )
    true = volume.slice_frame(k)
    placed = bool(position and orientation and header.get("FrameOfReferenceUID"))
    stand_in.SOPInstanceUID = generate_uid(prefix=None)
    stand_in.SOPClassUID = CTImageStorage if placed else SecondaryCaptureImageStorage
    if not placed:
        # Without a thickness highdicom writes a pixel spacing that it then refuses to read.
        without = ["FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient"]
        for keyword in without if thickness else [*without, "PixelSpacing"]:
            if keyword in stand_in:
                delattr(stand_in, keyword)
        return stand_in
    stand_in.ImagePositionPatient, stand_in.ImageOrientationPatient = position, orientation
    stand_in.PixelSpacing = spacing or [DSfloat(mm, auto_format=True) for mm in true.spacing[1:]]
    stand_in.SliceThickness = thickness or DSfloat(true.spacing[0], auto_format=True)
    here = plane_frame(true.shape[1:], position, orientation, (true.spacing[0], *map(float, stand_in.PixelSpacing)))
    if not here.is_close(true):
        raise InputError(
            "resampled",
            f"Slice {k} does not lie where its file says: the scan was resampled or the file has changed.",
            "Ask again on the original slices, or save this answer as .seg.nrrd.",
        )
    return stand_in


def _readable(header: Dataset) -> Iterator[DataElement]:
    for tag in list(header.keys()):
        try:
            yield header[tag]
        except Exception:  # a value that does not fit its type is not copied
            continue


def _groups(header: Dataset, number: int | None) -> Iterator[Dataset]:
    """Where an attribute of a frame may stand, the most specific place first (PS3.3 C.7.6.16)."""
    owners: list[Dataset] = []
    each, shared = (header.get(f"{name}FunctionalGroupsSequence") or [] for name in ("PerFrame", "Shared"))
    if number is not None and number <= len(each):
        owners.append(each[number - 1])
    owners.extend(shared)
    for owner in owners:
        for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            yield from owner.get(keyword) or []
    yield header


def check_together(headers: Sequence[Dataset], slices: Sequence[int]) -> None:
    """Whether one segmentation can hold masks of all these slices; rounding between them is evened out."""
    first = headers[0]
    if len(headers) == 1:
        return
    if not all("FrameOfReferenceUID" in header for header in headers):
        raise InputError(
            "no_geometry",
            f"The regions lie on {len(slices)} images that have no common place in the patient; a DICOM Segmentation "
            "without such a place refers to one image.",
            "Save the regions of one image at a time, or save this answer as .seg.nrrd.",
        )
    orientation = np.array(first.ImageOrientationPatient, dtype=float)
    for k, header in zip(slices, headers, strict=True):
        turned = np.abs(np.array(header.ImageOrientationPatient, dtype=float) - orientation).max()
        if turned > ORIENTATION_TOLERANCE or header.FrameOfReferenceUID != first.FrameOfReferenceUID:
            raise InputError(
                "mixed_orientation",
                f"Slices {slices[0]} and {k} do not lie parallel in one frame of reference; one DICOM Segmentation "
                "holds parallel slices.",
                "Save the regions of parallel slices at a time.",
            )
        header.ImageOrientationPatient = first.ImageOrientationPatient
        if not np.allclose(np.array(header.PixelSpacing, float), np.array(first.PixelSpacing, float), rtol=1e-5):
            raise InputError(
                "mixed_spacing",
                f"Slices {slices[0]} and {k} have different pixel sizes; one DICOM Segmentation has one.",
                "Save the regions of slices of the same pixel size at a time.",
            )
    normal = np.cross(orientation[:3], orientation[3:])
    depths = np.array([np.array(header.ImagePositionPatient, float) @ normal for header in headers])
    order = np.argsort(depths, kind="stable")
    for a, b in pairwise(order):
        if depths[b] - depths[a] < SAME_PLACE_MM:
            raise InputError(
                "same_place",
                f"Slices {slices[a]} and {slices[b]} lie at the same place in the patient, such as two moments of a "
                "series in time; a DICOM Segmentation cannot tell them apart.",
                "Save the regions of one moment at a time.",
            )


def refer_to_sources(segmentation: Dataset, origins: Mapping[str, Origin]) -> None:
    """Puts references to the true images and frames where highdicom wrote those to the stand-ins."""
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence") or []:
            for reference in derivation.SourceImageSequence:
                if reference.ReferencedSOPInstanceUID in origins:  # highdicom shares items between segments
                    _set_origin(reference, origins[reference.ReferencedSOPInstanceUID])
    images: dict[str, Dataset] = {}
    frames: dict[str, list[int]] = {}
    for origin in origins.values():
        reference = images.setdefault(origin.sop_instance, Dataset())
        _set_origin(reference, origin)
        if origin.frame_number is not None:
            frames.setdefault(origin.sop_instance, []).append(origin.frame_number)
            reference.ReferencedFrameNumber = sorted(frames[origin.sop_instance])
    segmentation.SourceImageSequence = list(images.values())
    instances = copy.deepcopy(list(images.values()))
    for instance in instances:
        if "ReferencedFrameNumber" in instance:
            del instance.ReferencedFrameNumber
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = instances


def _set_origin(reference: Dataset, origin: Origin) -> None:
    reference.ReferencedSOPClassUID = origin.sop_class
    reference.ReferencedSOPInstanceUID = origin.sop_instance
    if origin.frame_number is not None:
        reference.ReferencedFrameNumber = origin.frame_number


def plane_frame(shape: Sequence[int], position: Any, orientation: Any, spacing: Sequence[float]) -> Frame:
    along_row, down_column = np.array(orientation, dtype=float).reshape(2, 3)
    direction = np.stack([np.cross(along_row, down_column), down_column, along_row], axis=1)
    direction /= np.linalg.norm(direction, axis=0)
    return Frame(
        shape=(1, shape[0], shape[1]), origin=np.array(position, float), spacing=np.array(spacing), direction=direction
    )
