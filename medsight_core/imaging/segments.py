"""From the regions of an answer to the segments of a file: checked, grouped, named, coloured, written whole."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.coding import Code

from medsight_core.errors import InputError, MedSightError
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Region, VolumeRegion
from medsight_core.terminology import Colour, Term, display_colours, find_term

Mask = NDArray[np.bool_]

_SITE_OF_MODALITY: Final = MappingProxyType({"Dermoscopy": "skin", "Fundus": "retina", "OCT": "retina"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """One finding on one or more slices, as a viewer lists it.

    Attributes:
        label: What it is, such as "left lung".
        code: The region code, such as ``"[C2_16]"``.
        term: The label in SNOMED CT.
        colour: To draw it in.
        masks: Slice index -> ``(rows, columns)`` bool, none of them empty, in the order of the slices.
        scores: How sure the model was, one per mask.
    """

    label: str
    code: str
    term: Term
    colour: Colour
    masks: Mapping[int, Mask]
    scores: tuple[float, ...]

    @property
    def description(self) -> str:
        """Region code, score, and where the SNOMED code says less than the label, a note."""
        low, high = min(self.scores), max(self.scores)
        score = f"score {low:.2f}" if len(self.scores) == 1 else f"score {low:.2f} to {high:.2f}"
        return f"{self.code} {score}. {self.term.note}".strip()


def segments_of(regions: Sequence[Region | VolumeRegion], volume: Volume) -> tuple[Segment, ...]:
    """The segments that show ``regions``, in their order.

    Regions with the same code and label on different slices are one segment; on the same slice they are two, so that
    nothing is merged that the answer kept apart. A region of the whole volume is a segment by itself. Regions whose
    mask is empty are left out.

    Raises:
        InputError: slice_out_of_range, bad_mask, other_grid: a region that does not lie on this volume.
    """
    groups: list[tuple[Region | VolumeRegion, dict[int, Region]]] = []
    for region in regions:
        if isinstance(region, VolumeRegion):
            parts = _parts(region, volume)
            if parts:
                groups.append((region, parts))
            continue
        _check(region, volume)
        if not np.asarray(region.mask).any():
            continue
        for first, members in groups:
            same = isinstance(first, Region) and (first.code, first.label) == (region.code, region.label)
            if same and region.slice_index not in members:
                members[region.slice_index] = region
                break
        else:
            groups.append((region, {region.slice_index: region}))
    colours = display_colours(first.label for first, _ in groups)
    return tuple(
        Segment(
            label=plain_text(first.label) or first.code,
            code=first.code,
            term=find_term(first.label, site=_SITE_OF_MODALITY.get(volume.modality)),
            colour=colour,
            masks=MappingProxyType({k: np.asarray(members[k].mask, dtype=bool) for k in sorted(members)}),
            scores=tuple(float(members[k].score) for k in sorted(members)),
        )
        for (first, members), colour in zip(groups, colours, strict=True)
    )


def _parts(region: VolumeRegion, volume: Volume) -> dict[int, Region]:
    """The parts of a region of the whole volume, by slice."""
    shape = volume.array.shape[:3]
    if region.mask.shape != shape:
        raise InputError(
            "bad_mask",
            f"The mask of {region.code} has shape {region.mask.shape}; this scan needs {shape}.",
            "Save it with the scan it was found on.",
        )
    if volume.frame is not None and not region.frame.is_close(volume.frame):
        raise InputError(
            "other_grid",
            f"Region {region.code} lies elsewhere in the patient than this scan.",
            "Save it with the scan it was found on.",
        )
    parts = (region.on_slice(volume, int(k)) for k in np.flatnonzero(region.mask.any(axis=(1, 2))))
    return {part.slice_index: part for part in parts if part is not None}


def _check(region: Region, volume: Volume) -> None:
    mask, k = np.asarray(region.mask), region.slice_index
    if not 0 <= k < volume.n_slices:
        raise InputError(
            "slice_out_of_range",
            f"Region {region.code} lies on slice {k}, but this scan has slices 0 to {volume.n_slices - 1}.",
            "Save it with the scan it was found on.",
        )
    wanted = volume.slice_frame(k).shape[1:]
    if mask.dtype != np.bool_ or mask.shape != wanted:
        raise InputError(
            "bad_mask",
            f"The mask of {region.code} is {mask.dtype} of shape {mask.shape}; its slice needs bool of shape {wanted}.",
            "Bring it back to the slice's own grid first.",
        )
    if not region.frame.is_close(volume.slice_frame(k)):
        raise InputError(
            "other_grid",
            f"Region {region.code} lies elsewhere in the patient than slice {k} of this scan.",
            "Save it with the scan it was found on.",
        )


def used_slices(segments: Sequence[Segment]) -> list[int]:
    """The slices that any segment lies on, ascending."""
    return sorted({k for segment in segments for k in segment.masks})


def slicer_terminology(term: Term) -> str:
    """A term as 3D Slicer serialises it: context, category, type, modifier, region context, region, its modifier."""

    def entry(code: Code | None) -> str:
        parts = ("", "", "") if code is None else (code.scheme_designator, code.value, code.meaning)
        return "^".join(plain_text(part) for part in parts)

    modifier, region_modifier = (next(iter(codes), None) for codes in (term.type_modifiers, term.region_modifiers))
    return "~".join(
        (
            "Segmentation category and type - DICOM master list",
            entry(term.category),
            entry(term.type),
            entry(modifier),
            "Anatomic codes - DICOM master list",
            entry(term.region),
            entry(region_modifier),
        )
    )


def plain_text(text: str, limit: int = 64) -> str:
    """Text fit for a DICOM LO value or an NRRD header: one line without control characters and backslashes.

    DICOM bounds characters, but programs count bytes: the text is cut to ``limit`` bytes of UTF-8.
    """
    line = re.sub(r"[\s\\]+", " ", "".join(c if c.isprintable() or c.isspace() else " " for c in text)).strip()
    return line.encode()[:limit].decode(errors="ignore").rstrip()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives the name of a temporary file beside ``path`` that takes its place once it is complete and on the disk.

    Nothing of it is left where writing fails, and a file that was there before stays as it was.

    Raises:
        MedSightError: not_written: the folder cannot be written to, the disk is full, a folder has that name.
    """
    temporary: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError("a folder has that name")
        path.parent.mkdir(parents=True, exist_ok=True)
        # The ending stays, because writers choose the format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".medsight-", suffix=path.name[-40:])
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except (OSError, RuntimeError) as error:  # ITK has only RuntimeError to say that a disk is full
        raise MedSightError(
            "not_written",
            f"{path.name} could not be written ({error}).",
            "Check that the folder may be written to and has space, or choose another.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
