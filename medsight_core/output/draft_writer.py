"""Writes a report draft into one folder, whole or not at all (see `folder`).

Only the DICOM objects carry what DICOM needs to refer to their source images; nothing else tells where the scan lies or
whose it is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsight_core.errors import MedSightError
from medsight_core.output.draft import Draft
from medsight_core.output.draft_page import Images, draft_markdown, draft_page, image_name, key_images
from medsight_core.output.folder import (
    DICOM_SEGMENTATION,
    REPORT,
    REPORT_DATA,
    REPORT_TEXT,
    STRUCTURED_REPORT,
    anonymous,
    write_whole,
)
from medsight_core.output.overlay import RESEARCH_USE
from medsight_core.output.writer import Written, write_segmentation


def write_draft(draft: Draft, folder: Path) -> Written:
    """Writes report.html, report.md, report.json, key images, a segmentation and, of a DICOM source, report.dcm.

    Raises:
        InputError: The folder cannot be written.
        MedSightError: The segmentation cannot be made from this source.
    """
    folder, content, made = write_whole(folder, lambda staging: _make(draft, staging))
    names = sorted(made, key=lambda name: (name != REPORT, "/" in name, name))
    return Written(folder=folder, files=tuple(names), answer=content)


def _make(draft: Draft, folder: Path) -> dict[str, Any]:
    segmentation, said = write_segmentation(draft.regions, draft.volume, folder, draft.evidence.provenance)
    report = None
    if segmentation == DICOM_SEGMENTATION:
        report, more = _write_structured(draft, folder)
        said += more
    warnings = dict.fromkeys(anonymous(sentence, draft.volume) for sentence in (*draft.warnings, *said))
    draft = replace(draft, warnings=tuple(warnings))
    images = key_images(draft)
    _write_images(draft, images, folder)
    (folder / REPORT).write_text(draft_page(draft, images), encoding="utf-8")
    (folder / REPORT_TEXT).write_text(draft_markdown(draft), encoding="utf-8")
    content = draft.to_json()
    for one, region in zip(draft.shown, content["regions"], strict=True):
        region["key_image"] = image_name(one)
    content |= {"segmentation": segmentation, "structured_report": report, "notice": RESEARCH_USE}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / REPORT_DATA).write_text(text + "\n", encoding="utf-8")
    return content


def _write_structured(draft: Draft, folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """Writes the DICOM structured report; where that fails, says why: the other forms of the report are still good."""
    from medsight_core.imaging.dicom_sr import write_dicom_sr

    origin = draft.evidence.provenance
    impression = [one.text for section in draft.sections if section.kind == "impression" for one in section.sentences]
    try:
        write_dicom_sr(
            draft.regions,
            [one.measured for one in draft.shown],
            draft.volume,
            folder / DICOM_SEGMENTATION,
            folder / STRUCTURED_REPORT,
            model_name=origin.model,
            model_digest=origin.digest,
            comment=" ".join((f"{draft.banner}.", *impression)),
        )
    except MedSightError as error:
        (folder / STRUCTURED_REPORT).unlink(missing_ok=True)
        return None, (f"There is no {STRUCTURED_REPORT}. {error}",)
    return STRUCTURED_REPORT, ()


def _write_images(draft: Draft, images: Images, folder: Path) -> None:
    for one in draft.shown:
        path = folder / image_name(one)
        path.parent.mkdir(exist_ok=True)
        images[one.number].flat.save(path, quality=90)
