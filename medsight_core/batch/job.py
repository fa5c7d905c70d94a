"""What is to be done: an archive, questions, a model, and a folder in which everything has its place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medsight_core import __version__
from medsight_core.batch.archive import Archive, Item
from medsight_core.batch.questions import BatchQuestion
from medsight_core.batch.rows import Row, read_row
from medsight_core.cli.backends import Chosen

ITEMS: Final = "items"
"""Folder of the answers, one folder per scan in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Todo:
    """A scan and what is still to be asked about it."""

    item: Item
    questions: tuple[BatchQuestion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done. It is sent to other processes, so it holds plain values only.

    Attributes:
        archive: Where the scans come from.
        questions: What is asked about each.
        out: Folder of the results.
        who: Answers.
        digest: Of its checkpoint.
        nifti: Write NIfTI label maps as well.
        burned_in: Send pixels to another machine even where a patient's name may be written in them.
    """

    archive: Archive
    questions: tuple[BatchQuestion, ...]
    out: Path
    who: Chosen
    digest: str
    nifti: bool = False
    burned_in: bool = False

    def folder(self, item: Item, question: BatchQuestion) -> Path:
        """Where an answer goes."""
        return self.out / ITEMS / item.id / question.name

    def stamp(self, item: Item, question: BatchQuestion) -> str:
        """Of all that an answer rests on."""
        rests = [__version__, self.digest, item.key, item.stamp, question.to_json(), self.nifti]
        rests += [] if self.who.precision == "auto" else [self.who.precision]
        return _digest(rests)[:16]

    def identity(self, item: Item, question: BatchQuestion) -> str:
        """What the UIDs of a result are made from: a later run of the same makes the same object."""
        return _digest([item.key, question.to_json(), self.digest])

    def row(self, item: Item, question: BatchQuestion) -> Row | None:
        """The row of a question about a scan, where there is one that still holds."""
        row = read_row(self.folder(item, question))
        if row is None or row.stamp != self.stamp(item, question):
            return None
        if row.status == "not asked" and question.fits(row.modality):
            return None  # the question is for other modalities now
        return row

    def todo(self, item: Item) -> Todo:
        """What is to be asked about a scan: all that has no row that holds, and what failed before."""
        left = []
        for question in self.questions:
            if question.fits(item.modality):
                row = self.row(item, question)
                if row is None or row.status == "failed":
                    left.append(question)
        return Todo(item=item, questions=tuple(left))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
