"""What one process does: reads scans, asks about them, writes answers and rows.

Plain processes and Ray run the same `Worker`, so they write the same files.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from medsight_core.backend import Backend
from medsight_core.batch.archive import Item
from medsight_core.batch.job import ITEMS, Job, Todo
from medsight_core.batch.questions import BatchQuestion
from medsight_core.batch.rows import Row, write_row
from medsight_core.batch.who import check_burned_in
from medsight_core.errors import MedSightError
from medsight_core.events import Event, Warning, fold
from medsight_core.imaging.volume import Volume
from medsight_core.output.folder import without_names
from medsight_core.output.writer import write_answer
from medsight_core.regions import Answer, Question

PATIENCE: Final = 600.0
"""Seconds that a question waits for a server that is busy."""
BREAKS: Final = 2
"""How often a question is asked again whose answer a server broke off."""

_OF_THE_DISK: Final = ("bad_output", "not_written")


class JobError(MedSightError):
    """What concerns the whole job and no single scan: a full disk, a server that is gone."""


class Worker:
    """Works on scans, one at a time.

    Args:
        job: What is to be done.
        backend: Who is asked; what `open_for` opens.
    """

    def __init__(self, job: Job, backend: Backend) -> None:
        self._job = job
        self._backend = backend

    def do(self, todo: Todo) -> Iterator[Row]:
        """Asks everything that is to be asked about one scan; a row comes when its answer is written.

        Raises:
            JobError: It makes no sense to go on.
        """
        item = todo.item
        _sweep(self._job.out / ITEMS / item.id)
        start = time.perf_counter()
        try:
            volume = self._read(item)
        except Exception as error:
            for question in todo.questions:
                row = self._failed(question, item, error)
                put_row(self._job, item, question, row)
                yield row
            return
        timings = {"read_scan": time.perf_counter() - start}
        for question in todo.questions:
            if question.fits(volume.modality):
                row = self._row(question, item, volume, timings)
            else:
                row = Row(
                    item=item.id,
                    question=question.name,
                    stamp=self._job.stamp(item, question),
                    status="not asked",
                    modality=volume.modality,
                )
            put_row(self._job, item, question, row)
            yield row

    def _read(self, item: Item) -> Volume:
        volume = self._job.archive.read(item)
        if not self._job.burned_in:
            check_burned_in(self._job.who, volume)
        return volume

    def _row(self, question: BatchQuestion, item: Item, volume: Volume, timings: dict[str, float]) -> Row:
        try:
            return self._answered(question, item, volume, timings)
        except JobError:
            raise
        except MedSightError as error:
            if error.code in _OF_THE_DISK:
                raise JobError(error.code, error.sentence, error.remedy) from error
            if self._job.who.remote:
                self._check_alive()
            return self._failed(question, item, error, volume)
        except Exception as error:
            return self._failed(question, item, error, volume)

    def _answered(self, question: BatchQuestion, item: Item, volume: Volume, timings: dict[str, float]) -> Row:
        job = self._job
        asked = question.about(volume)
        start = time.perf_counter()
        answer = self._ask(question, asked)
        if answer.provenance.digest != job.digest:
            raise JobError(
                "model_changed",
                f"The model was changed under way, from {job.digest} to {answer.provenance.digest}.",
                "Say the same command again: everything is asked of the new one.",
            )
        written = time.perf_counter()
        folder = job.folder(item, question)
        made = write_answer(asked, _timeless(answer), folder, nifti=job.nifti, identity=job.identity(item, question))
        spent = {**timings, **answer.provenance.timings, "ask": written - start, "write": time.perf_counter() - written}
        return Row(
            item=item.id,
            question=question.name,
            stamp=job.stamp(item, question),
            status="answered",
            modality=volume.modality,
            text=answer.text,
            regions=tuple(made.answer["regions"] + made.answer["volume_regions"]),
            warnings=tuple(made.answer["warnings"]),
            timings=spent,
            folder=folder.relative_to(job.out).as_posix(),
        )

    def _ask(self, question: BatchQuestion, asked: Question) -> Answer:
        """Waits where a server is busy; it is somebody else's too."""
        patience, breaks = time.monotonic() + PATIENCE, 0
        while True:
            said = list(asked.volume.warnings)
            try:
                answer = fold(_heard(self._backend.ask(asked, whole=question.whole), said))
            except MedSightError as error:
                breaks += error.code == "interrupted"
                if error.code not in ("busy", "interrupted") or breaks > BREAKS or time.monotonic() > patience:
                    raise
                time.sleep(min(10.0, max(0.1, float(getattr(error, "retry_after", 1.0)))))
            else:
                return replace(answer, warnings=tuple(dict.fromkeys((*said, *answer.warnings))))

    def _check_alive(self) -> None:
        """Tells a question that a server could not answer from a server that is gone."""
        try:
            self._backend.info()
        except MedSightError as error:
            raise JobError(error.code, error.sentence, error.remedy) from error

    def _failed(self, question: BatchQuestion, item: Item, error: Exception, volume: Volume | None = None) -> Row:
        if isinstance(error, MedSightError):
            known = error
        elif isinstance(error, MemoryError):
            known = MedSightError("out_of_memory", "There was not enough memory for this scan.", "Use fewer --workers.")
        else:  # what it says may name a patient
            known = MedSightError("unexpected", f"Something unexpected went wrong ({type(error).__name__}).")
        return failed_row(self._job, item, question, known, volume)


def failed_row(
    job: Job, item: Item, question: BatchQuestion, error: MedSightError, volume: Volume | None = None
) -> Row:
    """The row of a question that has no answer.

    Args:
        job: The job.
        item: The scan.
        question: The question.
        error: Why.
        volume: The scan, where it could be read.
    """
    paths = [Path(name) for name in item.files]
    return Row(
        item=item.id,
        question=question.name,
        stamp=job.stamp(item, question),
        status="failed",
        modality=(item.modality or "") if volume is None else volume.modality,
        error={
            "code": error.code,
            "sentence": without_names(error.sentence, paths),
            "remedy": without_names(error.remedy, paths),
        },
    )


def put_row(job: Job, item: Item, question: BatchQuestion, row: Row) -> None:
    """Writes a row to its place.

    Raises:
        JobError: It cannot be written, and neither could the next one.
    """
    try:
        write_row(row, job.folder(item, question))
    except MedSightError as error:
        raise JobError(error.code, error.sentence, error.remedy) from error


def _heard(events: Iterator[Event], said: list[str]) -> Iterator[Event]:
    """Passes events on and notes what they warn of."""
    for event in events:
        if isinstance(event, Warning):
            said.append(event.sentence)
        yield event


def _timeless(answer: Answer) -> Answer:
    """An answer without what is another each time, so that the same question leaves the same files."""
    origin = answer.provenance
    settings = {name: value for name, value in origin.settings.items() if not name.startswith("estimated_")}
    return replace(answer, provenance=replace(origin, settings=settings, timings={}))


def _sweep(folder: Path) -> None:
    """Takes away what a run that was killed left half made."""
    for left in (*folder.glob(".medsight-*"), *folder.glob("*/.medsight-*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
