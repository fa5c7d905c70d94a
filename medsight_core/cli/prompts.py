"""What was drawn, from the command line's pixel coordinates to the patient's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from medsight_core.errors import InputError
from medsight_core.outline import lasso
from medsight_core.regions import Prompt

if TYPE_CHECKING:
    from medsight_core.geometry import Frame

Pixel = tuple[float, float]
"""Column and row; a whole number is a pixel's centre, (0, 0) the top left pixel."""

Drawn = Literal["point", "box", "scribble", "lasso"]
"""What can be drawn on the command line."""

_FORMS: Final = {"point": "X,Y", "box": "X0,Y0,X1,Y1", "scribble": "X,Y;X,Y;...", "lasso": "X,Y;X,Y;X,Y;..."}
_FEWEST: Final = {"scribble": 2, "lasso": 3}
_LARGEST_SCRIBBLE: Final = 10_000


def parse_pixels(kind: Drawn, text: str, *, option: str = "") -> tuple[Pixel, ...]:
    """Reads ``X,Y``, ``X0,Y0,X1,Y1`` or ``X,Y;X,Y;...``.

    Args:
        kind: What it describes.
        text: As it was typed.
        option: What the person called it, where it is not the option of the kind.

    Raises:
        InputError: The text has another form, or a box has no extent.
    """
    try:
        rows = [[float(number) for number in pair.split(",")] for pair in text.strip().strip(";").split(";")]
    except ValueError:
        rows = []
    if kind == "box" and len(rows) == 1 and len(rows[0]) == 4:
        rows = [rows[0][:2], rows[0][2:]]
        right = rows[0][0] != rows[1][0] and rows[0][1] != rows[1][1]
    else:
        fewest, most = (1, 1) if kind == "point" else (_FEWEST.get(kind, 0), _LARGEST_SCRIBBLE)
        right = kind != "box" and fewest <= len(rows) <= most
    if not right or any(len(row) != 2 or not all(map(math.isfinite, row)) for row in rows):
        extent = " with two different corners" if kind == "box" else ""
        raise InputError(
            "bad_prompt",
            f"{option or f'--{kind}'} takes {_FORMS[kind]}{extent}, in pixels (column, row) counted from 0; "
            f"got {text[:60]!r}.",
        )
    return tuple((row[0], row[1]) for row in rows)


def place_prompts(drawn: Sequence[tuple[Drawn, tuple[Pixel, ...]]], frame: Frame) -> Iterator[Prompt]:
    """Puts what was drawn on a slice where it lies in the patient; see `place_prompt`."""
    for kind, pixels in drawn:
        yield place_prompt(kind, pixels, frame)


def place_prompt(kind: Drawn, pixels: Sequence[Pixel], frame: Frame, *, positive: bool = True) -> Prompt:
    """Puts what was drawn on a slice where it lies in the patient.

    Args:
        kind: What was drawn; a closed outline becomes the mask that it encloses.
        pixels: As `parse_pixels` gives them.
        frame: Of the slice, shape (1, rows, columns).
        positive: False for "not here".

    Raises:
        InputError: A pixel lies outside the image, or an outline encloses none.
    """
    _, rows, columns = frame.shape
    for x, y in pixels:
        if not (-0.5 <= x <= columns - 0.5 and -0.5 <= y <= rows - 0.5):
            raise InputError(
                "prompt_outside",
                f"The {kind} at {x:g},{y:g} lies outside the image, which has {columns} columns and {rows} rows.",
                f"X goes from 0 to {columns - 1}, Y from 0 to {rows - 1}.",
            )
    xy = np.array(pixels, dtype=np.float64)
    points = frame.to_lps(np.column_stack((np.zeros(len(xy)), xy[:, 1], xy[:, 0])))
    return lasso(points, frame) if kind == "lasso" else Prompt(kind=kind, points=points, positive=positive)


def parse_slices(text: str) -> range:
    """Reads ``A:B``, the slices from A up to, not including, B.

    Raises:
        InputError: The text has another form.
    """
    first, mark, last = text.strip().partition(":")
    if not mark or not first.strip().isdecimal() or not last.strip().isdecimal():
        raise InputError(
            "bad_range", f"--slices takes A:B, counted from 0 and without slice B itself; got {text[:60]!r}.",
            "Say --slices 10:40 for the slices 10 to 39.",
        )  # fmt: skip
    return range(int(first), int(last))
