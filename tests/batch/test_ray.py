"""Ray Data does the same work as plain processes. Skipped where Ray is not installed."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from medsight_core.batch.processes import run_processes
from medsight_core.batch.ray_data import run_ray
from medsight_core.batch.rows import Row
from tests.batch.archives import SEGMENT, Deadly, contents, job_of, small
from tests.batch.test_worker import still

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'medsight[ray]'")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes step back for all others, and a busy machine would never let them run."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_ray_writes_the_same_files_and_outlives_a_scan_that_ends_the_process(
    tmp_path: Path, checkpoint: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = small(tmp_path / "src")
    made = {}
    for name, run in (("ray", run_ray), ("processes", run_processes)):
        job = replace(
            job_of(root, tmp_path / name, checkpoint, digest, SEGMENT), archive=Deadly(root=root, deadly="one/")
        )
        job.out.mkdir()
        rows: list[Row] = []
        run(job, [job.todo(item) for item in job.archive.items(lambda seen: None)], workers=2, on_row=rows.append)
        assert sorted(row.status for row in rows) == ["answered"] * 3 + ["failed"]
        made[name] = still(contents(job.out), job.out)
    assert made["ray"].keys() == made["processes"].keys()
    for name, content in made["ray"].items():
        if "worker_died" not in str(content):  # only plain processes know how one died
            assert content == made["processes"][name], name
