"""DICOM files to a volume: one file, a multi-frame object, or one series out of a folder.

Two passes: all headers are read and checked first, so that a volume that cannot be right is refused before memory is
taken for it; then the pixels, slice by slice, straight into the volume's array.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.pixels import apply_modality_lut

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.burned_in import pixel_text
from medsight_core.imaging.dicom_folder import Broken, choose_series, series_of, without_broken
from medsight_core.imaging.dicom_header import Header, name, read_header
from medsight_core.imaging.dicom_pixels import check_codec, read_frames
from medsight_core.imaging.dicom_planes import Plane, check_same_size, read_planes
from medsight_core.imaging.files import check_size, printable, regular_files, sniff
from medsight_core.imaging.outside import OutsideDecoder
from medsight_core.imaging.stacking import SLICE_REMEDY, Stack, stack
from medsight_core.imaging.values import real_values
from medsight_core.imaging.volume import Source, Volume

MODALITIES: Final[dict[str, str]] = {
    "CT": "CT",
    "MR": "MR",
    **dict.fromkeys(("CR", "DX", "MG", "XA", "RF", "RG", "PX", "IO"), "X-ray"),
    **dict.fromkeys(("US", "IVUS"), "Ultrasound"),
    "ES": "Endoscopy",
    "DMS": "Dermoscopy",
    "OP": "Fundus",
    **dict.fromkeys(("OPT", "OCT", "IVOCT"), "OCT"),
    **dict.fromkeys(("SM", "GM"), "Pathology"),
}


@dataclass
class _Folder:
    """What was found in a folder, by series."""

    series: dict[str, list[Header]] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def read_dicom_file(path: Path) -> Volume:
    """Reads one DICOM file, which may hold many frames.

    Raises:
        InputError: As `read_dicom_folder`.
    """
    return _volume([read_header(path)], [])


def read_dicom_folder(folder: Path, *, series: str | None = None) -> Volume:
    """Reads the one series in a folder, or the one that is chosen.

    Args:
        folder: Searched with its subfolders.
        series: Series number, UID, the end of a UID, or description.

    Raises:
        InputError: no_dicom, several_series, unknown_series, mixed_sizes, unsupported_codec, pixels_unreadable and all
            that a header can be refused for.
    """
    found = _scan(regular_files(folder))
    if not found.series:
        if found.broken:
            raise found.broken[0].error
        counted = ", ".join(f"{count} {what}" for what, count in found.skipped.items()) or "no files"
        raise InputError(
            "no_dicom",
            f"{printable(folder.name) or folder} holds no DICOM images ({counted}).",
            "Give a folder with the files of one series, or a single image file.",
        )
    uid = choose_series(found.series, series, folder)
    warnings = [f"{count} {what} in the folder left out." for what, count in found.skipped.items()]
    return _volume(found.series.pop(uid), warnings, broken=found.broken, others=tuple(found.series))


def read_dicom_series(paths: Sequence[Path], uid: str) -> Volume:
    """Reads one series whose files are known, wherever they lie.

    Args:
        paths: Its files. Damaged files that may belong to it are named or left out as in a folder.
        uid: Its Series Instance UID; "" for files that have none.

    Raises:
        InputError: As `read_dicom_folder`.
    """
    found = _scan(paths)
    if uid not in found.series:
        if found.broken:
            raise found.broken[0].error
        raise InputError("no_dicom", "The files of the series hold no images of it.", "Look for the series again.")
    return _volume(found.series.pop(uid), [], broken=found.broken, others=tuple(found.series))


def _scan(paths: Iterable[Path]) -> _Folder:
    found = _Folder()
    for path in paths:
        if sniff(path) != "dicom":
            found.skipped["file(s) that are not DICOM"] += 1
            continue
        try:
            header = read_header(path)
        except InputError as error:
            if error.code in ("not_an_image", "unsupported_object"):
                found.skipped["DICOM object(s) that are not scans"] += 1
            else:
                found.broken.append(Broken(path=path, series_uid=series_of(path), error=error))
            continue
        found.series.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    return found


def _volume(
    headers: Sequence[Header], warnings: list[str], *, broken: Sequence[Broken] = (), others: Sequence[str] = ()
) -> Volume:
    """The volume of one series.

    Args:
        headers: Of its files.
        warnings: What was said so far.
        broken: Files of the same folder that cannot be read.
        others: UIDs of the other series there.
    """
    headers = _without_copies(headers, warnings)
    headers = _without_localizers(headers, warnings)
    for header in headers:
        check_codec(header)
    planes = _placed_only([plane for header in headers for plane in read_planes(header)], warnings)
    check_same_size(planes)
    layout = planes[0].header.layout
    check_size("The series", (len(planes), layout.rows, layout.columns))
    ordered, laid = _order(planes)
    warnings += without_broken(broken, headers, others, regular=laid.frame is not None)
    slices = _slice_frames(ordered, laid)
    head = ordered[len(ordered) // 2].header
    modality = head.text("Modality").strip()
    if not ordered[0].placed and head.text("ImagerPixelSpacing") and not head.text("PixelSpacing"):
        warnings.append("Lengths are measured at the detector; the body part itself is somewhat smaller.")
    if laid.frame is None and laid.problem is not None:
        warnings.append(laid.problem.sentence)
    files = {plane.path for plane in ordered}
    multiframe = any(plane.header.layout.frames > 1 for plane in ordered)
    return Volume(
        array=_read_array(ordered),
        frame=laid.frame,
        slice_frames=slices,
        modality=MODALITIES.get(modality, "unknown"),
        source=Source(
            kind="dicom",
            paths=(ordered[0].path,) if len(files) == 1 else tuple(plane.path for plane in ordered),
            series_uid=head.text("SeriesInstanceUID") or None,
            frame_of_reference_uid=head.text("FrameOfReferenceUID") or None,
            frame_numbers=tuple(plane.index + 1 for plane in ordered) if multiframe else (),
            dicom_modality=modality or None,
            photometric=layout.photometric,
            window=ordered[len(ordered) // 2].window,
            description=printable(head.text("SeriesDescription")),
            pixel_text=pixel_text(list({plane.path: plane.header for plane in ordered}.values())),
        ),
        warnings=tuple(warnings),
        problem=laid.problem,
    )


def _without_copies(headers: Sequence[Header], warnings: list[str]) -> list[Header]:
    """Drops files that repeat an image already there (the same SOP Instance UID)."""
    kept: dict[str, Header] = {}
    for header in headers:
        kept.setdefault(header.text("SOPInstanceUID") or str(header.path), header)
    if len(kept) < len(headers):
        warnings.append(f"{len(headers) - len(kept)} file(s) that repeat another image left out.")
    return list(kept.values())


def _without_localizers(headers: list[Header], warnings: list[str]) -> list[Header]:
    kept = [header for header in headers if not header.is_localizer]
    if not kept or len(kept) == len(headers):
        return headers
    warnings.append(f"{len(headers) - len(kept)} localizer(s) left out.")
    return kept


def _placed_only(planes: list[Plane], warnings: list[str]) -> tuple[Plane, ...]:
    """Leaves out images without a position among those that have one, such as a dose sheet in a CT series."""
    placed = tuple(plane for plane in planes if plane.placed)
    if not placed or len(placed) == len(planes):
        return tuple(planes)
    warnings.append(f"{len(planes) - len(placed)} image(s) without a position left out.")
    return placed


def _order(planes: Sequence[Plane]) -> tuple[list[Plane], Stack]:
    planes = sorted(planes, key=lambda plane: (plane.instance, plane.path.name, plane.index))
    if planes[0].placed:
        laid = stack([plane.frame for plane in planes])
        return [planes[k] for k in laid.order], laid
    order = tuple(range(len(planes)))
    if len(planes) == 1:
        return list(planes), Stack(order=order, frame=planes[0].frame)
    if len({plane.path for plane in planes}) == 1:
        sentence = (
            f"{name(planes[0].path)} holds {len(planes)} frames without places in the patient, such as a film in time."
        )
        problem = InputError("cine", sentence, "Ask about one frame, which works as it is.")
    else:
        sentence = f"The {len(planes)} images have no position in the patient; they are ordered by their numbers."
        problem = InputError("no_geometry", sentence, SLICE_REMEDY)
    return list(planes), Stack(order=order, frame=None, problem=problem)


def _slice_frames(ordered: Sequence[Plane], laid: Stack) -> tuple[Frame, ...]:
    """Every slice's own exact place; its depth is the spacing of the stack where that is known."""
    if laid.frame is None:
        return tuple(plane.frame for plane in ordered)
    depth = laid.frame.spacing[0]
    return tuple(
        Frame(
            shape=plane.frame.shape,
            origin=plane.frame.origin,
            spacing=np.array([depth, *plane.frame.spacing[1:]]),
            direction=plane.frame.direction,
            physical=plane.frame.physical,
        )
        for plane in ordered
    )


