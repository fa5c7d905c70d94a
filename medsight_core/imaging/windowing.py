"""What a person sees of a slice, and, by the same function, what the model sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError
from medsight_core.imaging.volume import Volume

WINDOWS: Final[dict[str, tuple[float, float]]] = {
    "soft tissue": (40.0, 400.0),
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
}
"""Centre and width in Hounsfield units. Soft tissue, -160 to 240, is also what the CT of the training data show."""

DEFAULTS: Final = {"CT": WINDOWS["soft tissue"]}
"""By modality, where neither the reader nor the file asks for a window."""

PERCENTILES: Final = (0.5, 99.5)
"""Darkest and brightest of a slice whose values have no agreed scale, such as MR."""

EIGHT_BIT: Final = ("Ultrasound", "Endoscopy", "Dermoscopy", "Fundus", "OCT", "Pathology")
"""Modalities whose 8 bit values are already the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyScale:
    """How values become grey.

    Attributes:
        low, high: The values that become black and white.
        window: Centre and width, where the scale is a window.
        origin: Where it comes from, in words.
    """

    low: float
    high: float
    window: tuple[float, float] | None
    origin: str


def display(volume: Volume, k: int, window: str | tuple[float, float] | None = None) -> npt.NDArray[np.uint8]:
    """Renders slice ``k`` as it should be looked at.

    Args:
        volume: Any scan.
        k: Index of the slice.
        window: A name of `WINDOWS`, or centre and width; None takes the file's own window, else the modality's, else
            percentiles of the slice.

    Returns:
        ``(rows, columns, 3)`` uint8 RGB. MONOCHROME1 is inverted here and nowhere else.

    Raises:
        InputError: slice_out_of_range, unknown_window.
    """
    values = volume.slice_array(k)
    if volume.is_colour:
        return values.copy()
    scale = grey_scale(volume, k, window)
    scaled = (values.astype(np.float32) - scale.low) * (255.0 / (scale.high - scale.low))
    grey = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if volume.source.photometric == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def grey_scale(volume: Volume, k: int, window: str | tuple[float, float] | None = None) -> GreyScale:
    """How `display` turns the values of slice ``k`` of a grey volume into grey.

    Args:
        volume: A scan that is not in colour.
        k: Index of the slice.
        window: As for `display`.

    Raises:
        InputError: slice_out_of_range, unknown_window.
    """
    values = volume.slice_array(k)
    if window is not None:
        return _window(*_chosen(window), origin="the choice of the reader")
    for candidate, origin in (
        (volume.source.window, "the file"),
        (DEFAULTS.get(volume.modality), f"the default for {volume.modality}"),
    ):
        if candidate is not None and candidate[1] >= 1:
            scale = _window(*candidate, origin=origin)
            # A window beside all values shows a black or a white square: some files carry one that is plainly wrong.
            if values.min() < scale.high and values.max() > scale.low:
                return scale
    if volume.modality in EIGHT_BIT and values.min() >= 0 and values.max() <= 255:
        return GreyScale(low=0.0, high=255.0, window=None, origin="grey values as they are")
    origin = f"percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of each slice"
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    # Beyond 2^53 a number plus 1 is the same number.
    high = high if high > low else max(low + 1.0, math.nextafter(low, math.inf))
    return GreyScale(low=low, high=high, window=None, origin=origin)


def _chosen(window: str | tuple[float, float]) -> tuple[float, float]:
    if isinstance(window, str):
        if window not in WINDOWS:
            known = ", ".join(WINDOWS)
            raise InputError(
                "unknown_window", f'There is no window "{window}"; known are {known}.', "Choose one of these."
            )
        return WINDOWS[window]
    if not np.isfinite(window).all() or window[1] < 1:
        raise InputError("unknown_window", f"A window of {window} has no usable width.", "Give a width of at least 1.")
    return window


def _window(centre: float, width: float, *, origin: str) -> GreyScale:
    """DICOM's linear window (PS3.3 C.11.2.1.2.1)."""
    low = centre - 0.5 - (width - 1) / 2
    return GreyScale(low=low, high=low + max(width - 1, 1e-3), window=(centre, width), origin=origin)
