"""A batch that asks a server: the same answers as with a model of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medsight_core.batch.questions import BatchQuestion
from medsight_core.batch.who import digest_of, open_for
from medsight_core.batch.worker import JobError, Worker
from medsight_core.cli.backends import Chosen
from medsight_core.inference.local import LocalBackend
from tests.batch.archives import SEGMENT, do_all, job_of, small
from tests.batch.test_worker import WHOLE, rows_of
from tests.server.running import serving


def test_a_server_gives_the_rows_that_a_model_here_gives(
    tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    root = small(tmp_path / "src")
    here = job_of(root, tmp_path / "here", checkpoint, digest, SEGMENT, WHOLE)
    do_all(here, backend)
    with serving(backend, tmp_path / "store") as server:
        asked = Chosen(url=server.url)
        there = replace(here, out=tmp_path / "there", who=asked, digest=digest_of(asked))
        assert there.digest == here.digest
        do_all(there, open_for(asked, 0))
    expected = {key: replace(row, timings={}) for key, row in rows_of(here).items()}
    assert {key: replace(row, timings={}) for key, row in rows_of(there).items()} == expected
    assert {row.status for row in expected.values()} == {"answered", "not asked"}


def test_a_server_that_is_gone_ends_the_job_and_leaves_no_row(
    tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    job = job_of(small(tmp_path / "src"), tmp_path / "out", checkpoint, digest, BatchQuestion(text="What?", name="q"))
    with serving(backend, tmp_path / "store") as server:
        asked = Chosen(url=server.url)
        worker = Worker(replace(job, who=asked), open_for(asked, 0))
    item = next(item for item in job.archive.items(lambda seen: None) if item.modality == "CT")
    with pytest.raises(JobError):
        list(worker.do(job.todo(item)))
    assert not list(job.out.rglob("row.json"))
