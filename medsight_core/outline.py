"""A closed outline that a person drew around something, as the mask that it encloses."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.regions import Prompt

OFF_SLICE: Final = 0.501
"""How far off its slice a point of an outline may lie, in slices: half, and rounding on the way through mm."""

DECIMALS: Final = 6
"""Of a pixel, to which a point counts: what is straight stays straight on the way through mm."""


def lasso(points: npt.ArrayLike, frame: Frame) -> Prompt:
    """The pixels whose centres lie within a closed outline, as a mask prompt.

    What reaches beyond the image is cut off, as people draw around things at its rim.

    Args:
        points: ``(n, 3)`` LPS mm in the order in which they were drawn, three or more; the last is joined to the first.
        frame: Of the slice they were drawn on, shape (1, rows, columns).

    Raises:
        InputError: Fewer than three points, a point on another slice, or no pixel inside.
    """
    outline = np.asarray(points, dtype=np.float64)
    if outline.ndim != 2 or outline.shape[1:] != (3,) or len(outline) < 3 or not np.isfinite(outline).all():
        raise InputError("bad_prompt", f"An outline has three or more points, got {len(outline)}.", "Draw it around.")
    index = frame.to_index(outline)
    if (np.abs(index[:, 0]) > OFF_SLICE).any():
        raise InputError("prompt_on_other_slice", "The outline does not lie on the slice.", "Draw it on one slice.")
    mask = _filled(index[:, :0:-1].round(DECIMALS), frame.shape[1:])
    if not mask.any():
        raise InputError("bad_prompt", "The outline encloses no pixel of the image.", "Draw it around something.")
    return Prompt(kind="mask", mask=mask)


def _filled(xy: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Pixels whose centres an outline runs around: where it crosses itself, once is enough (non-zero winding)."""
    rows, columns = shape
    turns = np.zeros((rows, columns), dtype=np.int32)
    places = np.arange(columns)
    for (x0, y0), (x1, y1) in zip(xy, np.roll(xy, -1, axis=0), strict=True):
        first, last = (int(np.clip(np.ceil(y), 0, rows)) for y in sorted((y0, y1)))
        if first < last:  # the edge passes centres of rows; each of them is crossed once
            crossing = x0 + (np.arange(first, last) - y0) * (x1 - x0) / (y1 - y0)
            turns[first:last] += (places < crossing[:, None]) * (1 if y1 > y0 else -1)
    return np.asarray(turns != 0)
