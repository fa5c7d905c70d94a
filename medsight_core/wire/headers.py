"""What is told of a volume besides its voxels: an allow-list, field by field and value by value.

A model needs shape, type, place, modality and how grey values are shown. Nothing else is told, and what may be a free
text in a file (a modality, a photometric interpretation) passes only where it is one of the known words.

    dtype, shape      of the voxels
    grids             [[spacing (3), direction (9, row by row), physical], ...]: what slices have in common
    slices            [[number of the grid, x, y, z of the origin in LPS mm], ...], one for each
    frame             the same of the volume as a whole; null where it is no regular grid
    problem           why it is none, as a code
    modality          "CT", ...
    kind              "dicom", "nifti", "nrrd" or "image"
    dicom_modality, photometric, window     of the file, or null
    placed            whether a DICOM object names a frame of reference (which one is not told)
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.files import check_size
from medsight_core.imaging.volume import Kind, Source, Volume
from medsight_core.wire import checked

MODALITIES: Final = (
    "CT", "MR", "X-ray", "Ultrasound", "Endoscopy", "Dermoscopy", "Fundus", "OCT", "Pathology", "unknown",
)  # fmt: skip
"""What `Volume.modality` may be; anything else is told as "unknown"."""

DICOM_MODALITIES: Final = (
    "AR", "BDUS", "BMD", "CR", "CT", "DG", "DMS", "DX", "ECG", "EPS", "ES", "GM", "IO", "IVOCT", "IVUS", "LS", "MG",
    "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPV", "OSS", "OT", "PT", "PX", "RF", "RG", "RTIMAGE", "SM", "TG",
    "US", "VA", "XA", "XC",
)  # fmt: skip
"""Defined terms of DICOM's Modality (PS3.3 C.7.3.1.1.1) that images have."""

PHOTOMETRICS: Final = (
    "MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR",
)  # fmt: skip
"""The photometric interpretations that are read."""

MOST_SLICES: Final = 20_000
"""As many as files are looked at in a folder."""

LEAST_SPACING: Final = 1e-9
"""In mm: a thousandth of a nanometre, which no microscope sees. Less makes ratios that no number holds."""

WITHHELD: Final = "withheld"
"""Stands for the Frame of Reference UID of a volume that has one."""

