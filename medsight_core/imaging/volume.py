"""A scan that has been read: its values, where each slice lies, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from medsight_core.errors import InputError, MedSightError
from medsight_core.geometry import Frame

Kind = Literal["dicom", "nifti", "nrrd", "image"]
PixelText = Literal["yes", "no", "captured", "not said"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a volume came from, enough to write a result that refers back to it.

    Attributes:
        kind: Format family of the files.
        paths: One path per slice for a DICOM series of several files, else the one file.
        series_uid: DICOM Series Instance UID.
        frame_of_reference_uid: DICOM Frame of Reference UID; None where the object has no patient coordinates.
        frame_numbers: For multi-frame objects, the frame number (from 1) of each slice; empty otherwise.
        resampled: The slices are interpolated ones: ``paths`` are all files, no longer one per slice.
        dicom_modality: DICOM Modality, such as "CT".
        photometric: DICOM Photometric Interpretation; "MONOCHROME1" means that display turns the grey scale round.
        window: Centre and width that the file proposes for display, in the units of the volume's values.
        description: What the file calls itself; text by strangers, to be shown quoted and never to a model.
        pixel_text: What the file says of text about the patient in its pixels, "captured" where it is a film or a
            screen (see `burned_in`).
    """

    kind: Kind
    paths: tuple[Path, ...]
    series_uid: str | None = None
    frame_of_reference_uid: str | None = None
    frame_numbers: tuple[int, ...] = ()
    resampled: bool = False
    dicom_modality: str | None = None
    photometric: str | None = None
    window: tuple[float, float] | None = None
    description: str = ""
    pixel_text: PixelText = "not said"


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """Slices of one scan; a single image is a volume of one slice.

    Attributes:
        array: ``(slices, rows, columns)`` int16 or float32 in real units (HU for CT), or
            ``(slices, rows, columns, 3)`` uint8 RGB. Never windowed, never inverted.
        frame: Where the array lies; None when its slices are not a regular grid (`problem` says why).
        slice_frames: The exact place of every slice by itself, each of shape (1, rows, columns).
        modality: "CT", "MR", "X-ray", "Ultrasound", "Endoscopy", "Dermoscopy", "Fundus", "OCT", "Pathology", "unknown".
        source: Where it came from.
        warnings: Plain sentences a person should read, such as "2 localizers were left out.".
        problem: Why `frame` is None: missing_slices, irregular_spacing, gantry_tilt, ...
    """

    array: npt.NDArray[Any]
    frame: Frame | None
    slice_frames: tuple[Frame, ...]
    modality: str
    source: Source
    warnings: tuple[str, ...] = ()
    problem: MedSightError | None = None

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4) or (self.array.ndim == 4 and self.array.shape[3] != 3):
            raise ValueError(f"array has shape {self.array.shape}, expected (slices, rows, columns[, 3]).")
        if len(self.slice_frames) != len(self.array):
            raise ValueError(f"{len(self.slice_frames)} slice frames for {len(self.array)} slices.")
        if self.frame is None and self.problem is None:
            raise ValueError("a volume without a frame must name its problem.")
        for frame in (self.frame, *self.slice_frames):
            if frame is not None and frame.shape[1:] != self.array.shape[1:3]:
                raise ValueError(f"a frame of shape {frame.shape} for an array of shape {self.array.shape}.")

    @property
    def n_slices(self) -> int:
        """Number of slices."""
        return int(self.array.shape[0])

    @property
    def is_colour(self) -> bool:
        """Whether the pixels are RGB."""
        return self.array.ndim == 4

    @property
    def middle(self) -> int:
        """Index of the slice to show first."""
        return self.n_slices // 2

    @property
    def has_place(self) -> bool:
        """Whether directions are directions of the body: not in a picture, nor in a projection without coordinates."""
        source = self.source
        in_body = source.frame_of_reference_uid is not None if source.kind == "dicom" else source.kind != "image"
        return in_body and self.slice_frames[self.middle].physical

    def slice_frame(self, k: int) -> Frame:
        """The exact frame of slice ``k``, shape (1, rows, columns).

        Raises:
            InputError: slice_out_of_range.
        """
        return self.slice_frames[self._checked(k)]

    def slice_array(self, k: int) -> npt.NDArray[Any]:
        """The values of slice ``k``, ``(rows, columns[, 3])``.

        Raises:
            InputError: slice_out_of_range.
        """
        values: npt.NDArray[Any] = self.array[self._checked(k)]
        return values

    def require_frame(self) -> Frame:
        """The frame of the whole array, for what needs a regular grid.

        Raises:
            MedSightError: The named reason why there is none, with the offer to resample.
        """
        if self.frame is None:
            assert self.problem is not None
            raise type(self.problem)(*self.problem.args)  # a fresh one: a raised error carries its traceback along
        return self.frame

    def _checked(self, k: int) -> int:
        if not 0 <= k < self.n_slices:
            raise InputError(
                "slice_out_of_range",
                f"Slice {k} was asked for, but this scan has slices 0 to {self.n_slices - 1}.",
                "Choose a number in that range.",
            )
        return k


def open_volume(path: Path | str, *, series: str | None = None, resample: bool = False) -> Volume:
    """Reads a scan: a DICOM file or series folder, NIfTI, NRRD, PNG or JPEG, told apart by content.

    Args:
        path: A file, or a folder with one or more DICOM series.
        series: Which of several series (number, UID or description) or of several volumes in one file (number).
        resample: Bring a tilted, irregular or gappy series to a regular grid (linear interpolation) instead of leaving
            `Volume.frame` empty.

    Raises:
        InputError: Anything that keeps the scan from being read correctly; a wrong volume is never returned silently.
    """
    from medsight_core.imaging.dispatch import open_path  # the readers build Volumes, so they import this module

    return open_path(Path(path), series=series, resample=resample)
