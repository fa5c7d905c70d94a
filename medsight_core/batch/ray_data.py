"""The same work spread by Ray Data: over the cores and GPUs of this machine, or over a cluster.

On a cluster the archive and the folder of results must lie at the same paths on every machine.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsight_core.backend import Backend
from medsight_core.batch.job import Job, Todo
from medsight_core.batch.processes import settle, threads_for
from medsight_core.batch.rows import Row
from medsight_core.batch.who import open_for
from medsight_core.batch.worker import JobError, Worker
from medsight_core.errors import MedSightError
from medsight_core.local_ray import start_ray


def run_ray(job: Job, todos: Sequence[Todo], *, workers: int, on_row: Callable[[Row], None]) -> None:
    """Does all that is to be done; see `run_processes`.

    Raises:
        MedSightError: missing_package; the model cannot be loaded, or it makes no sense to go on.
    """
    with (
        _ray(threads=threads_for(workers), workers=workers) as ray,
        tempfile.TemporaryDirectory(prefix=".medsight-tried-", dir=job.out) as tried,
    ):
        gpus = 0.0 if job.who.remote or job.who.device == "cpu" else ray.cluster_resources().get("GPU", 0.0)
        # A scan by itself is what is lost with a process, so it is a block by itself.
        numbers = ray.data.range(len(todos), override_num_blocks=len(todos))
        answered = numbers.flat_map(
            _Actor,
            fn_constructor_args=(job, tuple(todos), Path(tried)),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(todos))),
            num_cpus=1,
            num_gpus=min(1.0, gpus / workers) or None,
        )
        for content in answered.iter_rows():
            said = json.loads(content["said"])
            if "code" in said:
                raise JobError(said["code"], said["sentence"], said["remedy"])
            on_row(Row(**said))


class _Actor:
    """A worker in a process of Ray's.

    Args:
        job: The job.
        todos: All that is to be done; asked for by number.
        tried: Folder where each scan that was begun is noted. Ray begins again what a dead process was at, without end.
    """

    def __init__(self, job: Job, todos: tuple[Todo, ...], tried: Path) -> None:
        self._job = job
        self._todos = todos
        self._tried = tried
        self._backend: Backend | None = None

    def __call__(self, content: dict[str, Any]) -> list[dict[str, str]]:
        todo = self._todos[int(content["id"])]
        try:
            return [{"said": json.dumps(row.to_json())} for row in self._rows(todo)]
        except MedSightError as error:
            return [{"said": json.dumps({"code": error.code, "sentence": error.sentence, "remedy": error.remedy})}]

    def _rows(self, todo: Todo) -> Iterator[Row]:
        try:
            (self._tried / todo.item.id).touch(exist_ok=False)
        except FileExistsError:
            return settle(self._job, todo, (), "The process that was at this scan died.")
        if self._backend is None:  # not before: what goes wrong when an actor is made, Ray tries for ever
            self._backend = open_for(self._job.who, 0)
        return Worker(self._job, self._backend).do(todo)


@contextmanager
def _ray(*, threads: int, workers: int) -> Iterator[Any]:
    """Ray, quiet.

    Raises:
        MedSightError: missing_package.
    """
    ray = start_ray("--ray", processes=workers, variables={"OMP_NUM_THREADS": str(threads)})
    try:
        import ray.data as data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        data.DataContext.get_current().enable_progress_bars = False
        yield ray
    finally:
        ray.shutdown()