_TYPES: Final = ("int16", "float32", "uint8")
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_FIELDS: Final = (
    "dtype", "shape", "grids", "slices", "frame", "problem", "modality", "kind", "dicom_modality", "photometric",
    "window", "placed",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Header:
    """A header that was checked: a volume that lacks its voxels.

    Attributes:
        dtype: Of the voxels, little endian.
        shape: (slices, rows, columns[, 3]).
        frame: Of the whole; None where it is no regular grid.
        slice_frames: One per slice.
        modality: See `Volume`.
        source: See `Volume`; nothing in it says where the scan came from.
        problem: Why there is no `frame`.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    frame: Frame | None
    slice_frames: tuple[Frame, ...]
    modality: str
    source: Source
    problem: InputError | None

    @property
    def voxel_bytes(self) -> int:
        """Size of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    def volume(self, array: npt.NDArray[Any]) -> Volume:
        """The volume with its voxels."""
        return Volume(
            array=array,
            frame=self.frame,
            slice_frames=self.slice_frames,
            modality=self.modality,
            source=self.source,
            problem=self.problem,
        )


def describe(volume: Volume) -> dict[str, Any]:
    """The header of a volume.

    Raises:
        InputError: bad_dtype, bad_shape, too_large.
    """
    source, shape = volume.source, tuple(volume.array.shape)
    _check_voxels(volume.array.dtype.name, shape)
    grids: dict[bytes, int] = {}
    listed: list[list[Any]] = []

    def entry(frame: Frame) -> list[Any]:
        key = frame.spacing.tobytes() + frame.direction.tobytes() + bytes([bool(frame.physical)])
        if key not in grids:
            grids[key] = len(grids)
            listed.append([frame.spacing.tolist(), frame.direction.reshape(-1).tolist(), bool(frame.physical)])
        return [grids[key], *frame.origin.tolist()]

    slices = [entry(frame) for frame in volume.slice_frames]
    frame = None if volume.frame is None else entry(volume.frame)
    return {
        "dtype": volume.array.dtype.name,
        "shape": list(shape),
        "grids": listed,
        "slices": slices,
        "frame": frame,
        "problem": None if volume.problem is None else volume.problem.code,
        "modality": volume.modality if volume.modality in MODALITIES else "unknown",
        "kind": source.kind,
        "dicom_modality": source.dicom_modality if source.dicom_modality in DICOM_MODALITIES else None,
        "photometric": source.photometric if source.photometric in PHOTOMETRICS else None,
        "window": None if source.window is None else [float(end) for end in source.window],
        "placed": source.frame_of_reference_uid is not None,
    }


def canonical(header: dict[str, Any]) -> bytes:
    """The one way to write a header."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse(raw: bytes, *, limit_bytes: int) -> Header:
    """Checks a header by a stranger.

    Args:
        raw: As it came.
        limit_bytes: Voxels of more bytes are refused.

    Raises:
        InputError: bad_volume, bad_dtype, bad_shape, bad_geometry, too_large.
    """
    try:
        parsed = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError("bad_volume", "The volume's header is no JSON.", "Send it again.") from error
    try:
        return _header(checked.record(parsed, "The volume's header", required=_FIELDS), limit_bytes)
    except InputError as error:
        if error.code != "bad_request":
            raise
        raise InputError("bad_volume", error.sentence, error.remedy) from error


def _header(fields: dict[str, Any], limit_bytes: int) -> Header:
    shape = tuple(checked.integer(n, "The shape", low=1) for n in checked.listed(fields["shape"], "The shape", most=4))
    name = checked.text(fields["dtype"], "The type of voxels", longest=16)
    _check_voxels(name, shape)
    dtype = np.dtype(name).newbyteorder("<")
    size = math.prod(shape) * dtype.itemsize
    if size > limit_bytes:
        raise InputError(
            "too_large",
            f"The volume has {size:,} bytes of voxels; the limit is {limit_bytes:,}.",
            "Send a part of it, or ask whoever runs the server to raise the limit.",
        )
    given = checked.listed(fields["slices"], "The list of slices", most=MOST_SLICES)
    if len(given) != shape[0]:
        raise _bad_geometry(f"{len(given)} places for {shape[0]} slices")
    grids = [_grid(one) for one in checked.listed(fields["grids"], "The list of grids", most=MOST_SLICES + 1)]
    plane = (shape[1], shape[2])
    slice_frames = tuple(_frame(one, grids, (1, *plane)) for one in given)
    frame = None if fields["frame"] is None else _frame(fields["frame"], grids, (shape[0], *plane))
    return Header(
        dtype=dtype,
        shape=shape,
        frame=frame,
        slice_frames=slice_frames,
        modality=checked.one_of(fields["modality"], "The modality", MODALITIES),
        source=_source(fields),
        problem=_problem(fields["problem"], regular=frame is not None),
    )


def _check_voxels(dtype: str, shape: tuple[int, ...]) -> None:
    if dtype not in _TYPES:
        raise InputError(
            "bad_dtype", "The voxels of a volume are int16, float32 or uint8.", "Convert them to one of these."
        )
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3) or min(shape) < 1:
        raise InputError(
            "bad_shape", "A volume has the axes slices, rows, columns and, for RGB, 3 channels.", "Reshape it."
        )
    if len(shape) == 4 and dtype != "uint8":
        raise InputError("bad_dtype", f"The voxels of a colour volume are uint8, got {dtype}.", "Convert them.")
    check_size("The volume", shape[:3])
    if shape[0] > MOST_SLICES:
        raise InputError(
            "too_large", f"The volume has {shape[0]:,} slices; the limit is {MOST_SLICES:,}.", "Send a part of it."
        )


Grid = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], bool]


def _grid(value: object) -> Grid:
    given = checked.listed(value, "A grid", most=3)
    if len(given) != 3:
        raise checked.wrong("A grid", "spacing, direction and whether lengths are real")
    spacing = checked.numbers(given[0], "A spacing", count=3)
    if (spacing < LEAST_SPACING).any():
        raise _bad_geometry(f"spacing is {spacing.tolist()}, expected three lengths of {LEAST_SPACING} mm or more")
    direction = checked.numbers(given[1], "A direction", count=9).reshape(3, 3)
    return spacing, direction, checked.flag(given[2], "physical")


def _frame(value: object, grids: list[Grid], shape: tuple[int, int, int]) -> Frame:
    given = checked.listed(value, "A place", most=4)
    if len(given) != 4:
        raise checked.wrong("A place", "the number of a grid and three coordinates")
    number = checked.integer(given[0], "The number of a grid")
    if number >= len(grids):
        raise _bad_geometry("it refers to a grid that is not there")
    spacing, direction, physical = grids[number]
    origin = checked.numbers(given[1:], "An origin", count=3)
    try:
        return Frame(shape=shape, origin=origin, spacing=spacing, direction=direction, physical=physical)
    except ValueError as error:
        raise _bad_geometry(str(error).rstrip(".")) from error


def _source(fields: dict[str, Any]) -> Source:
    modality, photometric, window = (fields[name] for name in ("dicom_modality", "photometric", "window"))
    placed = checked.flag(fields["placed"], "placed")
    ends = None if window is None else checked.numbers(window, "The window", count=2, largest=1e38).tolist()
    return Source(
        kind=checked.one_of(fields["kind"], "The kind", get_args(Kind)),
        paths=(),
        frame_of_reference_uid=WITHHELD if placed else None,
        dicom_modality=_word(modality, "The DICOM modality", DICOM_MODALITIES),
        photometric=_word(photometric, "The photometric interpretation", PHOTOMETRICS),
        window=None if ends is None else (ends[0], ends[1]),
    )


def _word(value: object, what: str, choices: tuple[str, ...]) -> str | None:
    return None if value is None else checked.one_of(value, what, choices)


def _problem(value: object, *, regular: bool) -> InputError | None:
    if value is None and regular:
        return None
    if not isinstance(value, str) or not _CODE.fullmatch(value):
        raise checked.wrong("The problem", "a code, where the slices are no regular grid")
    return InputError(
        value,
        f"The slices of this scan are no regular grid ({value.replace('_', ' ')}).",
        "Ask about one slice, which works as it is, or resample the scan first.",
    )


def _bad_geometry(why: str) -> InputError:
    return InputError("bad_geometry", f"The volume cannot be placed: {why}.", "Check the geometry of the scan.")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
