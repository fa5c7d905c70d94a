"""Findings out of the scene: what would fail or be lost, said beforehand, and the files.

Looking into the scene takes no time and belongs to the main thread (`prepare`). Reading the images of a scan and
writing a file take seconds and may be done in any other one (`Export.look`, `Export.write`), but for what Slicer
itself writes.
"""

from __future__ import annotations

import gzip
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import numpy as np
import SimpleITK as sitk
import slicer
from numpy.typing import NDArray

from medsight_core.errors import MedSightError
from medsight_core.geometry import Frame
from medsight_core.imaging.segments import written_whole
from medsight_core.imaging.volume import Volume
from medsight_core.mrml.segments import Segments, tag_of
from medsight_core.mrml.slicer_exporter import write_with_slicer
from medsight_core.mrml.sources import FileOf, files_of, read_source, reordering
from medsight_core.regions import Span, VolumeRegion
from medsight_core.terminology import find_term

Format = Literal["dicom", "seg.nrrd", "nii.gz"]
FORMATS: Final[tuple[Format, ...]] = ("dicom", "seg.nrrd", "nii.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a person should know before an export.

    Attributes:
        stops: Whether nothing can be written.
        sentence: What would fail or be lost.
        remedy: What to do about it.
    """

    stops: bool
    sentence: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Copied:
    """A finding as it is in the scene.

    Attributes:
        segment_id: Of its segment.
        name, code, score: Of the finding.
        mask: ``(slices, rows, columns)`` bool, its bounding box.
        start: Index of the box's first voxel in the volume.
    """

    segment_id: str
    name: str
    code: str
    score: float
    mask: NDArray[np.bool_]
    start: tuple[int, int, int]

    @property
    def box(self) -> tuple[slice, ...]:
        """Where it is in the volume."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.mask.shape, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Export:
    """One export, as the scene was when it was prepared.

    Attributes:
        format: What is written.
        findings: What is exported.
        frame: Of the volume.
        paths: Files of the scan, where they are needed.
        found: What the scene says about it.
        node: The segmentation node; None where there is none.
        own_exporter: Whether Slicer's own exporter writes DICOM.
    """

    format: Format
    findings: tuple[Copied, ...]
    frame: Frame
    paths: tuple[Path, ...]
    found: tuple[Note, ...]
    node: Any
    own_exporter: bool = False
    _read: dict[tuple[Path, ...], Volume] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def in_main_thread(self) -> bool:
        """Whether only the main thread may write it, because Slicer itself does."""
        return self.format == "seg.nrrd" or self.own_exporter

    def look(self) -> tuple[Note, ...]:
        """What would fail or be lost, in the scene and in the images of the scan; may be called in any thread."""
        if self.format != "dicom" or not self.paths:
            return self.found
        try:
            reordering(self.frame, self._scan().require_frame())
        except MedSightError as error:
            return (*self.found, Note(stops=True, sentence=error.sentence, remedy=error.remedy))
        return self.found

    def write(self, path: Path, *, model: str, digest: str) -> Path:
        """Writes all findings that have voxels; may be called in any thread, but see `in_main_thread`.

        Args:
            path: Of the file; it appears whole or not at all.
            model: Name of the model that found them.
            digest: Of its weights.

        Raises:
            MedSightError: What `look` says stops it; not_written.
        """
        for note in self.look():
            if note.stops:
                raise MedSightError("export_stopped", note.sentence, note.remedy)
        if self.format == "dicom":
            return self._dicom(path, model=model, digest=digest)
        with written_whole(path) as temporary:
            (self._seg_nrrd if self.format == "seg.nrrd" else self._nifti)(Path(temporary))
        return path

    def _scan(self) -> Volume:
        with self._lock:
            if self.paths not in self._read:
                self._read[self.paths] = read_source(self.paths)
            return self._read[self.paths]

    def _dicom(self, path: Path, *, model: str, digest: str) -> Path:
        # highdicom takes a second to import
        from medsight_core.imaging.dicom_seg import SERIES_DESCRIPTION, write_dicom_seg

        kept = [one for one in self.findings if one.mask.any()]
        if self.own_exporter:
            ids = [one.segment_id for one in kept]
            return write_with_slicer(self.node, ids, path, series_description=SERIES_DESCRIPTION)
        scan = self._scan()
        frame = scan.require_frame()
        turn = reordering(self.frame, frame)
        regions = []
        for one in kept:
            whole = np.zeros(self.frame.shape, dtype=bool)
            whole[one.box] = one.mask
            regions.append(
                VolumeRegion(
                    code=one.code, label=one.name, span=Span(0, 0), score=one.score, mask=turn(whole), frame=frame
                )
            )
        written = write_dicom_seg(regions, scan, path, model_name=model, model_digest=digest)
        assert written is not None
        return written

    def _seg_nrrd(self, path: Path) -> None:
        storage = slicer.vtkMRMLSegmentationStorageNode()
        named = path.with_name(path.name + ".seg.nrrd")
        storage.SetFileName(str(named))
        if not storage.WriteData(self.node):
            raise MedSightError("not_written", f"Slicer could not write {path.name}.", "Is there room on the disk?")
        named.replace(path)

    def _nifti(self, path: Path) -> None:
        """A label map: each voxel holds the number of the last finding that covers it."""
        labels = np.zeros(self.frame.shape, dtype=np.uint16)
        for number, one in enumerate(self.findings, start=1):
            labels[one.box][one.mask] = number
        image = sitk.GetImageFromArray(labels)
        image.SetSpacing(self.frame.spacing[::-1].tolist())
        image.SetOrigin(self.frame.origin.tolist())
        image.SetDirection(self.frame.direction[:, ::-1].ravel().tolist())
        with TemporaryDirectory() as folder:
            plain = Path(folder) / "labels.nii"
            sitk.WriteImage(image, plain)
            if plain.stat().st_size < labels.nbytes:  # ITK says nothing on a full disk
                raise MedSightError("not_written", "There is no room for the label map.", "Make room on the disk.")
            with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target)


