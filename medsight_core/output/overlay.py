"""Pictures of an answer: the slice as a person sees it, with coloured masks, numbers and a legend.

Regions are numbered from 1 in the order of the answer, in every picture, table and page: colour is never the only thing
that tells two of them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from medsight_core.imaging.windowing import display
from medsight_core.regions import Question, Region, VolumeRegion
from medsight_core.terminology import display_colours

RESEARCH_USE: Final = "Research use only. Not a medical device."

# Long side of the picture: small images are enlarged so that contours and numbers have room, large ones are reduced.
_SMALLEST, _LARGEST = 960, 1600
_FILL: Final = 0.30
# A number hides a region whose area is less than this many times the square of its radius.
_COVERED: Final = 30.0
_INK, _QUIET, _PAPER = (236, 240, 244), (150, 160, 172), (13, 17, 23)

Colour = tuple[int, int, int]
Size = tuple[int, int]


def region_colours(regions: Iterable[Region | VolumeRegion]) -> list[Colour]:
    """A colour per region: one label has one colour everywhere."""
    return [colour.rgb for colour in display_colours(region.label for region in regions)]


def canvas_size(question: Question) -> Size:
    """Width and height at which the asked slice is drawn, in its true proportions where the spacing is known."""
    frame = question.volume.slice_frame(question.slice_index)
    _, rows, columns = frame.shape
    height, width = float(rows), float(columns)
    if frame.physical:
        height, width = rows * float(frame.spacing[1]), columns * float(frame.spacing[2])
    long_side = min(max(rows, columns, _SMALLEST), _LARGEST)
    factor = long_side / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def slice_picture(question: Question) -> Image.Image:
    """The asked slice as a person sees it, RGB at `canvas_size`."""
    picture = Image.fromarray(np.ascontiguousarray(display(question.volume, question.slice_index)))
    return picture.convert("RGB").resize(canvas_size(question), Image.Resampling.LANCZOS)


def region_layer(mask: NDArray[np.bool_], colour: Colour, size: Size) -> Image.Image:
    """One mask as a transparent picture: a translucent fill inside a contour with a dark rim.

    Args:
        mask: (rows, columns) bool.
        colour: Of fill and contour.
        size: Width and height to draw at; the contour runs along the mask's edge at that size.

    Returns:
        RGBA picture of ``size``.
    """
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    inside = np.asarray(grey, dtype=np.float32) / 255.0
    unit = max(size) / 1000.0
    # Blurred, the mask falls from 1 to 0 across its edge and is one half on it: a smooth line without jagged steps.
    line = _band(grey, 1.0 * unit)
    rim = _band(grey, 2.4 * unit)
    fill = np.clip(inside * 4 - 1.5, 0, 1) * _FILL
    # The rim lies under the colour, so that a contour shows on white bone and on black air alike.
    return Image.alpha_composite(_tinted(_PAPER, 0.6 * rim), _tinted(colour, np.maximum(line, fill)))


def _tinted(colour: Colour, alpha: NDArray[np.float32]) -> Image.Image:
    layer = np.empty((*alpha.shape, 4), dtype=np.uint8)
    layer[..., :3] = colour
    layer[..., 3] = np.round(alpha * 255)
    return Image.fromarray(layer)


def _band(mask: Image.Image, radius: float) -> NDArray[np.float32]:
    blurred = np.asarray(mask.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255.0
    band: NDArray[np.float32] = np.clip((1.0 - np.abs(2.0 * blurred - 1.0)) * 2.2, 0.0, 1.0)
    return band


def badge_place(mask: NDArray[np.bool_], size: Size) -> tuple[float, float] | None:
    """Where a region's number goes, as x and y in a picture of ``size``; None for an empty mask.

    Well inside the mask; beside it where the number would hide it.
    """
    if not mask.any():
        return None
    rows, columns = mask.shape
    scale_x, scale_y = size[0] / columns, size[1] / rows
    area = float(np.count_nonzero(mask))
    radius = badge_radius(size)
    if area * scale_x * scale_y < _COVERED * radius**2:
        column, row = np.flatnonzero(mask.any(axis=0))[-1] + 1, np.flatnonzero(mask.any(axis=1))[0]
        x, y = column * scale_x + radius, row * scale_y - radius
        if x + radius > size[0]:
            x = np.flatnonzero(mask.any(axis=0))[0] * scale_x - radius
        if y - radius < 0:
            y = (np.flatnonzero(mask.any(axis=1))[-1] + 1) * scale_y + radius
        return float(x), float(y)
    # The blurred mask is highest deep inside its largest part, which the centroid of a crescent is not.
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(max(1.0, area**0.5 / 4)))
    depth = np.where(mask, np.asarray(blurred, dtype=np.int16) + 1, 0)
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return (float(column) + 0.5) * scale_x, (float(row) + 0.5) * scale_y


def badge_radius(size: Size) -> float:
    """Of the number on a region, in pixels of a picture of ``size``."""
    return max(size) / 72


def overlay(question: Question, regions: Sequence[Region]) -> Image.Image:
    """The asked slice with all masks, a number on each, and a legend below.

    Returns:
        RGB picture.
    """
    size = canvas_size(question)
    colours = region_colours(regions)
    picture = slice_picture(question).convert("RGBA")
    drawn = [
        (number, region.mask, colour)
        for number, (region, colour) in enumerate(zip(regions, colours, strict=True), start=1)
        if region.slice_index == question.slice_index
    ]
    for _, mask, colour in drawn:
        picture.alpha_composite(region_layer(mask, colour, size))
    draw = ImageDraw.Draw(picture)
    for number, mask, colour in drawn:
        place = badge_place(mask, size)
        if place is not None:
            draw_badge(draw, place, str(number), colour, radius=badge_radius(size))
    return with_legend(picture.convert("RGB"), regions, colours)


def draw_badge(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], text: str, colour: Colour, radius: float
) -> None:
    """A number in a disc with a rim in its region's colour."""
    x, y = centre
    draw.ellipse(
        (x - radius, y - radius, x + radius, y + radius), fill=_PAPER, outline=colour, width=max(2, round(radius / 6))
    )
    draw.text((x, y), text, fill=_INK, font=letters(radius * 1.25), anchor="mm")


