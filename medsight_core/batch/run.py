"""`medsight batch`: from an archive and a file of questions to a folder of answers and a table."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, get_args

import typer

from medsight_core.batch.archive import FolderArchive
from medsight_core.batch.job import Job, Todo
from medsight_core.batch.processes import run_processes
from medsight_core.batch.progress import Meter, metered
from medsight_core.batch.questions import read_questions
from medsight_core.batch.results import KEY, TABLE, write_results
from medsight_core.batch.rows import Row
from medsight_core.batch.who import digest_of
from medsight_core.cli.backends import Chosen
from medsight_core.cli.console import status
from medsight_core.cli.group import say
from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.volume import Kind
from medsight_core.output.folder import alone, check_folder

LOCK: Final = ".medsight-batch.lock"
SOME_FAILED: Final = 1
INTERRUPTED: Final = 130


def run_batch(
    *,
    source: Path,
    questions: Path,
    out: Path,
    only: Sequence[str],
    who: Chosen,
    workers: int,
    ray: bool,
    nifti: bool,
    burned_in: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Runs the command; see `medsight_core.batch.cli` for the arguments."""
    asked = read_questions(questions)
    strange = sorted(set(only) - set(get_args(Kind)))
    if strange:
        raise InputError(
            "unknown_kind", f'There is no kind of scan "{strange[0]}".', f"Choose from {', '.join(get_args(Kind))}."
        )
    if not source.is_dir():
        raise InputError("missing_path", f"There is no folder {source}.", "Give the folder that holds the scans.")
    who.check()
    source, out = source.resolve(), out.resolve()
    if source == out:
        raise InputError("bad_output", "The results cannot go into the archive itself.", "Choose another --out.")
    check_folder(out)
    hush = quiet or as_json
    with status("Opening the model", quiet=hush):
        digest = digest_of(who)
    job = Job(
        archive=FolderArchive(root=source, without=out),
        questions=asked,
        out=out,
        who=who,
        digest=digest,
        nifti=nifti,
        burned_in=burned_in,
    )
    with status("Looking for scans", quiet=hush) as tell:
        found = job.archive.items(lambda seen: tell(f"Looking for scans: {seen:,} files"))
        items = [item for item in found if not only or item.kind in only]
        todos = [todo for todo in map(job.todo, items) if todo.questions]
    if not items:
        raise InputError("no_scans", f"{source} holds no scans.", "Give the folder that holds them.")
    left = sum(len(todo.questions) for todo in todos)
    if not hush:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(item.kind for item in items).items())
        say(f"{len(items)} scans ({kinds}), {len(asked)} questions: {left} answers to give.")
    if dry_run:
        _say_summary(job, {"scans": len(items), "left": left}, as_json=as_json)
        return
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, LOCK):
        try:
            with metered(left, quiet=hush) as meter, _stoppable():
                _work(job, todos, meter, workers=workers, ray=ray)
        except KeyboardInterrupt:
            write_results(job, items)
            say(f"Stopped after {meter.done} of {left} answers. Say the same command again to go on.")
            raise typer.Exit(INTERRUPTED) from None
        except MedSightError:
            with suppress(MedSightError):  # of a full disk, say, which is what has to be said
                write_results(job, items)
            raise
        counts = write_results(job, items)
    _say_summary(job, {"scans": len(items), **counts}, as_json=as_json)
    if counts["failed"]:
        raise typer.Exit(SOME_FAILED)


def _work(job: Job, todos: Sequence[Todo], meter: Meter, *, workers: int, ray: bool) -> None:
    def note(row: Row) -> None:
        meter.advance(failed=row.status == "failed")

    if not todos:
        return
    if ray:
        from medsight_core.batch.ray_data import run_ray

        run_ray(job, todos, workers=workers, on_row=note)
    else:
        run_processes(job, todos, workers=min(workers, len(todos)), on_row=note)


def _say_summary(job: Job, counts: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**counts, "out": str(job.out)}, indent=1))
        return
    if "answered" not in counts:
        return
    typer.echo(f"{counts['answered']} answered, {counts['failed']} failed. Written to {job.out / TABLE}")
    say(f"note: {KEY} says whose scans these are; keep it where the archive is kept. Research use only.")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Takes what a service manager says when it stops a program for Ctrl-C."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
