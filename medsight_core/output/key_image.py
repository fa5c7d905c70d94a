"""The picture that shows a finding best: the slice of its longest diameter, with its mask and both diameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from medsight_core.geometry import FloatArray, Frame
from medsight_core.imaging.planes import Reformatted, reformat
from medsight_core.imaging.volume import Volume
from medsight_core.measure import Line, Measurements
from medsight_core.output.overlay import (
    Colour,
    badge_place,
    badge_radius,
    canvas_size,
    draw_badge,
    letters,
    region_layer,
    slice_picture,
)
from medsight_core.regions import Question, VolumeRegion

_INK, _RIM = (255, 255, 255, 255), (13, 17, 23, 200)
# Names of the directions of the body, by LPS axis, towards smaller and larger coordinates (DICOM PS3.3 C.7.6.1.1.1).
_LETTERS: Final = (("R", "L"), ("A", "P"), ("F", "H"))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyImage:
    """One slice upright, as a person looks at it.

    Attributes:
        slice_index: Of the scan as it was read.
        scan: RGB.
        marks: RGBA of the same size, to be laid on top: masks, diameters, numbers.
    """

    slice_index: int
    scan: Image.Image
    marks: Image.Image

    @property
    def flat(self) -> Image.Image:
        """Both in one, RGB."""
        return Image.alpha_composite(self.scan.convert("RGBA"), self.marks).convert("RGB")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """A region as a picture shows it: with its number and its colour in the report."""

    number: int
    region: VolumeRegion
    measured: Measurements
    colour: Colour


def key_image(volume: Volume, shown: Sequence[Shown], slice_index: int) -> KeyImage:
    """Draws one slice with the parts of the regions that lie on it.

    Letters at the rim say where the patient's sides are, wherever the scan knows that.
    """
    turned = reformat(volume)
    question = Question(text="key image", volume=turned.volume, slice_index=_place(turned, slice_index))
    size = canvas_size(question)
    scan = slice_picture(question)
    if volume.has_place:
        name_sides(scan, turned.volume.slice_frame(question.slice_index))
    marks = Image.new("RGBA", size)
    for one in shown:
        mask = turned.forth(one.region.mask)[question.slice_index]
        if mask.any():
            marks.alpha_composite(region_layer(mask, one.colour, size))
    pen = ImageDraw.Draw(marks)
    for one in shown:
        for line in (one.measured.diameter, one.measured.perpendicular):
            if line.slice_index == slice_index:
                _draw_line(pen, list(_ends(line, turned.volume, size)), width=max(2, round(max(size) / 420)))
    for one in shown:
        place = badge_place(turned.forth(one.region.mask)[question.slice_index], size)
        if place is not None:
            # Beside the crossing of the diameters, which lies where the number would.
            radius = badge_radius(size)
            place = (min(place[0] + 1.6 * radius, size[0] - radius), max(place[1] - 1.6 * radius, radius))
            draw_badge(pen, place, str(one.number), one.colour, radius=radius)
    return KeyImage(slice_index=slice_index, scan=scan, marks=marks)


def _place(turned: Reformatted, slice_index: int) -> int:
    """Where a slice of the scan lies among the upright ones."""
    return next(k for k in range(turned.volume.n_slices) if turned.index(k) == slice_index)


def _ends(line: Line, volume: Volume, size: tuple[int, int]) -> Iterator[tuple[float, float]]:
    frame = volume.require_frame()
    _, rows, columns = frame.shape
    for point in (line.start, line.end):
        _, row, column = frame.to_index(point)
        yield float(column + 0.5) * size[0] / columns, float(row + 0.5) * size[1] / rows


def _draw_line(pen: ImageDraw.ImageDraw, ends: list[tuple[float, float]], width: int) -> None:
    (x0, y0), (x1, y1) = ends
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
    tick = 3.0 * width
    across = ((y0 - y1) / length * tick, (x1 - x0) / length * tick)
    strokes = [((x0, y0), (x1, y1))]
    strokes += [((x - across[0], y - across[1]), (x + across[0], y + across[1])) for x, y in ends]
    for colour, thickness in ((_RIM, width + 3), (_INK, width)):
        for stroke in strokes:
            pen.line(stroke, fill=colour, width=thickness)


def name_sides(picture: Image.Image, frame: Frame) -> None:
    """Writes at each rim of an upright slice which side of the patient lies there."""
    pen = ImageDraw.Draw(picture)
    wide, high = picture.size
    unit = max(picture.size) / 36
    right, down = frame.direction[:, 2], frame.direction[:, 1]
    places = (
        ((wide - unit, high / 2), _side(right)),
        ((unit, high / 2), _side(-right)),
        ((wide / 2, high - unit), _side(down)),
        ((wide / 2, unit), _side(-down)),
    )
    for place, letter in places:
        pen.text(
            place,
            letter,
            fill=(236, 240, 244),
            font=letters(unit),
            anchor="mm",
            stroke_width=2,
            stroke_fill=(13, 17, 23),
        )


def _side(direction: FloatArray) -> str:
    """The side of the patient a direction in LPS points to; two letters where it is oblique."""
    parts = sorted(((abs(float(v)), _LETTERS[axis][int(v > 0)]) for axis, v in enumerate(direction)), reverse=True)
    return "".join(letter for size, letter in parts[:2] if size > 0.34) or parts[0][1]