def with_legend(
    picture: Image.Image, regions: Sequence[Region | VolumeRegion], colours: Sequence[Colour]
) -> Image.Image:
    """A picture with a legend below: number, label and score of each region."""
    unit = max(picture.size) / 44  # one line's letters
    margin, line = unit * 1.0, unit * 1.9
    font, small = letters(unit), letters(unit * 0.75)
    ruler = ImageDraw.Draw(picture)
    texts = [(region.label or region.code, _score_text(region)) for region in regions]
    room = max(
        (ruler.textlength(label, font) + ruler.textlength(score, small) + unit * 5 for label, score in texts),
        default=0.0,
    )
    columns = max(1, min(len(texts), int((picture.width - margin) // max(room, 1.0))))
    rows = -(-len(texts) // columns) if texts else 1
    height = round(margin * 1.6 + rows * line + unit * 1.3)
    canvas = Image.new("RGB", (max(picture.width, round(room + margin)), picture.height + height), _PAPER)
    canvas.paste(picture, ((canvas.width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    top = picture.height + margin * 0.8
    if not texts:
        draw.text((margin, top + line / 2), "No region was found.", fill=_INK, font=font, anchor="lm")
    for place, ((label, score), colour) in enumerate(zip(texts, colours, strict=True)):
        # Column by column, so that the numbers read downwards.
        column, row = divmod(place, rows)
        x = margin + column * (canvas.width - margin) / columns
        y = top + (row + 0.5) * line
        draw_badge(draw, (x + unit * 0.75, y), str(place + 1), colour, radius=unit * 0.75)
        x += unit * 2.1
        draw.text((x, y), label, fill=_INK, font=font, anchor="lm")
        draw.text((x + draw.textlength(label, font) + unit * 0.8, y), score, fill=_QUIET, font=small, anchor="lm")
    draw.text((margin, canvas.height - margin * 0.8), RESEARCH_USE, fill=_QUIET, font=letters(unit * 0.68), anchor="lm")
    return canvas


def _score_text(region: Region | VolumeRegion) -> str:
    return f"{region.certainty} {region.score:.2f}"


def letters(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all pictures, ``size`` pixels high."""
    return ImageFont.load_default(size=max(8.0, size))
