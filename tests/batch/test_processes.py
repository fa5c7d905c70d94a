"""The command as a whole, with processes that die, are stopped, or are killed together with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medsight_core.batch.cli import app
from medsight_core.batch.processes import run_processes
from medsight_core.batch.rows import Row
from medsight_core.cli.group import CommandGroup
from medsight_core.errors import MedSightError
from tests.batch.archives import SEGMENT, Deadly, contents, job_of, small

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import signal
import typer
from medsight_core.batch.cli import app
from medsight_core.cli.group import CommandGroup
medsight = typer.Typer(cls=CommandGroup)
medsight.add_typer(app)
medsight.callback()(lambda: None)
if __name__ == "__main__":
    # A shell that started the tests in the background has them ignore Ctrl-C, and what they start as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    medsight(prog_name="medsight")
"""


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.txt"
    path.write_text("Segment the left lung in this image.\nSegment the right lung in this image.\n")
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "medsight.py"
    path.write_text(PROGRAM)
    return path


def arguments(root: Path, questions: Path, out: Path, checkpoint: Path, *more: str) -> list[str]:
    return [
        "batch", str(root), "--questions", str(questions), "--out", str(out), "--model", str(checkpoint),
        "--device", "cpu", *more,
    ]  # fmt: skip


def start(program: Path, given: Sequence[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(program), *given],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def answered(out: Path) -> int:
    return len(list(out.glob("items/*/*/row.json")))


def wait_for_answers(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while answered(out) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def session(leader: int) -> list[int]:
    """The processes of a session that live, by the system's own list."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            continue
        if entry.name.isdecimal() and int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def wait_for_workers(run: subprocess.Popen[str]) -> None:
    """A worker does not outlive its run for long."""
    deadline = time.monotonic() + 30
    while session(run.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_run_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, questions: Path, program: Path, checkpoint: Path
) -> None:
    """Killed, then stopped as by Ctrl-C, then done; and once more, which changes nothing."""
    root, out = small(tmp_path / "src"), tmp_path / "out"
    rows = 4 * 2
    given = arguments(root, questions, out, checkpoint)
    first = start(program, given)
    wait_for_answers(first, out, 1)
    first.kill()
    first.communicate()
    wait_for_workers(first)
    kept = {name: content for name, content in contents(out).items() if name.endswith("row.json")}
    assert 1 <= len(kept) < rows

    second = start(program, given)
    wait_for_answers(second, out, len(kept) + 1)
    second.send_signal(signal.SIGINT)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 130, (len(kept), answered(out), said)
    assert "Say the same command again to go on." in said and "Traceback" not in said
    wait_for_workers(second)
    assert not [name for name in contents(out) if ".partial" in name]

    third = start(program, given)
    printed, said = third.communicate(timeout=200)
    assert third.returncode == 0, said
    assert f"{rows} answered, 0 failed" in printed
    everything = contents(out)
    assert all(everything[name] == content for name, content in kept.items())
    assert len((out / "results.jsonl").read_text().splitlines()) == rows

    fourth = start(program, [*given, "--json"])
    printed, _ = fourth.communicate(timeout=100)
    assert json.loads(printed) == {"scans": 4, "answered": rows, "failed": 0, "out": str(out.resolve())}
    assert contents(out) == everything


def test_a_scan_that_ends_the_process_is_a_row_and_no_more(tmp_path: Path, checkpoint: Path, digest: str) -> None:
    job = job_of(small(tmp_path / "src"), tmp_path / "out", checkpoint, digest, SEGMENT)
    job = replace(job, archive=Deadly(root=tmp_path / "src", deadly="one/"))
    rows: list[Row] = []
    todos = [job.todo(item) for item in job.archive.items(lambda seen: None)]
    run_processes(job, todos, workers=2, on_row=rows.append)
    assert len(rows) == 4
    (died,) = [row for row in rows if row.status == "failed"]
    assert died.error["code"] == "worker_died" and "exit code 3" in died.error["sentence"]
    assert {row.status for row in rows if row is not died} == {"answered"}
    assert job.todo(todos[[todo.item.id for todo in todos].index(died.item)].item).questions == (SEGMENT,)


def test_processes_that_cannot_work_end_the_job_and_blame_no_scan(
    tmp_path: Path, checkpoint: Path, digest: str
) -> None:
    job = job_of(small(tmp_path / "src"), tmp_path / "out", tmp_path / "no-model", digest, SEGMENT)
    todos = [job.todo(item) for item in job.archive.items(lambda seen: None)]
    with pytest.raises(MedSightError) as caught:
        run_processes(job, todos, workers=1, on_row=lambda row: None)
    assert caught.value.code == "missing_checkpoint"
    assert not list((tmp_path / "out").rglob("row.json"))


def run(*given: str, code: int = 0) -> tuple[str, str]:
    medsight = typer.Typer(cls=CommandGroup)
    medsight.add_typer(app)
    medsight.callback()(lambda: None)
    result = CliRunner().invoke(medsight, list(given))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_a_scan_that_fails_shows_in_how_the_command_ends(tmp_path: Path, questions: Path, checkpoint: Path) -> None:
    root, out = small(tmp_path / "src"), tmp_path / "out"
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))
    printed, _ = run(*arguments(root, questions, out, checkpoint, "-q"), code=1)
    assert "8 answered, 2 failed" in printed


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(
    tmp_path: Path, questions: Path, checkpoint: Path
) -> None:
    root, out = small(tmp_path / "src"), tmp_path / "out"
    _, said = run(*arguments(root, questions, out, checkpoint, "--dry-run"))
    assert "4 scans (" in said and "8 answers to give" in said
    printed, _ = run(*arguments(root, questions, out, checkpoint, "--dry-run", "--only", "dicom", "--json"))
    assert json.loads(printed) == {"scans": 2, "left": 4, "out": str(out.resolve())}
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"src": "nowhere"}, "There is no folder"),
        ({"questions": "nowhere.toml"}, "cannot be read"),
        ({"--out": "src"}, "cannot go into the archive itself"),
        ({"--out": "questions.txt"}, "not a folder"),
        ({"--model": "src"}, "has no config.json"),
        ({"--only": "video"}, 'no kind of scan "video"'),
        ({"--only": "nrrd"}, "holds no scans"),
        ({"--backend": "ftp://x"}, "no address"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(
    change: dict[str, str], words: str, tmp_path: Path, questions: Path, checkpoint: Path
) -> None:
    small(tmp_path / "src")
    usual = {"src": tmp_path / "src", "questions": questions, "--out": tmp_path / "out", "--model": checkpoint}
    given = arguments(*(tmp_path / change[name] if name in change else path for name, path in usual.items()))
    if "--only" in change:
        given += ["--only", change["--only"]]
    if "--backend" in change:
        given = [*given[:6], "--backend", change["--backend"]]
    _, said = run(*given, code=2)
    assert words in said and said.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path, questions: Path, checkpoint: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    root, out = small(tmp_path / "src"), tmp_path / "out"
    out.mkdir()
    with (out / ".medsight-batch.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _, said = run(*arguments(root, questions, out, checkpoint), code=2)
    assert "Another run" in said


def test_help_shows_the_file_of_questions() -> None:
    printed, _ = run("batch", "--help")
    assert "[[questions]]" in printed and "modalities" in printed and "--workers" in printed