def prepare(
    segments: Segments,
    volume_node: Any,
    format: Format,
    file_of: FileOf,
    *,
    own_exporter: bool = False,
    before: Export | None = None,
) -> Export:
    """Looks into the scene; reads no file yet.

    Args:
        segments: What was found in the volume.
        volume_node: Of the scan.
        format: What is to be written.
        file_of: Finds the files of DICOM instances.
        own_exporter: Write DICOM with Slicer's own exporter.
        before: An export that was prepared earlier: what it has read of the same files is not read again.
    """
    findings = tuple(_copied(segments, one) for one in segments.ids.values())
    found = list(_notes(findings, volume_node, format, own_exporter=own_exporter and format == "dicom"))
    paths: tuple[Path, ...] = ()
    if format == "dicom" and findings:
        try:
            paths = files_of(volume_node, file_of)
        except MedSightError as error:
            found.append(Note(stops=True, sentence=error.sentence, remedy=error.remedy))
    return Export(
        format=format,
        findings=findings,
        frame=segments.frame,
        paths=paths,
        found=tuple(found),
        node=segments.node,
        own_exporter=own_exporter and format == "dicom",
        _read={} if before is None else before._read,
        _lock=threading.Lock() if before is None else before._lock,
    )


def check(segments: Segments, volume_node: Any, format: Format, file_of: FileOf) -> tuple[Note, ...]:
    """What would fail or be lost; empty where all is well. Nothing is written.

    Args:
        segments: What was found in the volume.
        volume_node: Of the scan.
        format: What is to be written.
        file_of: Finds the files of DICOM instances.
    """
    return prepare(segments, volume_node, format, file_of).look()


