"""Writes everything about an answer into one folder, whole or not at all.

All files are made in a temporary folder and renamed into place at the end, so that a failure or Ctrl-C leaves what was
there before. Files of an earlier answer are replaced, files that are not ours are left alone.

Nothing here tells where the scan lies or whose it is: no path, no UID, no name. Only the DICOM segmentation carries
what DICOM needs to refer to its source images.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from medsight_core.errors import InputError, MedSightError
from medsight_core.output.overlay import RESEARCH_USE, overlay
from medsight_core.output.report import report_page
from medsight_core.regions import Answer, Question, Region

ANSWER: Final = "answer.json"
OVERLAY: Final = "overlay.png"
REPORT: Final = "report.html"
DICOM_SEGMENTATION: Final = "segmentation.dcm"
NRRD_SEGMENTATION: Final = "segmentation.seg.nrrd"
MASKS: Final = "masks"

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

_OURS: Final = (ANSWER, OVERLAY, REPORT, DICOM_SEGMENTATION, NRRD_SEGMENTATION)
_OUR_MASK: Final = re.compile(r"\d{2,}_[a-z0-9-]+\.png")
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


def check_folder(folder: Path) -> None:
    """Makes sure, before any work starts, that results can be written into a folder that may not exist yet.

    Raises:
        InputError: It is a file, or it or its nearest existing parent may not be written.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(
            "bad_output", f"Results cannot go into {folder}: {existing} is not a folder.", "Choose another --out."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            "bad_output", f"Results cannot go into {folder}: {existing} may not be written.", "Choose another --out."
        )


def write_answer(question: Question, answer: Answer, folder: Path) -> Written:
    """Writes answer.json, overlay.png, report.html, masks and a segmentation into ``folder``, which is made if need be.

    Without a region that has pixels there is no mask and no segmentation.

    Raises:
        InputError: The folder cannot be written.
        MedSightError: The segmentation cannot be made from this source.
    """
    check_folder(folder)
    folder = folder.resolve()  # a link's target may lie on another disk, where renaming would not work
    try:
        with _staging(folder) as staging:
            content = _make(question, answer, staging)
            made = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
            _put_in_place(staging, folder, made)
    except OSError as error:
        raise InputError(
            "bad_output",
            f"Results cannot be written into {folder}: {error.strerror or error}.",
            "Nothing was changed there.",
        ) from error
    names = sorted((path.as_posix() for path in made), key=lambda name: (name != REPORT, MASKS in name, name))
    return Written(folder=folder, files=tuple(names), answer=content)


def _make(question: Question, answer: Answer, folder: Path) -> dict[str, Any]:
    answer = replace(answer, warnings=tuple(_anonymous(sentence, question.volume) for sentence in answer.warnings))
    masks = list(_write_masks(answer.regions, folder))
    answer, segmentation = _write_segmentation(question, answer, folder)
    overlay(question, answer.regions).save(folder / OVERLAY)
    (folder / REPORT).write_text(report_page(question, answer), encoding="utf-8")
    content = answer_json(question, answer, masks, segmentation)
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
            "slice_frame": {
                "shape": list(frame.shape),
                "physical": frame.physical,
                "origin_lps": frame.origin.tolist(),
                "spacing": frame.spacing.tolist(),
                "direction": frame.direction.tolist(),
            },
        },
        "notice": RESEARCH_USE,
    }


def _write_masks(regions: Sequence[Region], folder: Path) -> Iterator[str | None]:
    for number, region in enumerate(regions, start=1):
        if not region.area_pixels:
            yield None
            continue
        name = f"{MASKS}/{number:02d}_{_slug(region.label)}.png"
        (folder / MASKS).mkdir(exist_ok=True)
        Image.fromarray(region.mask.astype(np.uint8) * 255).save(folder / name)
        yield name


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40].strip("-") or "region"


def _write_segmentation(question: Question, answer: Answer, folder: Path) -> tuple[Answer, str | None]:
    """Writes the kind of segmentation that fits the source.

    A DICOM source that cannot be referred to (a required attribute is gone, say) still gives a .seg.nrrd, and the
    answer then says why.
    """
    from medsight_core.imaging.mask_files import write_seg_nrrd

    volume = question.volume
    regions = [region for region in answer.regions if region.area_pixels]
    if not regions:
        return answer, None
    if volume.source.kind == "dicom":
        from medsight_core.imaging.dicom_seg import write_dicom_seg

        origin = answer.provenance
        path = folder / DICOM_SEGMENTATION
        try:
            write_dicom_seg(regions, volume, path, model_name=origin.model, model_digest=origin.digest)
        except MedSightError as error:
            path.unlink(missing_ok=True)
            sentence = f"The segmentation was written as {NRRD_SEGMENTATION} instead of DICOM. {error}"
            answer = replace(answer, warnings=(*answer.warnings, _anonymous(sentence, volume)))
        else:
            return answer, DICOM_SEGMENTATION
    return answer, NRRD_SEGMENTATION if write_seg_nrrd(regions, volume, folder / NRRD_SEGMENTATION) else None


def _anonymous(sentence: str, volume: Volume) -> str:
    """A sentence without the names of the scan's files and of its folder, which often hold a name or a UID."""
    names = {name for path in volume.source.paths for name in (path.name, path.parent.name) if len(name) > 2}
    for name in sorted(names, key=len, reverse=True):
        sentence = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "the scan", sentence)
    return re.sub(r"(^|\. )the scan", r"\1The scan", sentence)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A temporary folder from which files can be renamed into ``folder``; gone afterwards, whatever happens."""
    # Inside an existing folder, which may be the only place that we may write or a disk of its own; else beside it.
    parent = folder if folder.is_dir() else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    staging = parent / f".medsight-{secrets.token_hex(4)}.partial"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(staging: Path, folder: Path, made: Sequence[Path]) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    old = staging / "old"
    # What was renamed so far, as (where it was, where it is now), to be undone if the rest fails.
    moved: list[tuple[Path, Path]] = []
    try:
        for name in _earlier_files(folder):
            moved.append((folder / name, old / name))
            (old / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder / name, old / name)
        for name in made:
            moved.append((staging / name, folder / name))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(staging / name, folder / name)
    except BaseException:  # Ctrl-C too: the folder must not hold half of this answer and half of an earlier one
        for before, now in reversed(moved):
            if now.exists() and not before.exists():
                os.rename(now, before)
        raise
    finally:
        masks = folder / MASKS
        if masks.is_dir() and not any(masks.iterdir()):
            masks.rmdir()


def _earlier_files(folder: Path) -> list[Path]:
    masks = sorted((folder / MASKS).glob("*.png")) if (folder / MASKS).is_dir() else []
    found = [folder / name for name in _OURS] + [path for path in masks if _OUR_MASK.fullmatch(path.name)]
    return [path.relative_to(folder) for path in found if path.is_file() or path.is_symlink()]