def _read_array(ordered: Sequence[Plane]) -> npt.NDArray[Any]:
    """``(slices, rows, columns)`` int16 where every value fits, else float32; or ``(..., 3)`` uint8."""
    layout = ordered[0].header.layout
    colour = layout.photometric not in ("MONOCHROME1", "MONOCHROME2")
    shape = (len(ordered), layout.rows, layout.columns)
    array: npt.NDArray[Any] = np.empty((*shape, 3), np.uint8) if colour else np.empty(shape, np.int16)
    by_file: dict[Path, list[int]] = {}
    for k, plane in enumerate(ordered):
        by_file.setdefault(plane.path, []).append(k)
    with OutsideDecoder() as outside:
        for places in by_file.values():
            frames = read_frames(ordered[places[0]].header, [ordered[k].index for k in places], outside)
            for k, stored in zip(places, frames, strict=True):
                values = stored if colour else _real(ordered[k], stored)
                if array.dtype == np.int16 and values.dtype != np.int16:
                    array = array.astype(np.float32)
                array[k] = values
    return array


def _real(plane: Plane, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    dataset = plane.header.dataset
    if "ModalityLUTSequence" in dataset:
        return apply_modality_lut(stored, dataset).astype(np.float32)
    return real_values(stored, plane.slope, plane.intercept)
