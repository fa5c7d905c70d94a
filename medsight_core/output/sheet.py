"""A contact sheet of a volume: the slices that an answer rests on, upright and side by side, with its masks on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medsight_core.imaging.planes import reformat
from medsight_core.output.key_image import name_sides
from medsight_core.output.overlay import (
    Colour,
    Size,
    badge_place,
    badge_radius,
    canvas_size,
    draw_badge,
    letters,
    region_colours,
    region_layer,
    slice_picture,
    with_legend,
)
from medsight_core.regions import Question, VolumeRegion

MOST_TILES: Final = 12
_LONG_SIDE: Final = 1600
_GAP: Final = 6
_INK: Final = (236, 240, 244)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """One slice on the sheet.

    Attributes:
        slice_index: Which.
        question: On that slice, upright; for its picture.
        masks: Of every region, ``(rows, columns)`` bool on the upright slice.
        corner: Left and top on the sheet.
        size: Width and height.
    """

    slice_index: int
    question: Question
    masks: tuple[NDArray[np.bool_], ...]
    corner: tuple[int, int]
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sheet:
    """The whole sheet.

    Attributes:
        tiles: In the order of slices.
        regions: What is shown, numbered from 1.
        size: Width and height.
    """

    tiles: tuple[Tile, ...]
    regions: tuple[VolumeRegion, ...]
    size: Size

    def scan(self) -> Image.Image:
        """The slices without any mask, each with its number and, where they are known, the patient's sides, RGB."""
        sheet = Image.new("RGB", self.size)
        pen = ImageDraw.Draw(sheet)
        for tile in self.tiles:
            picture = slice_picture(tile.question).resize(tile.size, Image.Resampling.LANCZOS)
            if tile.question.volume.has_place:
                name_sides(picture, tile.question.volume.slice_frame(tile.slice_index))
            sheet.paste(picture, tile.corner)
            place = (tile.corner[0] + 8, tile.corner[1] + 6)
            font = letters(max(13, tile.size[0] / 26))
            pen.text(place, f"slice {tile.slice_index}", fill=_INK, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
        return sheet

    def layer(self, number: int, colour: Colour) -> Image.Image:
        """The masks of a region, RGBA of the sheet's size."""
        layer = Image.new("RGBA", self.size)
        for tile in self.tiles:
            mask = tile.masks[number - 1]
            if mask.any():
                layer.paste(region_layer(mask, colour, tile.size), tile.corner)
        return layer

    def badges(self, number: int) -> Iterator[tuple[float, float]]:
        """Where a region's number goes, on each slice that shows it."""
        for tile in self.tiles:
            place = badge_place(tile.masks[number - 1], tile.size)
            if place is not None:
                yield place[0] + tile.corner[0], place[1] + tile.corner[1]

    @property
    def badge_radius(self) -> float:
        """Of a number."""
        return 1.6 * badge_radius(self.tiles[0].size)

    def picture(self) -> Image.Image:
        """Slices, masks, numbers and the legend below, RGB."""
        colours = region_colours(self.regions)
        picture = self.scan().convert("RGBA")
        for number, colour in enumerate(colours, start=1):
            picture.alpha_composite(self.layer(number, colour))
        pen = ImageDraw.Draw(picture)
        for number, colour in enumerate(colours, start=1):
            for place in self.badges(number):
                draw_badge(pen, place, str(number), colour, radius=self.badge_radius)
        return with_legend(picture.convert("RGB"), self.regions, colours)


def make_sheet(question: Question, regions: Sequence[VolumeRegion]) -> Sheet:
    """Lays out the slices that regions rest on, and the asked one where they rest on none.

    Args:
        question: On the scan as it was read.
        regions: Found in it.
    """
    turned = reformat(question.volume)
    chosen = tile_slices(regions, otherwise=question.slice_index)
    width, height = canvas_size(Question(text="sheet", volume=turned.volume, slice_index=chosen[0]))
    columns = min(len(chosen), max(1, round(math.sqrt(len(chosen) * height / width))))
    factor = min(1.0, _LONG_SIDE / columns / width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    tiles = []
    for n, k in enumerate(chosen):
        row, column = divmod(n, columns)
        tiles.append(
            Tile(
                slice_index=k,
                question=Question(text="sheet", volume=turned.volume, slice_index=k),
                masks=tuple(turned.forth(region.mask)[k] for region in regions),
                corner=(column * (size[0] + _GAP), row * (size[1] + _GAP)),
                size=size,
            )
        )
    rows = -(-len(chosen) // columns)
    return Sheet(
        tiles=tuple(tiles),
        regions=tuple(regions),
        size=(columns * (size[0] + _GAP) - _GAP, rows * (size[1] + _GAP) - _GAP),
    )


def tile_slices(regions: Sequence[VolumeRegion], *, otherwise: int) -> list[int]:
    """The slices of a sheet, ascending: those that regions rest on, evenly thinned out where they are too many."""
    rests = sorted({k for region in regions for k in region.key_slices})
    if not rests:
        rests = sorted(
            {region.slices[0] + (region.slices[1] - region.slices[0]) // 2 for region in regions if region.slices}
        )
    if not rests:
        return [otherwise]
    if len(rests) <= MOST_TILES:
        return rests
    return [rests[round(n)] for n in np.linspace(0, len(rests) - 1, MOST_TILES)]
