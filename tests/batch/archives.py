"""Archives whose content is known: series, copies, damaged files, other formats, and what is no scan at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from medsight_core.backend import Backend
from medsight_core.batch.archive import FolderArchive, Item
from medsight_core.batch.job import Job
from medsight_core.batch.questions import BatchQuestion
from medsight_core.batch.worker import Worker
from medsight_core.cli.backends import Chosen
from medsight_core.imaging.volume import Volume
from tests.imaging.synthetic import write_series

SHAPE = (3, 24, 32)
SEGMENT = BatchQuestion(text="Segment the left lung in this image.", name="lung")


@dataclass(frozen=True)
class Deadly(FolderArchive):
    """An archive in which reading one scan ends the process, as a decoder may."""

    deadly: str = ""

    def read(self, item: Item) -> Volume:
        if item.files[0].startswith(self.deadly):
            os._exit(3)
        return super().read(item)


def small(root: Path) -> Path:
    """A CT, an MR, a NIfTI and a picture."""
    write_series(root / "one" / "ct", shape=SHAPE)
    write_series(root / "two" / "mr", modality="MR", shape=SHAPE, intercept=0, seed=2)
    values = np.random.default_rng(0).integers(0, 900, (20, 22, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), root / "scan.nii.gz")
    pixels = np.random.default_rng(1).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    return root


def untidy(root: Path) -> Path:
    """`small`, a copy of its CT, a series with a cut-off slice, a header that is cut off, and junk."""
    small(root)
    shutil.copytree(root / "one" / "ct", root / "copies" / "of the ct")
    cut = write_series(root / "three", shape=SHAPE, seed=3).paths[1]
    cut.write_bytes(cut.read_bytes()[:-200])
    whole = write_series(root / "four", modality="MR", shape=SHAPE, intercept=0, seed=4)
    (root / "four" / "rest.dcm").write_bytes(whole.paths[0].read_bytes()[:200])
    (root / "lost.dcm").write_bytes(whole.paths[0].read_bytes()[:200])
    (root / "one" / "notes.txt").write_text("Mr Canary was here")
    (root / "one" / "junk.dcm").write_bytes(b"\0" * 300)
    (root / "one" / "log.gz").write_bytes(b"\x1f\x8b" + b"\0" * 100)
    (root / "one" / ".hidden.png").write_bytes((root / "picture.png").read_bytes())
    (root / "link.nii.gz").symlink_to(root / "scan.nii.gz")
    return root


def job_of(root: Path, out: Path, checkpoint: Path, digest: str, *questions: BatchQuestion, **options: object) -> Job:
    """What is to be done with an archive."""
    return Job(
        archive=FolderArchive(root=root, without=out),
        questions=questions or (SEGMENT,),
        out=out,
        who=Chosen(model=checkpoint, device="cpu"),
        digest=digest,
        **options,  # type: ignore[arg-type]
    )


def do_all(job: Job, backend: Backend, on_row: Callable[..., None] = lambda row: None) -> int:
    """Does in this process all that is to be done; how many rows that made."""
    worker, made = Worker(job, backend), 0
    for item in job.archive.items(lambda seen: None):
        for row in worker.do(job.todo(item)):
            on_row(row)
            made += 1
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
