"""Regions of an answer as a DICOM Segmentation that refers back to the images they were found on.

The encoding is highdicom's. What this module adds is what real files need: headers without names or dates (anonymised
ones), objects of many frames, images without a place in the patient, tilted and irregular series, and a check that the
segmentation goes exactly where its regions are (DICOM PS3.3 C.8.20, A.51).
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from medsight_core import __version__
from medsight_core.errors import MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.dicom_stand_ins import check_source, check_together, plane_frame, refer_to_sources, stand_ins
from medsight_core.imaging.segments import Segment, plain_text, segments_of, used_slices, written_whole
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Region, VolumeRegion

SERIES_DESCRIPTION: Final = "MedSIGHT AI - not for diagnosis"

SERIES_NUMBER_OFFSET: Final = 9000
"""Added to the number of the source series, so that results stand behind the images in a list."""

_OTHER_FORMAT: Final = "Save this answer as .seg.nrrd instead."


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredMask:
    """One frame of a DICOM Segmentation, as `read_dicom_seg` gives it back.

    Attributes:
        segment_number, label, description: Of its segment.
        sop_instance_uid: Of the image it belongs to.
        frame_number: Of the frame of that image, from 1; None for an image of one frame.
        mask: ``(rows, columns)`` bool on the grid of that image.
        frame: Where it lies in the patient; None where the image has no place.
    """

    segment_number: int
    label: str
    description: str
    sop_instance_uid: str
    frame_number: int | None
    mask: NDArray[np.bool_]
    frame: Frame | None


def write_dicom_seg(
    regions: Sequence[Region | VolumeRegion],
    volume: Volume,
    path: Path | str,
    *,
    model_name: str,
    model_digest: str,
    series_description: str = SERIES_DESCRIPTION,
    keep_empty_frames: bool = False,
    identity: str | None = None,
) -> Path | None:
    """Writes the regions of one answer as a DICOM Segmentation: BINARY, Explicit VR Little Endian.

    Args:
        regions: They may overlap.
        volume: The scan they were found on, read from DICOM and not resampled.
        path: Where the file goes; it appears whole or not at all.
        model_name: Name of the model that found them.
        model_digest: Digest of its weights, as the version of the algorithm.
        series_description: At most 64 characters.
        keep_empty_frames: Store also the slices without a mask; some older viewers misplace the others without them.
        identity: What this object is, of all that were ever made: two with the same identity have the same UIDs, so
            that the later one takes the place of the earlier one. None for UIDs that no other object has.

    Returns:
        The path, or None where there is no finding: nothing is written then.

    Raises:
        InputError: slice_out_of_range, bad_mask, other_grid: regions that do not lie on this volume; not_dicom,
            resampled: a source that a segmentation cannot refer to; unreadable_source: its files are gone or changed;
            no_geometry, mixed_orientation, mixed_spacing, same_place: what DICOM cannot hold in one segmentation.
        MedSightError: dicom_seg_failed: the encoder refused for another reason; not_written: the disk did.
    """
    path = Path(path)
    segments = segments_of(regions, volume)
    if not segments:
        return None
    slices = list(range(volume.n_slices)) if keep_empty_frames else used_slices(segments)
    check_source(volume)
    headers, origins = stand_ins(volume, slices)
    check_together(headers, slices)
    masks = np.zeros((len(slices), *volume.array.shape[1:3], len(segments)), dtype=np.uint8)
    for number, segment in enumerate(segments):
        for k, mask in segment.masks.items():
            masks[slices.index(k), ..., number] = mask
    first = headers[0]
    uid = _uids(identity)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values of the source that we copy as they are
            segmentation = hd.seg.Segmentation(
                source_images=headers,
                pixel_array=masks,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_descriptions(segments, model_name, model_digest, uid),
                series_instance_uid=uid("series"),
                series_number=_series_number(first),
                sop_instance_uid=uid("instance"),
                instance_number=1,
                manufacturer="MedSIGHT",
                manufacturer_model_name=plain_text(model_name) or "MedSIGHT",
                software_versions=__version__,
                device_serial_number=plain_text(model_digest) or "0",
                transfer_syntax_uid=ExplicitVRLittleEndian,
                omit_empty_frames=not keep_empty_frames,
                content_label="MEDSIGHT",
                content_description=plain_text(series_description),
                content_qualification=hd.ContentQualificationValues.RESEARCH,
                series_description=plain_text(series_description),
                specific_character_set="ISO_IR 192",
            )
            refer_to_sources(segmentation, origins)
            _set_dimensions(segmentation, uid("dimensions"))
            _set_slice_spacing(segmentation, volume)
            if "PlaneOrientationSequence" not in segmentation.SharedFunctionalGroupsSequence[0]:
                # Required, though it may be empty, where there is no orientation in the patient (PS3.3 C.7.6.1).
                segmentation.PatientOrientation = first.get("PatientOrientation") or ""
            with written_whole(path) as temporary:
                segmentation.save_as(temporary)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise MedSightError(
            "dicom_seg_failed", f"The DICOM Segmentation could not be encoded: {error}.", _OTHER_FORMAT
        ) from error
    return path


def read_dicom_seg(path: Path | str) -> tuple[StoredMask, ...]:
    """Reads a segmentation back, one mask per stored frame, on the grid of the images it refers to."""
    segmentation = hd.seg.segread(path)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    pixels = np.atleast_3d(segmentation.pixel_array).reshape(-1, segmentation.Rows, segmentation.Columns)
    stored = []
    for group, mask in zip(segmentation.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        owner = group if "SegmentIdentificationSequence" in group else shared
        number = int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        description = segmentation.get_segment_description(number)
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame_number = source.get("ReferencedFrameNumber")
        stored.append(
            StoredMask(
                segment_number=number,
                label=str(description.SegmentLabel),
                description=str(description.get("SegmentDescription", "")),
                sop_instance_uid=str(source.ReferencedSOPInstanceUID),
                frame_number=None if frame_number is None else int(frame_number),
                mask=mask.astype(bool),
                frame=_stored_frame(group, shared, mask.shape),
            )
        )
    return tuple(stored)


def _stored_frame(group: Dataset, shared: Dataset, shape: tuple[int, ...]) -> Frame | None:
    if "PlanePositionSequence" not in group:
        return None
    measures = shared.PixelMeasuresSequence[0]
    thickness = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0
    return plane_frame(
        shape,
        group.PlanePositionSequence[0].ImagePositionPatient,
        shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        (float(thickness), *map(float, measures.PixelSpacing)),
    )


def _uids(identity: str | None) -> Callable[[str], str]:
    """Gives the UID of a part of the object, by the part's name (PS3.5 B.2)."""
    if identity is None:
        return lambda part: generate_uid(prefix=None)
    return lambda part: f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'MedSIGHT {part} {identity}').int}"


