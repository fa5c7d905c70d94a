"""The table of all that was answered: for people as CSV, for programs as JSON lines.

Tables and answers say nothing of whose scans they are. ``items.csv`` does: it says which file and series an item is,
and is to be kept where the archive is kept.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from medsight_core import __version__
from medsight_core.batch.archive import Item
from medsight_core.batch.job import Job
from medsight_core.batch.rows import Row
from medsight_core.imaging.segments import written_whole

TABLE: Final = "results.csv"
LINES: Final = "results.jsonl"
KEY: Final = "items.csv"
ABOUT: Final = "batch.json"

COLUMNS: Final = (
    "item", "question", "modality", "status", "text", "labels", "scores", "area_mm2", "volume_mm3", "warnings",
    "error_code", "error", "seconds", "folder",
)  # fmt: skip

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def write_results(job: Job, items: Sequence[Item]) -> dict[str, int]:
    """Writes the tables anew, from the rows that hold, in the order of the archive.

    Returns:
        How many rows there are by status.

    Raises:
        MedSightError: not_written.
    """
    counts = {"answered": 0, "failed": 0}
    with (
        written_whole(job.out / TABLE) as table,
        written_whole(job.out / LINES) as lines,
        table.open("w", encoding="utf-8", newline="") as table_file,
        lines.open("w", encoding="utf-8") as lines_file,
    ):
        writer = csv.DictWriter(table_file, COLUMNS)
        writer.writeheader()
        for row in _rows(job, items):
            counts[row.status] += 1
            writer.writerow({name: _harmless(value) for name, value in _cells(row).items()})
            lines_file.write(json.dumps(_line(row), ensure_ascii=False, allow_nan=False) + "\n")
    with written_whole(job.out / KEY) as key, key.open("w", encoding="utf-8", errors="replace", newline="") as key_file:
        plain = csv.writer(key_file)
        plain.writerow(("item", "kind", "series_uid", "files", "first_file"))
        plain.writerows((item.id, item.kind, item.series_uid, len(item.files), item.files[0]) for item in items)
    _write_about(job)
    return counts


def _rows(job: Job, items: Sequence[Item]) -> Iterator[Row]:
    for item in items:
        for question in job.questions:
            if question.fits(item.modality):
                row = job.row(item, question)
                if row is not None and row.status != "not asked" and question.fits(row.modality or None):
                    yield row


def _line(row: Row) -> dict[str, Any]:
    content = row.to_json()
    del content["stamp"]
    return content


def _cells(row: Row) -> dict[str, Any]:
    def of_regions(name: str) -> str:
        values = [region.get(name) for region in row.regions]
        return "; ".join("" if value is None else str(value) for value in values) if any(values) else ""

    return {
        "item": row.item,
        "question": row.question,
        "modality": row.modality,
        "status": row.status,
        "text": row.text,
        "labels": of_regions("label"),
        "scores": of_regions("score"),
        "area_mm2": of_regions("area_mm2"),
        "volume_mm3": of_regions("volume_mm3"),
        "warnings": " ".join(row.warnings),
        "error_code": row.error.get("code", ""),
        "error": row.error.get("sentence", ""),
        "seconds": _seconds(row.timings),
        "folder": row.folder,
    }


def _seconds(timings: Mapping[str, float]) -> str:
    spent = [timings[name] for name in ("ask", "write") if name in timings]
    return f"{sum(spent):.2f}" if spent else ""


def _harmless(value: str) -> str:
    """A cell that no spreadsheet takes for a formula: what a model wrote is text by a stranger."""
    return f"'{value}" if value.startswith(_FORMULA) else value


def _write_about(job: Job) -> None:
    content = {
        "format": "medsight-batch",
        "version": 1,
        "medsight": __version__,
        "model_digest": job.digest,
        "questions": [
            {"name": question.name, "modalities": list(question.modalities), **question.to_json()}
            for question in job.questions
        ],
        "nifti": job.nifti,
    }
    with written_whole(job.out / ABOUT) as path:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
