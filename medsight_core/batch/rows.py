"""One row of the table: what became of one question about one scan, and whether that still holds.

A row lies beside its answer, as ``row.json``; it is written last, so where there is a row, the answer is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from medsight_core.imaging.segments import written_whole
from medsight_core.output.folder import ROW, write_whole

Status = Literal["answered", "failed", "not asked"]

_LARGEST: Final = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one question about one scan.

    Attributes:
        item: Id of the scan.
        question: Name of the question.
        stamp: Of what the row rests on: scan, question, model, version. Where it is another one now, the row is old.
        status: "not asked" where the scan turned out to be of a modality that the question is not for.
        modality: Of the scan; "" where it could not be read.
        text: The answer.
        regions: As `Region.to_json` and `VolumeRegion.to_json` say them.
        warnings: Sentences that belong beside the answer.
        error: code, sentence and remedy; empty where there is none.
        timings: Seconds per step; ``read_scan`` is spent once for all questions about a scan.
        folder: Of the answer's files, within the folder of results; "" where there are none.
    """

    item: str
    question: str
    stamp: str
    status: Status
    modality: str = ""
    text: str = ""
    regions: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    error: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        seconds = {name: round(value, 4) for name, value in self.timings.items()}
        return asdict(self) | {"timings": seconds}


def read_row(folder: Path) -> Row | None:
    """The row that lies in a folder; None where there is none that can be read."""
    path = folder / ROW
    try:
        if path.stat().st_size > _LARGEST:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        row = Row(**content)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return row if isinstance(row.stamp, str) else None


def write_row(row: Row, folder: Path) -> None:
    """Puts a row beside its answer; one without an answer replaces whatever answer was there.

    Raises:
        MedSightError: bad_output, not_written.
    """
    text = json.dumps(row.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if row.folder:
        with written_whole(folder / ROW) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        write_whole(folder, lambda staging: (staging / ROW).write_text(text, encoding="utf-8"))
