"""Prompts drawn on a grid: the form in which a model sees points, boxes, scribbles and masks.

One channel per kind, values 0..1, on the pixel grid of the model's input image. Training and inference draw with the
same function, so that a click means the same to both.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CHANNELS = ("point", "negative point", "box", "scribble", "mask", "negative scribble")
"""Channels of a prompt raster, in order."""

POINT_SIGMA = 0.01
"""Width of a point's Gaussian, as a share of the grid's longer side."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One prompt in pixel coordinates of the grid it is drawn on.

    Attributes:
        kind: "point", "box", "scribble" or "mask".
        xy: `(n, 2)` column and row, pixel centres at whole numbers: a point, two corners or a line; unused for masks.
        positive: False for "not here" (points and scribbles).
        mask: `(height, width)` values 0..1, for kind "mask".
    """

    kind: str
    xy: np.ndarray | None = None
    positive: bool = True
    mask: np.ndarray | None = None


def draw(marks: Iterable[Mark], size: tuple[int, int]) -> np.ndarray:
    """Raster `(channels, height, width)` float32 of `marks` on a grid of `size` (height, width).

    Raises:
        ValueError: for a kind that does not exist, or a mask of another size.
    """
    height, width = size
    raster = np.zeros((len(CHANNELS), height, width), np.float32)
    for mark in marks:
        kind = mark.kind if mark.positive else f"negative {mark.kind}"
        if kind not in CHANNELS:
            raise ValueError(f"prompt kind is '{kind}', expected one of {', '.join(CHANNELS)}")
        plane = raster[CHANNELS.index(kind)]
        np.maximum(plane, stroke(mark, size), out=plane)
    return raster


def stroke(mark: Mark, size: tuple[int, int]) -> np.ndarray:
    """One mark on a grid, `(height, width)` float32 in 0..1."""
    height, width = size
    if mark.kind == "mask":
        if mark.mask is None or mark.mask.shape != size:
            got = None if mark.mask is None else mark.mask.shape
            raise ValueError(f"prompt mask has shape {got}, expected the grid's {size}")
        return np.asarray(mark.mask, np.float32)
    if mark.xy is None:
        raise ValueError(f"a prompt of kind '{mark.kind}' needs coordinates")
    xy = np.asarray(mark.xy, np.float64).reshape(-1, 2)
    if mark.kind == "point":
        sigma = max(POINT_SIGMA * max(size), 0.5)
        rows, columns = np.arange(height)[:, None], np.arange(width)[None]
        x, y = xy[0]
        bump: np.ndarray = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        return bump.astype(np.float32)
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    if mark.kind == "box":
        (x0, y0), (x1, y1) = xy.min(0), xy.max(0)
        pen.rectangle([round(x0), round(y0), round(x1), round(y1)], fill=1)
    else:
        thick = max(1, round(2 * POINT_SIGMA * max(size)))
        pen.line([tuple(p) for p in np.rint(xy).tolist()], fill=1, width=thick, joint="curve")
    return np.asarray(canvas, np.float32)
