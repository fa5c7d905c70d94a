"""What a process does with a scan: rows, the same files again, and what another question or model makes old."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from medsight_core.backend import Whole
from medsight_core.batch.archive import FolderArchive
from medsight_core.batch.job import Job
from medsight_core.batch.questions import BatchQuestion
from medsight_core.batch.results import write_results
from medsight_core.batch.rows import Row, read_row
from medsight_core.batch.worker import JobError, Worker
from medsight_core.errors import Busy, MedSightError
from medsight_core.events import Event, Failed
from medsight_core.inference.local import LocalBackend
from medsight_core.regions import Question
from tests.batch.archives import SEGMENT, contents, do_all, job_of, small, untidy

WHOLE = BatchQuestion(text="Segment the left lung.", name="whole", modalities=("CT", "MR"), whole=Whole())
TIMES = ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "ContributionDateTime")


class Changed(LocalBackend):
    """A backend that does what a test says before it answers."""

    def __init__(self, backend: LocalBackend, *replies: Any) -> None:
        super().__init__(backend.engine)
        self.replies = list(replies)
        self.asked: list[Question] = []

    def ask(self, question: Question, **options: Any) -> Iterator[Event]:
        self.asked.append(question)
        reply = self.replies.pop(0) if self.replies else None
        if isinstance(reply, Exception):
            raise reply
        return iter([reply]) if reply is not None else super().ask(question, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, digest: str, backend: LocalBackend) -> Job:
    """A small archive about which all is answered."""
    folder = tmp_path_factory.mktemp("done")
    job = job_of(small(folder / "src"), folder / "out", checkpoint, digest, SEGMENT, WHOLE)
    assert do_all(job, backend) == 8  # that picture and NIfTI are no CT is known only when they are read
    write_results(job, job.archive.items(lambda seen: None))
    return job


@pytest.fixture
def job(done: Job, tmp_path: Path) -> Job:
    """A copy of `done` that a test may change."""
    root = shutil.copytree(done.out.with_name("src"), tmp_path / "src")
    out = shutil.copytree(done.out, tmp_path / "out")
    return replace(done, archive=FolderArchive(root=root, without=out), out=out)


def rows_of(job: Job) -> dict[tuple[str, str], Row]:
    items = job.archive.items(lambda seen: None)
    found = {(item.files[0], one.name): job.row(item, one) for item in items for one in job.questions}
    return {key: row for key, row in found.items() if row is not None}


def still(files: dict[str, bytes], folder: Path) -> dict[str, Any]:
    """Files without what says when they were made."""
    made: dict[str, Any] = dict(files)
    for name in files:
        if name.endswith(".dcm"):
            dataset = pydicom.dcmread(folder / name)
            dataset.walk(lambda owner, element: owner.__delitem__(element.tag) if element.keyword in TIMES else None)
            made[name] = dataset.to_json() + str(dataset.file_meta)
        if name.endswith(("row.json", "results.jsonl")):
            lines = (
                [json.loads(line) for line in files[name].decode().splitlines()]
                if "jsonl" in name
                else [json.loads(files[name])]
            )
            made[name] = [{key: value for key, value in line.items() if key != "timings"} for line in lines]
        if name.endswith("results.csv"):
            table = list(csv.DictReader(files[name].decode().splitlines()))
            made[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in table]
    return made


def test_a_whole_archive(tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend) -> None:
    job = job_of(untidy(tmp_path / "src"), tmp_path / "out", checkpoint, digest, SEGMENT, WHOLE, nifti=True)
    do_all(job, backend)
    rows = {(name.split("/")[0], question): row for (name, question), row in rows_of(job).items()}
    for name in ("copies", "two", "scan.nii.gz", "picture.png"):
        row = rows[name, "lung"]
        assert row.status == "answered" and row.text and row.regions, name
        assert {"read_scan", "ask", "write", "decode"} <= set(row.timings)
        made = {path.name for path in (job.out / row.folder).iterdir()}
        assert {"answer.json", "overlay.png", "report.html", "row.json", "segmentation.nii.gz"} <= made
        assert ("segmentation.dcm" in made) == (name in ("copies", "two"))
    assert rows["two", "whole"].status == "answered"
    assert rows["picture.png", "whole"].status == "not asked"
    assert {rows[name, "lung"].error["code"] for name in ("three", "lost.dcm")} == {"pixels_unreadable", "truncated"}
    assert rows["three", "lung"].folder == ""
    counts = write_results(job, job.archive.items(lambda seen: None))
    table = list(csv.DictReader((job.out / "results.csv").open(encoding="utf-8")))
    lines = [json.loads(line) for line in (job.out / "results.jsonl").open(encoding="utf-8")]
    assert len(table) == len(lines) == counts["answered"] + counts["failed"]
    assert all(line["status"] != "not asked" and (line["text"] or line["error_code"]) for line in table)
    measured = next(line for line in lines if line["question"] == "lung" and line["modality"] == "CT")
    assert measured["regions"][0]["area_mm2"] > 0


def test_nothing_but_the_key_says_whose_scans_they_are(
    tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    root = untidy(tmp_path / "Mrs Canary")
    (root / "lost.dcm").rename(root / ("Canary born 1970 " + "x" * 80 + ".dcm"))
    job = job_of(root, tmp_path / "out", checkpoint, digest, SEGMENT)
    do_all(job, backend)
    items = job.archive.items(lambda seen: None)
    write_results(job, items)
    for name, content in contents(job.out).items():
        if name == "items.csv":
            assert all(item.id.encode() in content for item in items)
            assert all(item.series_uid.encode() in content for item in items)
        elif not name.endswith(".dcm"):  # which refers to its source images, as DICOM wants it
            assert b"Canary" not in content and b"CANARY" not in content, name
            assert not any(item.series_uid and item.series_uid.encode() in content for item in items), name
            assert b".dcm:" not in content


def test_the_same_again_is_the_same_files(job: Job, tmp_path: Path, backend: LocalBackend) -> None:
    again = replace(job, out=tmp_path / "again")
    do_all(again, backend)
    write_results(again, again.archive.items(lambda seen: None))
    first, second = (still(contents(one.out), one.out) for one in (job, again))
    assert first.keys() == second.keys()
    assert any(name.endswith("segmentation.dcm") for name in first)
    for name in first:
        assert first[name] == second[name], name


def test_what_is_done_stays_untouched(job: Job, backend: LocalBackend) -> None:
    before = contents(job.out)
    assert do_all(job, backend) == 0
    write_results(job, job.archive.items(lambda seen: None))
    assert contents(job.out) == before


def test_another_question_file_or_model_makes_old_what_it_must_and_no_more(job: Job) -> None:
    def left(job: Job) -> list[tuple[str, str]]:
        todos = [job.todo(item) for item in job.archive.items(lambda seen: None)]
        return [(todo.item.files[0].split("/")[0], one.name) for todo in todos for one in todo.questions]

    assert left(job) == []
    other = replace(WHOLE, text="Segment the right lung.")
    assert {name for _, name in left(replace(job, questions=(SEGMENT, other)))} == {"whole"}
    wider = replace(WHOLE, modalities=())
    assert left(replace(job, questions=(SEGMENT, wider))) == [("picture.png", "whole"), ("scan.nii.gz", "whole")]
    assert len(left(replace(job, digest="0" * 16))) == 8
    assert isinstance(job.archive, FolderArchive)
    picture = job.archive.root / "picture.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert left(job) == [("picture.png", "lung"), ("picture.png", "whole")]


def test_a_result_takes_the_place_of_the_one_before_in_an_archive(
    job: Job, tmp_path: Path, backend: LocalBackend
) -> None:
    ct = next(item for item in job.archive.items(lambda seen: None) if item.modality == "CT")

    def uids(job: Job) -> tuple[str, ...]:
        dataset = pydicom.dcmread(job.folder(ct, job.questions[0]) / "segmentation.dcm")
        tracking = [segment.TrackingUID for segment in dataset.SegmentSequence]
        return (dataset.SOPInstanceUID, dataset.SeriesInstanceUID, *tracking)

    first = uids(job)
    assert len(set(first)) == len(first)
    other = replace(job, out=tmp_path / "other", questions=(replace(SEGMENT, text="Segment the right lung."),))
    list(Worker(other, backend).do(other.todo(ct)))
    assert not set(uids(other)) & set(first)


def test_an_answer_that_became_old_does_not_outlive_a_failure(job: Job, backend: LocalBackend) -> None:
    assert isinstance(job.archive, FolderArchive)
    ct = next(item for item in job.archive.items(lambda seen: None) if item.modality == "CT")
    damaged = job.archive.root / ct.files[0]
    damaged.write_bytes(damaged.read_bytes()[:-300])
    assert do_all(job, backend) == 2
    row = read_row(job.folder(ct, SEGMENT))
    assert row is not None and row.status == "failed"
    assert [path.name for path in job.folder(ct, SEGMENT).iterdir()] == ["row.json"]


def test_what_a_killed_run_left_half_made_is_swept_away(job: Job, backend: LocalBackend) -> None:
    item = job.archive.items(lambda seen: None)[0]
    (job.out / "items" / item.id / ".medsight-12345678.partial").mkdir()
    (job.folder(item, SEGMENT) / ".medsight-row.json").write_text("{")
    (job.folder(item, SEGMENT) / "row.json").unlink()
    assert do_all(job, backend) == 1
    assert not [name for name in contents(job.out) if ".medsight-" in name]


def test_one_question_s_failure_is_its_own(
    tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    far = replace(SEGMENT, name="far", slice_index=2)
    job = job_of(small(tmp_path / "src"), tmp_path / "out", checkpoint, digest, far, SEGMENT)
    do_all(job, backend)
    rows = rows_of(job)
    assert rows["picture.png", "far"].error["code"] == "slice_out_of_range"
    assert rows["picture.png", "lung"].status == rows["scan.nii.gz", "far"].status == "answered"


def test_an_unexpected_error_is_a_row_without_its_words(
    tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    job = job_of(small(tmp_path / "src"), tmp_path / "out", checkpoint, digest, SEGMENT)
    do_all(job, Changed(backend, ZeroDivisionError("Mrs Canary"), MemoryError(), Failed("odd", "It is odd.", "Hm.")))
    errors = [row.error for row in rows_of(job).values() if row.status == "failed"]
    assert sorted(error["code"] for error in errors) == ["odd", "out_of_memory", "unexpected"]
    assert "Canary" not in str(errors) and "ZeroDivisionError" in str(errors)
    before = len(errors)
    assert do_all(job, backend) == before  # what failed is tried again, and nothing else


def test_a_server_that_is_busy_or_breaks_off_is_asked_again(
    tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    job = job_of(small(tmp_path / "src"), tmp_path / "out", checkpoint, digest, SEGMENT)
    patient = Changed(backend, Busy(0.01), Busy(0.01), Failed("interrupted", "It broke off.", ""))
    item = job.archive.items(lambda seen: None)[0]
    (row,) = Worker(job, patient).do(job.todo(item))
    assert row.status == "answered" and len(patient.asked) == 4


@pytest.mark.parametrize("code", ["model_changed", "unreachable", "bad_output"])
def test_what_concerns_the_whole_job_ends_it(
    code: str, tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    root = small(tmp_path / "src")
    job = job_of(root, tmp_path / "out", checkpoint, "0" * 16 if code == "model_changed" else digest, SEGMENT)
    asked = Changed(backend)
    if code == "unreachable":
        job = replace(job, who=replace(job.who, model=None, url="http://127.0.0.1:9"))
        gone = MedSightError("unreachable", "Nobody answers.", "Start the server.")
        asked.replies.append(gone)
        asked.info = lambda: (_ for _ in ()).throw(gone)  # type: ignore[method-assign]
    if code == "bad_output":
        job.out.mkdir()
        (job.out / "items").write_text("a file where a folder should be")
    item = job.archive.items(lambda seen: None)[0]
    with pytest.raises(JobError) as caught:
        list(Worker(job, asked).do(job.todo(item)))
    assert caught.value.code in (code, "not_written") and len(asked.asked) <= 1
    assert job.row(item, SEGMENT) is None


def test_pixels_with_names_in_them_stay_here(
    tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    job = job_of(small(tmp_path / "src"), tmp_path / "out", checkpoint, digest, SEGMENT)
    away = replace(job, who=replace(job.who, model=None, url="https://gpu.hospital.example"))
    asked = Changed(backend)
    do_all(away, asked)
    assert {question.volume.source.kind for question in asked.asked} == {"dicom", "nifti"}
    assert rows_of(away)["picture.png", "lung"].error["code"] == "burned_in"
    do_all(replace(away, burned_in=True), asked)
    assert asked.asked[-1].volume.source.kind == "image"


def test_no_cell_of_the_table_is_a_formula(
    tmp_path: Path, checkpoint: Path, digest: str, backend: LocalBackend
) -> None:
    job = job_of(small(tmp_path / "src"), tmp_path / "out", checkpoint, digest, SEGMENT)
    do_all(job, Changed(backend, *[Failed("odd", "=cmd|' /C calc'!A0", "")] * 4))
    write_results(job, job.archive.items(lambda seen: None))
    table = list(csv.DictReader((job.out / "results.csv").open(encoding="utf-8")))
    assert {line["error"] for line in table} == {"'=cmd|' /C calc'!A0"}
