"""What there is in an archive: one item per series of slices, one per picture, each with a name that stays.

`Archive` is all that the rest of this package knows of where scans come from.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from medsight_core.errors import InputError
from medsight_core.imaging.dicom import MODALITIES, read_dicom_series
from medsight_core.imaging.dicom_folder import series_of
from medsight_core.imaging.dicom_header import Header, read_header
from medsight_core.imaging.files import sniff
from medsight_core.imaging.volume import Kind, Volume, open_volume

STACKED: Final = frozenset({"CT", "MR", "PT", "NM"})
"""DICOM modalities whose images are slices of one volume even where they do not say where they lie."""

_OTHER_THAN_SCANS: Final = ("not_an_image", "unsupported_object")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One scan of an archive.

    Attributes:
        key: What it is among all scans, wherever the archive lies: its DICOM UIDs, or its path within the archive.
        kind: Format family of its files.
        files: Their paths within the archive, with "/" between folders, in name order.
        series_uid: DICOM Series Instance UID; "" where it has none.
        modality: As `Volume.modality` will be; None where only reading tells.
        stamp: Another one as soon as any of the files changes.
    """

    key: str
    kind: Kind
    files: tuple[str, ...]
    series_uid: str = ""
    modality: str | None = None
    stamp: str = ""

    @property
    def id(self) -> str:
        """A name for folders and tables that tells nobody whose scan it is or where it lies."""
        return hashlib.sha256(self.key.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Archive(Protocol):
    """Where scans come from. It is sent to other processes, so it holds plain values only."""

    def items(self, on_progress: Callable[[int], None]) -> list[Item]:
        """All scans, in an order that stays; told now and then how many files were looked at."""
        ...

    def read(self, item: Item) -> Volume:
        """Reads one of them.

        Raises:
            InputError: Whatever keeps it from being read correctly.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderArchive:
    """A folder with scans anywhere below it.

    A DICOM series of slices is one item, however its files are spread over folders, and a copy of it elsewhere adds
    nothing. Radiographs, ultrasound and other pictures without a place in the patient, and objects of many frames, are
    items by themselves. So is every NIfTI, NRRD, PNG or JPEG file. Links, hidden entries and other files are passed
    over.

    Attributes:
        root: The folder.
        without: A folder below it that is not entered, such as the one for the results.
    """

    root: Path
    without: Path | None = None

    def items(self, on_progress: Callable[[int], None] = lambda seen: None) -> list[Item]:
        """See `Archive.items`.

        Raises:
            InputError: not_readable: the folder itself cannot be listed.
        """
        found: dict[str, _Found] = {}
        lost: list[_Found] = []  # damaged files that name no series
        for seen, (path, stamp) in enumerate(self._files(), start=1):
            one = _look_at(self.root / path, path)
            if one is not None:
                one.stamps.append(stamp)
                if one.key:
                    found.setdefault(one.key, one).join(one)
                else:
                    lost.append(one)
            on_progress(seen)
        return [one.item() for one in _with_lost(found, lost)]

    def read(self, item: Item) -> Volume:
        """See `Archive.read`."""
        paths = [self.root / name for name in item.files]
        if not item.key.startswith(_SERIES):
            return open_volume(paths[0])
        try:
            return read_dicom_series(paths, item.series_uid)
        except OSError as error:
            raise InputError(
                "not_readable", f"A file cannot be opened ({error.strerror or error}).", "Check its permissions."
            ) from error

    def _files(self) -> Iterator[tuple[str, str]]:
        """Every regular file below: its path from the root, and what changes when it changes.

        A folder that cannot be listed comes like a file, so that it is named and not passed over.
        """
        closed: list[str] = []

        def refuse(error: OSError) -> None:
            if Path(error.filename) == self.root:
                raise InputError(
                    "not_readable", f"{self.root} cannot be listed ({error.strerror or error}).", "Check the path."
                ) from error
            closed.append(Path(error.filename).relative_to(self.root).as_posix())

        for folder, folders, names in os.walk(self.root, onerror=refuse):
            here = Path(folder)
            folders[:] = sorted(name for name in folders if name[0] != "." and here / name != self.without)
            for name in sorted(names):
                path = here / name
                if name[0] == ".":
                    continue
                try:
                    info = path.lstat()
                except OSError:  # gone since
                    continue
                if stat.S_ISREG(info.st_mode):
                    yield path.relative_to(self.root).as_posix(), f"{info.st_size} {info.st_mtime_ns}"
        yield from ((name, "closed") for name in closed)


_SERIES: Final = "series "


@dataclass(kw_only=True)
class _Found:
    """An item while its files are being found; without a key, a damaged file that may belong to any item beside it."""

    key: str
    kind: Kind
    files: list[str]
    stamps: list[str] = field(default_factory=list)
    series_uid: str = ""
    modality: str | None = None

    def join(self, other: _Found) -> None:
        if other is not self:
            self.files += other.files
            self.stamps += other.stamps
            self.modality = self.modality or other.modality

    def item(self) -> Item:
        stamped = "\n".join(f"{file} {stamp}" for file, stamp in sorted(zip(self.files, self.stamps, strict=True)))
        return Item(
            key=self.key,
            kind=self.kind,
            files=tuple(self.files),
            series_uid=self.series_uid,
            modality=self.modality,
            stamp=hashlib.sha256(stamped.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        )


def _look_at(path: Path, name: str) -> _Found | None:
    """What a file is part of; None for what is no scan."""
    try:
        content = sniff(path)
    except OSError:  # which may be a slice that a series beside it then lacks
        return _Found(key="", kind="dicom", files=[name])
    if content == "nifti" or (content == "gzip" and name.lower().endswith(".nii.gz")):
        return _Found(key=f"file {name}", kind="nifti", files=[name])
    if content == "nrrd":
        return _Found(key=f"file {name}", kind="nrrd", files=[name])
    if content == "image":
        return _Found(key=f"file {name}", kind="image", files=[name])
    return _look_at_dicom(path, name) if content == "dicom" else None


def _look_at_dicom(path: Path, name: str) -> _Found | None:
    try:
        header = read_header(path)
    except InputError as error:
        if error.code in _OTHER_THAN_SCANS:
            return None
        uid = series_of(path)
        return _Found(key=f"{_SERIES}{uid}" if uid else "", kind="dicom", files=[name], series_uid=uid or "")
    except OSError:
        return _Found(key="", kind="dicom", files=[name])
    uid = header.text("SeriesInstanceUID")
    modality = MODALITIES.get(header.text("Modality").strip(), "unknown")
    if _is_slice(header):
        # Files that name no series are one where they lie in one folder.
        key = f"{_SERIES}{uid}" if uid else f"{_SERIES}in {Path(name).parent.as_posix()}"
    else:
        key = f"image {uid} {header.text('SOPInstanceUID') or name}"
    return _Found(key=key, kind="dicom", files=[name], series_uid=uid, modality=modality)


def _is_slice(header: Header) -> bool:
    if header.layout.frames > 1:
        return False
    return header.text("Modality").strip() in STACKED or bool(header.text("ImagePositionPatient"))


def _with_lost(found: dict[str, _Found], lost: list[_Found]) -> list[_Found]:
    """Gives damaged files that name no series to the series beside them, whose reader knows what that means."""
    series: dict[Path, set[str]] = {}
    for key, one in found.items() if lost else ():
        if key.startswith(_SERIES):
            for file in one.files:
                series.setdefault(Path(file).parent, set()).add(key)
    alone = []
    for one in lost:
        beside = series.get(Path(one.files[0]).parent, ())
        for key in sorted(beside):
            found[key].join(one)
        if not beside:
            one.key = f"file {one.files[0]}"
            alone.append(one)
    return [*found.values(), *alone]
