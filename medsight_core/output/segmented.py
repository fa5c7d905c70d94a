"""Writes what `medsight segment` found into one folder, whole or not at all (see `folder`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from medsight_core.errors import MedSightError
from medsight_core.imaging.mask_files import write_nifti_labels
from medsight_core.imaging.volume import Volume
from medsight_core.output.folder import NIFTI_SEGMENTATION, OVERLAY, SEGMENT, anonymous, write_whole
from medsight_core.output.overlay import RESEARCH_USE, overlay
from medsight_core.output.writer import write_segmentation
from medsight_core.regions import Answer, Question, Region, VolumeRegion

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmented:
    """What `write_segmented` wrote.

    Attributes:
        folder: Where it is.
        files: Names in the folder, sorted.
        content: Of ``segment.json``.
    """

    folder: Path
    files: tuple[str, ...]
    content: dict[str, Any]


def write_segmented(question: Question, answer: Answer, folder: Path, *, nifti: bool = False) -> Segmented:
    """Writes segment.json, overlay.png and a segmentation into ``folder``, which is made if need be.

    The picture shows the question's slice. Without a region there is no segmentation.

    Args:
        question: What was asked, or drawn, on which slice.
        answer: With regions of a slice, of the volume, or none.
        folder: Where to.
        nifti: Write a NIfTI label map as well, with the meaning of its numbers beside it.

    Raises:
        InputError: The folder cannot be written.
        MedSightError: The label map cannot be made from this source.
    """
    folder, content, made = write_whole(folder, lambda staging: _make(question, answer, staging, nifti))
    return Segmented(folder=folder, files=tuple(made), content=content)


def shown_on(answer: Answer, volume: Volume, k: int) -> list[Region]:
    """What of an answer lies on slice ``k``."""
    parts = [region.on_slice(volume, k) for region in answer.volume_regions]
    return [region for region in answer.regions if region.slice_index == k] + [part for part in parts if part]


def best_slice(answer: Answer, otherwise: int) -> int:
    """The slice on which most of the largest region of the volume lies; ``otherwise`` where there is none."""
    largest = max(answer.volume_regions, key=lambda region: region.voxels, default=None)
    return otherwise if largest is None else int(largest.mask.sum(axis=(1, 2)).argmax())


def _make(question: Question, answer: Answer, folder: Path, nifti: bool) -> dict[str, Any]:
    volume, k = question.volume, question.slice_index
    regions: Sequence[Region | VolumeRegion] = (
        *(region for region in answer.regions if region.area_pixels),
        *(region for region in answer.volume_regions if region.voxels),
    )
    segmentation, said = write_segmentation(regions, volume, folder, answer.provenance)
    label_map = None
    if nifti and regions:
        try:
            write_nifti_labels(regions, volume, folder / NIFTI_SEGMENTATION)
            label_map = NIFTI_SEGMENTATION
        except MedSightError as error:
            if segmentation is None:
                raise
            said = (*said, f"There is no NIfTI label map. {error}")
    warnings = dict.fromkeys(anonymous(sentence, volume) for sentence in (*answer.warnings, *said))
    answer = replace(answer, warnings=tuple(warnings))
    overlay(question, shown_on(answer, volume, k)).save(folder / OVERLAY)
    content = {
        "format": "medsight-segment",
        "version": FORMAT_VERSION,
        "slice": k,
        "prompts": [
            {"kind": prompt.kind, "positive": prompt.positive, "points_lps_mm": prompt.points.round(4).tolist()}
            for prompt in question.prompts
        ],
        **answer.to_json(),
        "segmentation": segmentation,
        "label_map": label_map,
        "notice": RESEARCH_USE,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / SEGMENT).write_text(text + "\n", encoding="utf-8")
    return content