def export(
    segments: Segments, volume_node: Any, format: Format, path: Path, file_of: FileOf, *, model: str, digest: str
) -> Path:
    """Writes all findings that have voxels, and waits for it.

    Args:
        segments: What was found in the volume.
        volume_node: Of the scan.
        format: What to write.
        path: Of the file; it appears whole or not at all.
        file_of: Finds the files of DICOM instances.
        model: Name of the model that found them.
        digest: Of its weights.

    Raises:
        MedSightError: What `check` says stops the export; not_written.
    """
    return prepare(segments, volume_node, format, file_of).write(path, model=model, digest=digest)


def _copied(segments: Segments, segment_id: str) -> Copied:
    segment = segments.node_or_raise().GetSegmentation().GetSegment(segment_id)
    mask, _, start = segments.part(segment_id)
    return Copied(
        segment_id=segment_id,
        name=str(segment.GetName()),
        code=tag_of(segment, "MedSIGHT.Code"),
        score=float(tag_of(segment, "MedSIGHT.Score") or 0.0),
        mask=mask.copy(),
        start=start,
    )


def _notes(findings: Sequence[Copied], volume_node: Any, format: Format, *, own_exporter: bool) -> Iterator[Note]:
    if not findings:
        yield Note(stops=True, sentence="There is no finding to export.", remedy="Ask first.")
        return
    names = [one.name for one in findings]
    empty = [one.name for one in findings if not one.mask.any()]
    if len(empty) == len(names):
        yield Note(stops=True, sentence="All findings are empty.", remedy="Undo the edits, or ask again.")
    elif empty:
        yield Note(
            stops=False,
            sentence=f"{_listed(empty)} {_be(empty)} empty and will be left out.",
            remedy="Undo the edits to keep it." if len(empty) == 1 else "Undo the edits to keep them.",
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        yield Note(
            stops=False,
            sentence=f"Several findings are called {_listed(twice)}; other programs may show only one of them.",
            remedy="Rename them.",
        )
    general = [name for name in dict.fromkeys(names) if find_term(name).match == "generic"]
    if general and format == "dicom":
        yield Note(
            stops=False,
            sentence=f"The terminology does not know {_listed(general)}; a general code and the name are written.",
            remedy="Rename what has a usual name.",
        )
    if (transform := volume_node.GetParentTransformNode()) is not None:
        moved = "is moved" if transform.IsTransformToWorldLinear() else "is deformed"
        yield Note(
            stops=False,
            sentence=f'The volume {moved} by the transform "{transform.GetName()}". The file will not contain it: '
            "masks lie on the images as they were loaded.",
            remedy="That is right for a file that goes with these images.",
        )
    if format == "nii.gz":
        yield Note(
            stops=False,
            sentence="A NIfTI label map holds numbers only: names, codes, colours and scores are not in it.",
            remedy="Export as .seg.nrrd or DICOM to keep them.",
        )
        overlap = _overlapping(findings)
        if overlap:
            yield Note(
                stops=False,
                sentence=f"{_listed(overlap)} overlap; a NIfTI label map holds the last of them in each voxel.",
                remedy="Export as .seg.nrrd to keep both.",
            )
    if own_exporter:
        yield Note(
            stops=False,
            sentence="Slicer's own exporter writes neither the scores nor the model's name and digest.",
            remedy="Let MedSIGHT write the file to keep them.",
        )


def _overlapping(findings: Sequence[Copied]) -> list[str]:
    found: dict[str, None] = {}
    for n, one in enumerate(findings):
        for two in findings[n + 1 :]:
            low = [max(a, b) for a, b in zip(one.start, two.start, strict=True)]
            high = [min(a.stop, b.stop) for a, b in zip(one.box, two.box, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            ours = one.mask[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, one.start, strict=True))]
            theirs = two.mask[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, two.start, strict=True))]
            if (ours & theirs).any():
                found |= dict.fromkeys((one.name, two.name))
    return list(found)


def _listed(names: Sequence[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
