"""What was drawn, from the command line's pixel coordinates to the patient's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from medsight_core.errors import InputError
from medsight_core.regions import Prompt, PromptKind

if TYPE_CHECKING:
    from medsight_core.geometry import Frame

Pixel = tuple[float, float]
"""Column and row; a whole number is a pixel's centre, (0, 0) the top left pixel."""

_FORMS: Final = {"point": "X,Y", "box": "X0,Y0,X1,Y1", "scribble": "X,Y;X,Y;..."}
_LARGEST_SCRIBBLE: Final = 10_000


def parse_pixels(kind: PromptKind, text: str) -> tuple[Pixel, ...]:
    """Reads ``X,Y``, ``X0,Y0,X1,Y1`` or ``X,Y;X,Y;...``.

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
        right = kind != "box" and (len(rows) == 1 if kind == "point" else 2 <= len(rows) <= _LARGEST_SCRIBBLE)
    if not right or any(len(row) != 2 or not all(map(math.isfinite, row)) for row in rows):
        extent = " with two different corners" if kind == "box" else ""
        raise InputError(
            "bad_prompt",
            f"--{kind} takes {_FORMS[kind]}{extent}, in pixels (column, row) counted from 0; got {text[:60]!r}.",
        )
    return tuple((row[0], row[1]) for row in rows)


def place_prompts(drawn: Sequence[tuple[PromptKind, tuple[Pixel, ...]]], frame: Frame) -> Iterator[Prompt]:
    """Puts what was drawn on a slice where it lies in the patient.

    Args:
        drawn: Kind and pixels, as `parse_pixels` gives them.
        frame: Of the slice, shape (1, rows, columns).

    Raises:
        InputError: A pixel lies outside the image.
    """
    _, rows, columns = frame.shape
    for kind, pixels in drawn:
        for x, y in pixels:
            if not (-0.5 <= x <= columns - 0.5 and -0.5 <= y <= rows - 0.5):
                raise InputError(
                    "prompt_outside",
                    f"The {kind} at {x:g},{y:g} lies outside the image, which has {columns} columns and {rows} rows.",
                    f"X goes from 0 to {columns - 1}, Y from 0 to {rows - 1}.",
                )
        xy = np.array(pixels, dtype=np.float64)
        indices = np.column_stack((np.zeros(len(xy)), xy[:, 1], xy[:, 0]))
        yield Prompt(kind=kind, points=frame.to_lps(indices))
