"""What a person sees of a slice, and, by the same function, what the model sees."""

from __future__ import annotations

from typing import Any, Final

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
    low, high = _limits(volume, values, window)
    scaled = (values.astype(np.float32) - low) * (255.0 / (high - low))
    grey = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if volume.source.photometric == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def _limits(volume: Volume, values: npt.NDArray[Any], window: str | tuple[float, float] | None) -> tuple[float, float]:
    """The values that become black and white."""
    if isinstance(window, str):
        if window not in WINDOWS:
            known = ", ".join(WINDOWS)
            raise InputError(
                "unknown_window", f'There is no window "{window}"; known are {known}.', "Choose one of these."
            )
        window = WINDOWS[window]
    if window is not None:
        if not np.isfinite(window).all() or window[1] < 1:
            raise InputError(
                "unknown_window", f"A window of {window} has no usable width.", "Give a width of at least 1."
            )
        return _linear(*window)
    for candidate in (volume.source.window, DEFAULTS.get(volume.modality)):
        if candidate is not None and candidate[1] >= 1:
            low, high = _linear(*candidate)
            # A window beside all values shows a black or a white square: some files carry one that is plainly wrong.
            if values.min() < high and values.max() > low:
                return low, high
    if volume.modality in EIGHT_BIT and values.min() >= 0 and values.max() <= 255:
        return 0.0, 255.0
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _linear(centre: float, width: float) -> tuple[float, float]:
    """Black and white of DICOM's linear window (PS3.3 C.11.2.1.2.1)."""
    low = centre - 0.5 - (width - 1) / 2
    return low, low + max(width - 1, 1e-3)
