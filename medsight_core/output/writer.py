"""Writes everything about an answer into one folder, whole or not at all (see `folder`).

Nothing here tells where the scan lies or whose it is: no path, no UID, no name. Only the DICOM segmentation carries
what DICOM needs to refer to its source images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from medsight_core.errors import MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Volume
from medsight_core.output.folder import (
    ANSWER,
    DICOM_SEGMENTATION,
    MASKS,
    NIFTI_SEGMENTATION,
    NRRD_SEGMENTATION,
    OVERLAY,
    REPORT,
    anonymous,
    slug,
    write_whole,
)
from medsight_core.output.folder import check_folder as check_folder
from medsight_core.output.overlay import RESEARCH_USE, overlay
from medsight_core.output.report import report_page
from medsight_core.output.sheet import make_sheet
from medsight_core.regions import Answer, Provenance, Question, Region, VolumeRegion

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What `write_answer` wrote.

    Attributes:
        folder: Where it is.
        files: Paths within the folder, report first.
        answer: The content of ``answer.json``.
    """

    folder: Path
    files: tuple[str, ...]
    answer: dict[str, Any]


def write_answer(
    question: Question, answer: Answer, folder: Path, *, nifti: bool = False, identity: str | None = None
) -> Written:
    """Writes answer.json, overlay.png, report.html, masks and a segmentation into ``folder``, which is made if need be.

    Without a region that has pixels there is no mask and no segmentation. The pictures of an answer about a volume show
    the slices it rests on; its masks are in the segmentation alone.

    Args:
        question: What was asked.
        answer: What came back.
        folder: Where to.
        nifti: Write a NIfTI label map as well, with the meaning of its numbers beside it.
        identity: What the UIDs of a DICOM segmentation are made from; None for new ones.

    Raises:
        InputError: The folder cannot be written.
        MedSightError: The segmentation cannot be made from this source.
    """

    def make(staging: Path) -> dict[str, Any]:
        return _make(question, answer, staging, nifti=nifti, identity=identity)

    folder, content, made = write_whole(folder, make)
    names = sorted(made, key=lambda name: (name != REPORT, MASKS in name, name))
    return Written(folder=folder, files=tuple(names), answer=content)


def _make(question: Question, answer: Answer, folder: Path, *, nifti: bool, identity: str | None) -> dict[str, Any]:
    answer = replace(answer, warnings=tuple(anonymous(sentence, question.volume) for sentence in answer.warnings))
    masks = list(_write_masks(answer.regions, folder))
    shown: list[Region | VolumeRegion] = [region for region in answer.regions if region.area_pixels]
    shown += [region for region in answer.volume_regions if region.voxels]
    segmentation, said = write_segmentation(shown, question.volume, folder, answer.provenance, identity=identity)
    label_map, missing = write_label_map(shown, question.volume, folder) if nifti else (None, ())
    said += missing
    answer = replace(answer, warnings=(*answer.warnings, *said))
    if answer.volume_regions:
        make_sheet(question, answer.volume_regions).picture().save(folder / OVERLAY)
    else:
        overlay(question, answer.regions).save(folder / OVERLAY)
    (folder / REPORT).write_text(report_page(question, answer), encoding="utf-8")
    content = answer_json(question, answer, masks, segmentation)
    if label_map is not None:
        content["label_map"] = label_map
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / ANSWER).write_text(text + "\n", encoding="utf-8")
    return content


def answer_json(
    question: Question, answer: Answer, masks: Sequence[str | None], segmentation: str | None
) -> dict[str, Any]:
    """The content of ``answer.json``.

    Args:
        question: What was asked.
        answer: What came back.
        masks: Mask file of each region; None where the region has no pixels.
        segmentation: Name of the segmentation file, if there is one.
    """
    content = answer.to_json()
    for region, mask in zip(content["regions"], masks, strict=True):
        region["mask_file"] = mask
    volume = question.volume
    frame = volume.slice_frame(question.slice_index)
    return {
        "format": "medsight-answer",
        "version": FORMAT_VERSION,
        "question": question.text.strip(),
        "slice": question.slice_index,
        "prompts": [
            {"kind": prompt.kind, "positive": prompt.positive, "points_lps_mm": prompt.points.round(4).tolist()}
            for prompt in question.prompts
        ],
        **content,
        "segmentation": segmentation,
        "source": {
            "kind": volume.source.kind,
            "modality": volume.modality,
            "slices": volume.n_slices,
            "regular": volume.frame is not None,
            # Of the asked slice; a region's mask has this grid.
            "slice_frame": _frame_json(frame),
            # A volume region's mask has this one.
            "frame": _frame_json(volume.require_frame()) if answer.volume_regions else None,
        },
        "notice": RESEARCH_USE,
    }


def _frame_json(frame: Frame) -> dict[str, Any]:
    return {
        "shape": list(frame.shape),
        "physical": frame.physical,
        "origin_lps": frame.origin.tolist(),
        "spacing": frame.spacing.tolist(),
        "direction": frame.direction.tolist(),
    }


def _write_masks(regions: Sequence[Region], folder: Path) -> Iterator[str | None]:
    for number, region in enumerate(regions, start=1):
        if not region.area_pixels:
            yield None
            continue
        name = f"{MASKS}/{number:02d}_{slug(region.label)}.png"
        (folder / MASKS).mkdir(exist_ok=True)
        Image.fromarray(region.mask.astype(np.uint8) * 255).save(folder / name)
        yield name


def write_segmentation(
    regions: Sequence[Region | VolumeRegion],
    volume: Volume,
    folder: Path,
    origin: Provenance,
    *,
    identity: str | None = None,
) -> tuple[str | None, tuple[str, ...]]:
    """Writes the kind of segmentation that fits the source.

    A DICOM source that cannot be referred to (a required attribute is gone, say) still gives a .seg.nrrd.

    Args:
        regions: What was found.
        volume: On which scan.
        folder: Where to.
        origin: Who found it.
        identity: What the UIDs of a DICOM segmentation are made from; None for new ones.

    Returns:
        Name of the file, None where there is nothing to show; and why it is no DICOM Segmentation of a DICOM source.
    """
    from medsight_core.imaging.mask_files import write_seg_nrrd

    if not regions:
        return None, ()
    said: tuple[str, ...] = ()
    if volume.source.kind == "dicom":
        from medsight_core.imaging.dicom_seg import write_dicom_seg

        path = folder / DICOM_SEGMENTATION
        try:
            write_dicom_seg(
                regions, volume, path, model_name=origin.model, model_digest=origin.digest, identity=identity
            )
        except MedSightError as error:
            path.unlink(missing_ok=True)
            sentence = f"The segmentation was written as {NRRD_SEGMENTATION} instead of DICOM. {error}"
            said = (anonymous(sentence, volume),)
        else:
            return DICOM_SEGMENTATION, ()
    return NRRD_SEGMENTATION if write_seg_nrrd(regions, volume, folder / NRRD_SEGMENTATION) else None, said


def write_label_map(
    regions: Sequence[Region | VolumeRegion], volume: Volume, folder: Path
) -> tuple[str | None, tuple[str, ...]]:
    """Writes a NIfTI label map, with the meaning of its numbers beside it.

    Returns:
        Name of the file, None where there is nothing to show; and why there is none, where there should be one.
    """
    from medsight_core.imaging.mask_files import write_nifti_labels

    try:
        written = write_nifti_labels(regions, volume, folder / NIFTI_SEGMENTATION) if regions else None
    except MedSightError as error:
        return None, (anonymous(f"There is no NIfTI label map. {error}", volume),)
    return (NIFTI_SEGMENTATION if written else None), ()