def _descriptions(
    segments: Sequence[Segment], model_name: str, model_digest: str, uid: Callable[[str], str]
) -> list[hd.seg.SegmentDescription]:
    algorithm = hd.AlgorithmIdentificationSequence(
        name=plain_text(model_name) or "MedSIGHT",
        family=codes.DCM.ArtificialIntelligence,
        version=plain_text(model_digest) or "unknown",
        source="MedSIGHT",
    )
    descriptions = []
    for number, segment in enumerate(segments, start=1):
        term = segment.term
        description = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.label,
            segmented_property_category=term.category,
            segmented_property_type=term.type,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=uid(f"segment {number}"),
            tracking_id=plain_text(f"{number} {segment.code} {segment.label}"),
            anatomic_regions=[term.region] if term.region else None,
            display_color=hd.color.CIELabColor.from_rgb(*segment.colour.rgb),
        )
        description.SegmentDescription = plain_text(segment.description, 1024)
        if term.type_modifiers:
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                hd.sr.CodedConcept.from_code(code) for code in term.type_modifiers
            ]
        if term.region_modifiers:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [
                hd.sr.CodedConcept.from_code(code) for code in term.region_modifiers
            ]
        descriptions.append(description)
    return descriptions


def _set_dimensions(segmentation: Dataset, uid: str) -> None:
    """The UID of the order of the frames, which highdicom makes anew each time."""
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _series_number(header: Dataset) -> int:
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return SERIES_NUMBER_OFFSET + min(max(number, 0), 10**6)


def _set_slice_spacing(segmentation: Dataset, volume: Volume) -> None:
    """The spacing of the scan's slices: highdicom knows only the slices with a mask and would take their distance."""
    measures = segmentation.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
    if not measures or "PlaneOrientationSequence" not in segmentation.SharedFunctionalGroupsSequence[0]:
        return
    if volume.frame is not None and volume.n_slices > 1:
        measures[0].SpacingBetweenSlices = DSfloat(float(volume.frame.spacing[0]), auto_format=True)
    elif "SpacingBetweenSlices" in measures[0]:
        del measures[0].SpacingBetweenSlices
