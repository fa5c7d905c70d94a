"""Measurements of regions as a DICOM structured report: TID 1500, a draft that nobody has verified.

Each region is one measurement group that points at its segment of the DICOM Segmentation written with it, by number and
by the same tracking UID (DICOM PS3.16, TID 1500, 1410, 1411). The encoding is highdicom's.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medsight_core import __version__
from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.dicom_seg import SERIES_DESCRIPTION, SERIES_NUMBER_OFFSET
from medsight_core.imaging.dicom_stand_ins import check_source, source_header
from medsight_core.imaging.segments import Segment, plain_text, segments_of, used_slices, written_whole
from medsight_core.imaging.volume import Volume
from medsight_core.measure import Measurements
from medsight_core.regions import VolumeRegion
from medsight_core.terminology import ANATOMICAL_STRUCTURE

_PROCEDURES: Final = MappingProxyType(
    {
        "CT": codes.cid100.CTUnspecifiedBodyRegion,
        "MR": codes.cid100.MRIUnspecifiedBodyRegion,
        "X-ray": codes.cid100.XRUnspecifiedBodyRegion,
    }
)
_PIXELS: Final = Code("{pixels}", "UCUM", "pixels")
# What the values of a scan mean, and their unit; of other modalities nothing is said.
_VALUES: Final = MappingProxyType(
    {
        "CT": (codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit),
        "MR": (codes.cid7469.MRSignalIntensity, codes.UCUM.NoUnits),
    }
)
_LONGEST_TEXT: Final = 1024


def write_dicom_sr(
    regions: Sequence[VolumeRegion],
    measurements: Sequence[Measurements],
    volume: Volume,
    segmentation: Path | str,
    path: Path | str,
    *,
    model_name: str,
    model_digest: str,
    comment: str = "",
) -> Path | None:
    """Writes what was measured of ``regions`` as a Comprehensive 3D SR: unverified, partial, preliminary.

    Args:
        regions: None of them empty.
        measurements: One per region.
        volume: The scan they were found on, read from DICOM and not resampled.
        segmentation: The DICOM Segmentation of the same regions in the same order, by `write_dicom_seg`.
        path: Where the file goes; it appears whole or not at all.
        model_name: Name of the model, the observer of this report.
        model_digest: Digest of its weights, as the version of the algorithm.
        comment: Free text at the end of the report.

    Returns:
        The path, or None where there is no region: TID 1500 has nothing to hold then, and nothing is written.

    Raises:
        InputError: not_dicom, resampled, unreadable_source: a source that a report cannot refer to; other_segmentation:
            the segmentation shows other regions; bad_mask, other_grid: regions of another scan.
        MedSightError: dicom_sr_failed: the encoder refused for another reason; not_written: the disk did.
    """
    path = Path(path)
    segments = segments_of(regions, volume)
    if not regions:
        return None
    check_source(volume)
    stored = hd.seg.segread(segmentation)
    descriptions = [stored.get_segment_description(number) for number in stored.segment_numbers]
    if [str(one.SegmentLabel) for one in descriptions] != [plain_text(one.label) for one in segments] or not (
        len(regions) == len(segments) == len(measurements)
    ):
        raise InputError(
            "other_segmentation",
            f"The segmentation has {len(descriptions)} segments and does not show these {len(regions)} regions.",
            "Write the segmentation of the same regions first.",
        )
    sources = _sources(volume, used_slices(segments))
    algorithm = hd.sr.AlgorithmIdentification(
        name=plain_text(model_name) or "MedSIGHT",
        version=plain_text(model_digest) or "unknown",
        family=codes.DCM.ArtificialIntelligence,
        manufacturer="MedSIGHT",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values of the source that we copy as they are
            groups = [
                _group(number, segment, region, measured, stored, volume.modality, algorithm)
                for number, (segment, region, measured) in enumerate(
                    zip(segments, regions, measurements, strict=True), start=1
                )
            ]
            content = hd.sr.MeasurementReport(
                observation_context=hd.sr.ObservationContext(
                    observer_device_context=_observer(model_name, model_digest)
                ),
                procedure_reported=_PROCEDURES.get(volume.modality, codes.cid100.ImagingProcedure),
                imaging_measurements=groups,
            )
            if comment:
                content[0].ContentSequence.append(
                    hd.sr.TextContentItem(
                        name=codes.DCM.Comment,
                        value=plain_text(comment, _LONGEST_TEXT),
                        relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
                    )
                )
            report = hd.sr.Comprehensive3DSR(
                evidence=[*sources, stored],
                content=content,
                series_instance_uid=generate_uid(prefix=None),
                series_number=int(stored.SeriesNumber) + SERIES_NUMBER_OFFSET // 9,
                sop_instance_uid=generate_uid(prefix=None),
                instance_number=1,
                manufacturer="MedSIGHT",
                manufacturer_model_name=plain_text(model_name) or "MedSIGHT",
                software_versions=__version__,
                series_description=SERIES_DESCRIPTION,
                is_complete=False,
                is_final=False,
                is_verified=False,
                transfer_syntax_uid=ExplicitVRLittleEndian,
                specific_character_set="ISO_IR 192",
            )
            with written_whole(path) as temporary:
                report.save_as(temporary)
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise MedSightError(
            "dicom_sr_failed",
            f"The DICOM structured report could not be encoded: {error}.",
            "The report is also there as JSON and as a page.",
        ) from error
    return path


def _sources(volume: Volume, slices: Sequence[int]) -> list[Dataset]:
    """Headers of the images that the slices were read from, each once."""
    paths = volume.source.paths
    own = len(paths) == volume.n_slices
    return [source_header(path) for path in dict.fromkeys(paths[k] if own else paths[0] for k in slices)]


def _observer(model_name: str, model_digest: str) -> hd.sr.ObserverContext:
    name = plain_text(model_name) or "MedSIGHT"
    # The same weights are the same device wherever they run.
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"MedSIGHT {name} {model_digest}").int
    return hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=f"2.25.{identity}",
            name=name,
            manufacturer_name="MedSIGHT",
            model_name=f"{name}, MedSIGHT {__version__}",
            serial_number=plain_text(model_digest) or "unknown",
        ),
    )


def _group(
    number: int,
    segment: Segment,
    region: VolumeRegion,
    measured: Measurements,
    stored: hd.seg.Segmentation,
    modality: str,
    algorithm: hd.sr.AlgorithmIdentification,
) -> Any:
    """The measurement group of one region: planar on a scan of one slice, else volumetric."""
    description = stored.get_segment_description(number)
    term = segment.term
    place = term.region or (term.type if term.category == ANATOMICAL_STRUCTURE else None)
    shared: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(
            uid=str(description.TrackingUID), identifier=str(description.TrackingID)
        ),
        "finding_category": term.category,
        "finding_type": term.type,
        "finding_sites": None if place is None else [hd.sr.FindingSite(place, laterality=term.laterality)],
        "algorithm_id": algorithm,
        "measurements": list(_measurements(region, measured, modality)),
    }
    frames = _frames(stored, number)
    if region.mask.shape[0] > 1:
        return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=stored.SOPClassUID,
                sop_instance_uid=stored.SOPInstanceUID,
                segment_number=number,
                source_images=list(_source_images(frames.values())),
            ),
            **shared,
        )
    ((frame_number, group),) = frames.items()
    (source,) = _source_images([group])
    planar = hd.sr.ReferencedSegmentationFrame(
        sop_class_uid=stored.SOPClassUID,
        sop_instance_uid=stored.SOPInstanceUID,
        frame_number=frame_number,
        segment_number=number,
        source_image=source,
    )
    # The frame says which segment it shows; DICOM allows only one of both numbers (PS3.3 table 10-3).
    del planar[0].ReferencedSOPSequence[0].ReferencedSegmentNumber
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=planar, **shared)


def _frames(stored: hd.seg.Segmentation, number: int) -> dict[int, Dataset]:
    """Functional groups of the frames of a segment, by frame number from 1."""
    shared = stored.SharedFunctionalGroupsSequence[0]
    found = {}
    for frame_number, group in enumerate(stored.PerFrameFunctionalGroupsSequence, start=1):
        owner = group if "SegmentIdentificationSequence" in group else shared
        if int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber) == number:
            found[frame_number] = group
    return found


def _source_images(groups: Iterable[Dataset]) -> Iterator[hd.sr.SourceImageForSegmentation]:
    """The images that frames of a segmentation were found on, each once, with the frames of those that have many.

    highdicom's own `from_segmentation` names only the first frame of an image, or a frame of the segmentation instead.
    """
    classes: dict[str, str] = {}
    numbers: dict[str, list[int]] = {}
    for group in groups:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        uid = str(source.ReferencedSOPInstanceUID)
        classes[uid] = str(source.ReferencedSOPClassUID)
        if "ReferencedFrameNumber" in source:
            numbers.setdefault(uid, []).append(int(source.ReferencedFrameNumber))
    for uid, sop_class in classes.items():
        yield hd.sr.SourceImageForSegmentation(sop_class, uid, sorted(numbers[uid]) if uid in numbers else None)


def _measurements(region: VolumeRegion, measured: Measurements, modality: str) -> Iterator[hd.sr.Measurement]:
    if measured.volume_mm3 is not None and region.mask.shape[0] > 1:  # an image by itself has no depth
        yield hd.sr.Measurement(codes.SCT.Volume, measured.volume_mm3, codes.UCUM.CubicMillimeter)
    unit = codes.UCUM.Millimeter if measured.physical else _PIXELS
    yield hd.sr.Measurement(codes.SCT.LongAxis, measured.diameter.length_mm, unit)
    yield hd.sr.Measurement(codes.SCT.ShortAxis, measured.perpendicular.length_mm, unit)
    if modality in _VALUES:
        name, unit = _VALUES[modality]
        derived = (
            (codes.SCT.Mean, measured.mean),
            (codes.SCT.StandardDeviation, measured.sd),
            (codes.SCT.Minimum, measured.minimum),
            (codes.SCT.Maximum, measured.maximum),
        )
        for derivation, value in derived:
            if value is not None and np.isfinite(value):
                yield hd.sr.Measurement(name, value, unit, derivation=derivation)
    yield hd.sr.Measurement(codes.DCM.CertaintyOfFinding, 100.0 * region.score, codes.UCUM.Percent)
