"""A folder of results that appears whole or not at all.

All files are made in a temporary folder and renamed into place at the end, so that a failure or Ctrl-C leaves what was
there before. Files of earlier results are replaced, files that are not ours are left alone.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from medsight_core.errors import InputError
from medsight_core.imaging.files import printable

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

Content = TypeVar("Content")

ANSWER: Final = "answer.json"
OVERLAY: Final = "overlay.png"
REPORT: Final = "report.html"
REPORT_TEXT: Final = "report.md"
REPORT_DATA: Final = "report.json"
STRUCTURED_REPORT: Final = "report.dcm"
DICOM_SEGMENTATION: Final = "segmentation.dcm"
NRRD_SEGMENTATION: Final = "segmentation.seg.nrrd"
NIFTI_SEGMENTATION: Final = "segmentation.nii.gz"
NIFTI_LABELS: Final = "segmentation.json"
SEGMENT: Final = "segment.json"
ROW: Final = "row.json"
MASKS: Final = "masks"
KEY_IMAGES: Final = "key-images"

# What any command writes: an answer and a report that went into the same folder must not be mixed up.
_OURS: Final = (
    ANSWER, OVERLAY, REPORT, REPORT_TEXT, REPORT_DATA, STRUCTURED_REPORT, DICOM_SEGMENTATION, NRRD_SEGMENTATION,
    NIFTI_SEGMENTATION, NIFTI_LABELS, SEGMENT, ROW,
)  # fmt: skip
_OUR_FOLDERS: Final = {MASKS: re.compile(r"\d{2,}_[a-z0-9-]+\.png"), KEY_IMAGES: re.compile(r"\d{2,}_[a-z0-9-]+\.jpg")}


def check_folder(folder: Path) -> None:
    """Makes sure, before any work starts, that results can be written into a folder that may not exist yet.

    Raises:
        InputError: It is a file, or it or its nearest existing parent may not be written.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(
            "bad_output", f"Results cannot go into {folder}: {existing} is not a folder.", "Choose another --out."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            "bad_output", f"Results cannot go into {folder}: {existing} may not be written.", "Choose another --out."
        )


def write_whole(folder: Path, make: Callable[[Path], Content]) -> tuple[Path, Content, list[str]]:
    """Fills ``folder`` with what ``make`` writes into an empty one.

    Args:
        folder: Made if need be.
        make: Writes into the folder that it is given.

    Returns:
        The folder, its links resolved; what ``make`` gave back; the names of the files, sorted.

    Raises:
        InputError: The folder cannot be written.
    """
    check_folder(folder)
    folder = folder.resolve()  # a link's target may lie on another disk, where renaming would not work
    try:
        with _staging(folder) as staging:
            content = make(staging)
            made = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
            _put_in_place(staging, folder, made)
    except OSError as error:
        raise InputError(
            "bad_output",
            f"Results cannot be written into {folder}: {error.strerror or error}.",
            "Nothing was changed there.",
        ) from error
    return folder, content, [path.as_posix() for path in made]


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40].strip("-") or "region"


def anonymous(sentence: str, volume: Volume) -> str:
    """A sentence without the names of the scan's files and of its folder, which often hold a name or a UID."""
    return without_names(sentence, volume.source.paths)


def without_names(sentence: str, paths: Iterable[Path]) -> str:
    """A sentence without the names of files and of their folders."""
    names = {name for path in paths for name in (path.name, path.parent.name) if len(name) > 2}
    names |= {printable(name) for name in names}  # as readers show them, shortened
    for name in sorted(names, key=len, reverse=True):
        sentence = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "the scan", sentence)
    return re.sub(r"(^|\. )the scan", r"\1The scan", sentence)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A temporary folder from which files can be renamed into ``folder``; gone afterwards, whatever happens."""
    # Inside an existing folder, which may be the only place that we may write or a disk of its own; else beside it.
    parent = folder if folder.is_dir() else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    staging = parent / f".medsight-{secrets.token_hex(4)}.partial"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(staging: Path, folder: Path, made: Sequence[Path]) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    old = staging / "old"
    # What was renamed so far, as (where it was, where it is now), to be undone if the rest fails.
    moved: list[tuple[Path, Path]] = []
    try:
        for name in _earlier_files(folder):
            moved.append((folder / name, old / name))
            (old / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder / name, old / name)
        for name in made:
            moved.append((staging / name, folder / name))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(staging / name, folder / name)
    except BaseException:  # Ctrl-C too: the folder must not hold half of this answer and half of an earlier one
        for before, now in reversed(moved):
            if now.exists() and not before.exists():
                os.rename(now, before)
        raise
    finally:
        for inner in (folder / own for own in _OUR_FOLDERS):
            if inner.is_dir() and not any(inner.iterdir()):
                inner.rmdir()


def _earlier_files(folder: Path) -> list[Path]:
    found = [folder / name for name in _OURS]
    for name, ours in _OUR_FOLDERS.items():
        if (folder / name).is_dir():
            found += [path for path in sorted((folder / name).iterdir()) if ours.fullmatch(path.name)]
    return [path.relative_to(folder) for path in found if path.is_file() or path.is_symlink()]


@contextmanager
def alone(folder: Path, lock: str) -> Iterator[None]:
    """Makes sure, while the block runs, that no other run writes into the same folder.

    Args:
        folder: Exists.
        lock: Name of the file in it that is locked; it stays there.

    Raises:
        InputError: in_use.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two runs would do the same work twice
        yield
        return
    with (folder / lock).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "in_use", f"Another run is writing into {folder}.", "Wait for it, or choose another folder."
            ) from error
        yield
