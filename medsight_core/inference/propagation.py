"""From one slice to the next: where a region goes on, who follows it where, and what all slices make together.

A region is looked for on the neighbouring slice in two ways, by a click into its innermost pixel, and by the same click
with its mask: the mask alone insists on what it shows long after the structure has ended, the click alone strays. What
both say on average is the region there. A chain of such steps starts at a slice on which a person drew and runs in one
direction until the model sees nothing any more, or something else, or until the two do not mean the same any more.
Between two slices that a person drew on each chain goes half of the way, so that a correction counts as much as the
first click.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Prompt, Region, Span, VolumeRegion

AREA_CHANGE: Final = 4.0
"""A region that grows or shrinks by more than this factor from one slice to the next is not the same structure."""

AGREEMENT: Final = 0.3
"""Where a click and the same click with the mask share less of their masks than this, the structure has ended.

By the table in docs/volumes.md ("Following"): at 0.2 the spleen runs on, at 0.4 hippocampi break off.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one chain has to cover.

    Attributes:
        start: Slice that a person drew on.
        direction: 1 or -1.
        length: So many slices beyond the start.
    """

    start: int
    direction: int
    length: int


@dataclass(slots=True, kw_only=True, eq=False)
class Chain:
    """A region followed in one direction.

    Attributes:
        start: The region that it starts from.
        direction: 1 or -1.
        regions: Those found so far, one per slice, in the direction of the chain.
        ended: The structure ends here.
    """

    start: Region
    direction: int
    regions: list[Region] = field(default_factory=list)
    ended: bool = False

    @property
    def last(self) -> Region:
        """Where the chain stands."""
        return self.regions[-1] if self.regions else self.start

    def add(self, region: Region | None) -> None:
        """The next slice's region; None, or one that is not the same structure, ends the chain."""
        if region is None or not goes_on(self.last, region):
            self.ended = True
        else:
            self.regions.append(region)


def goes_on(before: Region, after: Region) -> bool:
    """Whether a region may be the same structure as one on the neighbouring slice: they overlap and are of a size."""
    change = after.area_pixels / before.area_pixels
    return 1 / AREA_CHANGE <= change <= AREA_CHANGE and bool((before.mask & after.mask).any())


def prompts_for(before: Region, frame: Frame) -> tuple[tuple[Prompt, ...], ...]:
    """The ways in which a region is looked for on a neighbouring slice, see above.

    Args:
        before: The region.
        frame: Of the neighbouring slice.
    """
    row, column = innermost(before.mask)
    click = Prompt(kind="point", points=frame.to_lps([(0, row, column)]))
    return (click, Prompt(kind="mask", mask=before.mask)), (click,)


def innermost(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel (row, column) of a mask, not empty, that is farthest from its border; the first of several."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    part = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    row, column = np.unravel_index(int(ndimage.distance_transform_edt(part).argmax()), part.shape)
    return top + int(row) - 1, left + int(column) - 1


def shares(starts: Iterable[int], slices: range) -> Iterator[Share]:
    """Divides a range of slices among the slices that a person drew on, each slice to the nearest one.

    Args:
        starts: They lie in ``slices``.
        slices: The range.
    """
    order = sorted(starts)
    for place, start in enumerate(order):
        lowest = slices[0] if place == 0 else (order[place - 1] + start) // 2 + 1
        highest = slices[-1] if place == len(order) - 1 else (start + order[place + 1]) // 2
        yield Share(start=start, direction=1, length=highest - start)
        yield Share(start=start, direction=-1, length=start - lowest)


def check_range(slices: range | None, starts: Sequence[int], volume: Volume) -> range:
    """Makes sure, before any work, that regions can be followed.

    Args:
        slices: Where to; None for the whole volume.
        starts: The slices that a person drew on.
        volume: The scan.

    Raises:
        InputError: one_slice, colour_volume, empty_range, slice_out_of_range.
        MedSightError: Why the volume has no regular grid.
    """
    count = volume.n_slices
    if count == 1:
        raise InputError(
            "one_slice", "This scan has one slice; there is no other that a region could be followed to.",
            "Segment the slice alone.",
        )  # fmt: skip
    if volume.is_colour:
        raise InputError(
            "colour_volume", f"This scan is {count} colour pictures, which are no volume.", "Segment one of them alone."
        )
    volume.require_frame()
    chosen = range(count) if slices is None else slices
    if not chosen:
        raise InputError(
            "empty_range", f"The range of slices from {chosen.start} to {chosen.stop} is empty.",
            f"This scan has slices 0 to {count - 1}.",
        )  # fmt: skip
    if chosen.step != 1 or chosen[0] < 0 or chosen[-1] >= count:
        raise InputError(
            "slice_out_of_range",
            f"Slices {chosen[0]} to {chosen[-1]} were asked for, but this scan has slices 0 to {count - 1}.",
            "Choose a range of neighbouring slices in that.",
        )
    if outside := [k for k in starts if k not in chosen]:
        raise InputError(
            "prompt_outside_range",
            f"Something was drawn on slice {outside[0]}, which is not among the slices {chosen[0]} to {chosen[-1]}.",
            "Widen the range, or draw on a slice in it.",
        )
    return chosen


def join(
    regions: Mapping[int, Region], *, frame: Frame, code: str, label: str, drawn_on: Iterable[int]
) -> VolumeRegion:
    """The regions of all slices as one.

    Args:
        regions: By slice; at least one.
        frame: Of the volume.
        code, label: What it is.
        drawn_on: The slices that a person drew on.

    Returns:
        With the mean score of its voxels.
    """
    mask = np.zeros(frame.shape, dtype=bool)
    for k, region in regions.items():
        mask[k] = region.mask
    areas = np.array([region.area_pixels for region in regions.values()], dtype=np.float64)
    scores = np.array([region.score for region in regions.values()])
    return VolumeRegion(
        code=code,
        label=label,
        span=Span(0, len(label)),
        score=float(np.clip(np.average(scores, weights=areas), 0.0, 1.0)),
        mask=mask,
        frame=frame,
        key_slices=tuple(drawn_on),
    )
