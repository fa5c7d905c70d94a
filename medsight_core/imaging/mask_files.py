"""Regions saved for other programs where the source is not DICOM: 3D Slicer's ``.seg.nrrd`` and a NIfTI label map."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from numpy.typing import NDArray

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.segments import (
    Segment,
    segments_of,
    slicer_terminology,
    used_slices,
    written_whole,
)
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Region, VolumeRegion

LABELS_PER_LAYER: Final = 255
"""Values of an unsigned 8-bit label map besides the background."""

Layers = list[NDArray[np.uint8]]


def write_seg_nrrd(regions: Sequence[Region | VolumeRegion], volume: Volume, path: Path | str) -> Path | None:
    """Writes the regions as a segmentation that 3D Slicer opens by itself: names, colours, terminology, place.

    Segments that overlap go to different layers, so none hides another.

    Args:
        regions: Of one answer.
        volume: The scan they were found on. Of slices that are no regular grid, a single one can be written.
        path: A name that ends in ``.seg.nrrd``.

    Returns:
        The path, or None where there is no finding: nothing is written then.

    Raises:
        InputError: bad_name, slice_out_of_range, bad_mask, other_grid.
        MedSightError: Why the volume has no regular grid; not_written.
    """
    path = _named(path, (".seg.nrrd",))
    segments = segments_of(regions, volume)
    if not segments:
        return None
    frame, first = _grid(segments, volume)
    layers, places = _layers(segments, frame, first)
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        # Older Slicers read the first name, newer ones the second.
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, (segment, (layer, value)) in enumerate(zip(segments, places, strict=True)):
        for key, text in _slicer_fields(segment, layer, value, first).items():
            fields[f"Segment{number}_{key}"] = text
        fields[f"Segment{number}_ID"] = f"Segment_{number + 1}"
    with written_whole(path) as temporary:
        temporary.write_bytes(_nrrd(layers, frame, fields))
    return path


def write_nifti_labels(regions: Sequence[Region | VolumeRegion], volume: Volume, path: Path | str) -> Path | None:
    """Writes the regions as one NIfTI label map, with the meaning of its numbers in a JSON file beside it.

    A label map holds one number per voxel: where segments overlap, the smaller one is kept, so that a lesion stays
    visible within its organ. The JSON file names its labels as nnU-Net's ``dataset.json`` does.

    Args:
        regions: Of one answer.
        volume: The scan they were found on.
        path: A name that ends in ``.nii.gz`` or ``.nii``; the JSON file has the same name with ``.json``.

    Returns:
        The path of the label map, or None where there is no finding: nothing is written then.

    Raises:
        InputError: bad_name, slice_out_of_range, bad_mask, other_grid.
        MedSightError: Why the volume has no regular grid; not_written.
    """
    path = _named(path, (".nii.gz", ".nii"))
    segments = segments_of(regions, volume)
    if not segments:
        return None
    frame, first = _grid(segments, volume)
    labels = np.zeros(frame.shape, dtype=np.uint16)
    sizes = [sum(int(mask.sum()) for mask in segment.masks.values()) for segment in segments]
    for index in np.argsort([-size for size in sizes], kind="stable"):
        for k, mask in segments[index].masks.items():
            labels[k - first][mask] = index + 1
    meaning = {
        "labels": {"background": 0} | _unique_names(segments),
        "segments": [_in_words(number, segment) for number, segment in enumerate(segments, start=1)],
    }
    beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    with written_whole(beside) as temporary_beside, written_whole(path) as temporary:
        # By nibabel: on a full disk ITK cuts a NIfTI file off and says nothing.
        ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ frame.affine[:, [2, 1, 0, 3]]
        image = nibabel.Nifti1Image(labels.T, ras)
        image.header.set_xyzt_units("mm")
        image.set_qform(ras, code="scanner")
        image.set_sform(ras, code="scanner")
        nibabel.save(image, temporary)
        temporary_beside.write_text(json.dumps(meaning, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _named(path: Path | str, endings: tuple[str, ...]) -> Path:
    path = Path(path)
    if not path.name.lower().endswith(endings):
        raise InputError("bad_name", f"{path.name!r} does not end in {' or '.join(endings)}.", "Give it that ending.")
    return path


def _grid(segments: Sequence[Segment], volume: Volume) -> tuple[Frame, int]:
    """The grid to write on, and the slice of the volume that is its first."""
    used = used_slices(segments)
    if volume.frame is None and len(used) == 1:
        return volume.slice_frame(used[0]), used[0]
    return volume.require_frame(), 0


def _nrrd(layers: Layers, frame: Frame, fields: Mapping[str, str]) -> bytes:
    """An NRRD file as Slicer's: axes ([layer,] column, row, slice), LPS.

    By hand, because ITK calls the layers a vector, which would turn with the patient, instead of a list; and because on
    a full disk it cuts the file off and says nothing.
    """

    def vector(values: NDArray[np.float64]) -> str:
        return "(" + ",".join(repr(float(value)) for value in values) + ")"

    several = len(layers) > 1
    steps = (frame.direction * frame.spacing).T[::-1]
    head = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {3 + several}",
        "space: left-posterior-superior",
        "sizes: " + " ".join(str(n) for n in ([len(layers)] if several else []) + list(frame.shape[::-1])),
        "space directions: " + ("none " if several else "") + " ".join(map(vector, steps)),
        "kinds: " + ("list " if several else "") + "domain domain domain",
        "encoding: gzip",
        f"space origin: {vector(frame.origin)}",
        *(f"{key}:={text}" for key, text in fields.items()),
    ]
    voxels = np.stack(layers, axis=-1) if several else layers[0]
    return "\n".join(head).encode() + b"\n\n" + gzip.compress(voxels.tobytes(), compresslevel=6, mtime=0)


def _layers(segments: Sequence[Segment], frame: Frame, first: int) -> tuple[Layers, list[tuple[int, int]]]:
    """Label maps in which no segment hides another, and the (layer, value) of every segment."""
    layers: Layers = []
    places: list[tuple[int, int]] = []
    used = [0] * len(segments)
    for segment in segments:
        for number, layer in enumerate(layers):
            free = used[number] < LABELS_PER_LAYER
            if free and not any(layer[k - first][mask].any() for k, mask in segment.masks.items()):
                break
        else:
            number = len(layers)
            layers.append(np.zeros(frame.shape, dtype=np.uint8))
        used[number] += 1
        for k, mask in segment.masks.items():
            layers[number][k - first][mask] = used[number]
        places.append((number, used[number]))
    return layers, places


def _slicer_fields(segment: Segment, layer: int, value: int, first: int) -> Mapping[str, str]:
    """The ``SegmentN_`` fields of one segment (3D Slicer, vtkMRMLSegmentationStorageNode)."""
    rows, columns = (np.flatnonzero(np.any([m.any(axis=a) for m in segment.masks.values()], axis=0)) for a in (1, 0))
    slices = np.array(list(segment.masks)) - first
    extent = (axis[end] for axis in (columns, rows, slices) for end in (0, -1))
    return {
        "Name": segment.label,
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{channel / 255:.6g}" for channel in segment.colour.rgb),
        "ColorAutoGenerated": "0",
        "LabelValue": str(value),
        "Layer": str(layer),
        "Extent": " ".join(str(int(end)) for end in extent),
        "Tags": "".join(f"{key}:{text}|" for key, text in _tags(segment).items()),
    }


def _tags(segment: Segment) -> Mapping[str, str]:
    return {
        "Segmentation.Status": "completed",
        "TerminologyEntry": slicer_terminology(segment.term),
        "MedSIGHT.Code": segment.code,
        "MedSIGHT.Score": " ".join(f"{score:.4f}" for score in segment.scores),
    }


def _unique_names(segments: Sequence[Segment]) -> dict[str, int]:
    names: dict[str, int] = {}
    for number, segment in enumerate(segments, start=1):
        name, again = segment.label, 2
        while name in names or name == "background":
            name, again = f"{segment.label} {again}", again + 1
        names[name] = number
    return names


def _in_words(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "value": number,
        "label": segment.label,
        "code": segment.code,
        "scores": list(segment.scores),
        "slices": list(segment.masks),
        "colour": segment.colour.hex,
        "snomed": {"value": segment.term.type.value, "meaning": segment.term.type.meaning},
    }
