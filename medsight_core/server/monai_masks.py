"""Masks as clients of MONAI Label read them: a label map on the grid of the image that they sent."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import nibabel
import numpy as np
from numpy.typing import NDArray
from urllib3 import encode_multipart_formdata
from urllib3.fields import RequestField

from medsight_core.errors import InputError
from medsight_core.geometry import ORTHOGONALITY_TOLERANCE
from medsight_core.imaging.orientation import RAS_TO_LPS
from medsight_core.imaging.planes import Reformatted
from medsight_core.regions import Answer
from medsight_core.server.monai_uploads import Upload

Ending = Literal[".nii.gz", ".nii", ".nrrd"]
MOST_LABELS: Final = 255
"""Values of an unsigned 8-bit label map besides the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMapFile:
    """A label map as a file.

    Attributes:
        name: Of its own, never the client's.
        data: What is in it.
    """

    name: str
    data: bytes


def label_map(upload: Upload, answers: Mapping[int, Answer], cut: Reformatted) -> NDArray[np.uint8]:
    """The regions of answers on the grid of the file, by label value; where they overlap, the smaller one is seen.

    Args:
        upload: The image.
        answers: By value, from 1.
        cut: The volume that was asked about.

    Returns:
        (i, j, k) uint8.
    """
    labels = upload.empty()
    ours = upload.ours(labels, cut)
    for value, answer in sorted(answers.items(), key=lambda item: -size_of(item[1])):
        for volume_region in answer.volume_regions:
            ours[volume_region.mask] = value
        for region in answer.regions:
            ours[region.slice_index][region.mask] = value
    return labels


def size_of(answer: Answer) -> int:
    """How many voxels an answer shows."""
    return sum(one.voxels for one in answer.volume_regions) + sum(one.area_pixels for one in answer.regions)


def check_ending(wanted: object) -> Ending:
    """The kind of file that a client wants.

    Raises:
        InputError: unsupported_output.
    """
    for ending in get_args(Ending):
        if wanted == ending:
            return ending  # type: ignore[no-any-return]
    known = ", ".join(get_args(Ending))
    raise InputError("unsupported_output", "Masks are not written as the kind of file asked for.", f"Choose {known}.")


def write_labels(labels: NDArray[np.uint8], affine: NDArray[np.float64], ending: Ending, *, compress: bool) -> bytes:
    """A label map as a file, in memory, so that no disk can cut it off.

    Args:
        labels: (i, j, k) uint8.
        affine: ``(4, 4)``, (i, j, k, 1) to LPS mm.
        ending: Which kind.
        compress: Of an NRRD file, its voxels.
    """
    if ending == ".nrrd":
        return _nrrd(labels, affine, compress=compress)
    ras = RAS_TO_LPS @ affine
    image = nibabel.Nifti1Image(labels, ras)
    image.header.set_xyzt_units("mm")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() <= ORTHOGONALITY_TOLERANCE:
        image.set_qform(ras, code="scanner")  # a slanted grid has none
    image.set_sform(ras, code="scanner")
    data: bytes = image.to_bytes()
    return gzip.compress(data, compresslevel=1, mtime=0) if ending == ".nii.gz" else data


def label_map_file(upload: Upload, labels: NDArray[np.uint8], ending: Ending, *, compress: bool = True) -> LabelMapFile:
    """A label map of an image as a file with a name of its own: clients save it by that name in one folder."""
    return LabelMapFile(
        name=f"medsight-{uuid.uuid4().hex}{ending}",
        data=write_labels(labels, upload.affine, ending, compress=compress),
    )


def multipart(params: Mapping[str, Any], file: LabelMapFile, *, boundary: str) -> bytes:
    """The body of an answer of MONAI Label: the parameters, then the image."""
    described = RequestField(name="params", data=json.dumps(params))
    described.make_multipart(content_type="application/json")
    image = RequestField(name="image", data=file.data, filename=file.name)
    image.make_multipart(content_type="application/octet-stream")
    body, _ = encode_multipart_formdata([described, image], boundary=boundary)
    return body


def _nrrd(labels: NDArray[np.uint8], affine: NDArray[np.float64], *, compress: bool) -> bytes:
    def vector(values: NDArray[np.float64]) -> str:
        return "(" + ",".join(repr(float(value)) for value in values) + ")"

    head = [
        "NRRD0004",
        "type: unsigned char",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: " + " ".join(map(str, labels.shape)),
        "space directions: " + " ".join(map(vector, affine[:3, :3].T)),
        "kinds: domain domain domain",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {vector(affine[:3, 3])}",
    ]
    voxels = labels.tobytes(order="F")
    return (
        "\n".join(head).encode() + b"\n\n" + (gzip.compress(voxels, compresslevel=1, mtime=0) if compress else voxels)
    )
