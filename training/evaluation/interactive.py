"""Simulated people who click: how good a region is after one, two and three clicks, or with a box.

The first click goes where a person would click, each further one into the middle of what is most wrong (as in RITM and
SAM: the error that reaches deepest, be something missing or too much). What is measured is the product: prompts go
through `Session` as the viewer's do, masks are compared on the grid of the truth.

A click on nothing must give nothing. Where an image shows anatomy that nobody outlined, a region there would be no
mistake; so such clicks are made only on images on which no known structure can have gone without an outline.
"""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.imaging.windowing import display
from medsight_core.regions import Prompt, Region
from training.evaluation.manifest import Row, read_mask
from training.evaluation.metrics import Mask, dice, squared_depth, words
from training.evaluation.segmentation import on_grid, places_on

CLICKS: Final = ("click_1", "click_2", "click_3")
BACKGROUND_SEEDS: Final = (0, 1, 2)
"""One click on nothing per seed and image."""

AWAY: Final = 0.04
"""How far a click on nothing stays from every outline, as a share of the image's longer side."""

_FINDINGS: Final = words(
    "tumor lesion polyp nevus melanoma glioma nodule cyst mass opacity consolidation effusion edema infection"
)
"""Where a data set outlines findings it outlines all of them; anatomy it leaves out where it is not its subject."""

_DARK: Final = 8
"""Grey of a picture's padding at most: JPEG leaves some noise in it."""


class Clicked(Protocol):
    """What a session tells."""

    @property
    def pointed(self) -> Any: ...
    def add(self, prompt: Prompt, slice_index: int) -> Region | None: ...


OpenSession = Callable[[Volume], Clicked]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One mask and what clicks made of it.

    Attributes:
        row: The line of the manifest.
        dice: By step: "click_1", "click_2", "click_3", "box".
        nothing: How much likelier "no object" was at the first click than the likeliest class, -1 to 1.
        seconds: By step.
    """

    row: Row
    dice: Mapping[str, float]
    nothing: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A click on nothing.

    Attributes:
        row: A line of the image.
        seed: Which click of this image.
        xy: Column and row.
        region: Whether there was a region all the same.
        nothing: How much likelier "no object" was than the likeliest class, -1 to 1.
    """

    row: Row
    seed: int
    xy: tuple[int, int]
    region: bool
    nothing: float


def honest(images: Sequence[Sequence[Row]], known: Iterable[Row], *, apart: Sequence[str]) -> list[Sequence[Row]]:
    """The images on which a click beside all outlines is a click on nothing.

    Those without anatomy that any data set outlines in the same view of the same part of the body, and this image not.

    Args:
        images: To choose from.
        known: All rows there are: they say what is outlined where.
        apart: Data sets that do not count, neither as images nor as knowledge: they take one image of everything.
    """
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in known:
        if row.dataset not in apart and row.target is not None:
            seen[_view(row)].add(row.target)
    chosen = []
    for rows in images:
        here = {row.target for row in rows if row.mask is not None}
        missing = seen[_view(rows[0])] - here
        if rows[0].dataset not in apart and all(words(target) & _FINDINGS for target in missing):
            chosen.append(rows)
    return chosen


def _view(row: Row) -> tuple[str, str]:
    return row.modality.casefold(), row.site.casefold()


def next_click(prediction: Mask, truth: Mask) -> tuple[int, int, bool] | None:
    """Where a person would click next: (row, column, positive); None where nothing is wrong.

    Of the two kinds of error the one that reaches deeper is clicked, a missing part first where they are equal.
    """
    missing, extra = squared_depth(truth & ~prediction), squared_depth(prediction & ~truth)
    depth = missing if missing.max() >= extra.max() else extra
    if not depth.max():
        return None
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return int(row), int(column), depth is missing


def click_through(
    open_session: OpenSession, images: Sequence[Sequence[Row]], root: Path, *, on_progress: Callable[[int], None]
) -> Iterator[Interaction]:
    """Clicks on every mask of every image, and draws a box around it.

    Masks of one image that are the same under two names are clicked once.

    Args:
        open_session: Begins work on a scan; sessions of one scan share its features.
        images: Rows of each image.
        root: Folder that the manifest's paths start from.
        on_progress: Told after each image how many masks it had.
    """
    for rows in images:
        volume = open_volume(root / rows[0].image)
        done: dict[bytes, Interaction] = {}
        for row in rows:
            assert row.mask is not None and row.target is not None  # rows without a mask were left out
            truth = read_mask(root / row.mask)
            key = truth.tobytes() + repr(truth.shape).encode()
            if key not in done:
                done[key] = _work_on(row, truth, volume, open_session)
            same = done[key]
            yield Interaction(row=row, dice=same.dice, nothing=same.nothing, seconds=same.seconds)
        on_progress(len(rows))


def _work_on(row: Row, truth: Mask, volume: Volume, open_session: OpenSession) -> Interaction:
    k = volume.middle
    frame = volume.slice_frame(k)
    dices: dict[str, float] = {}
    seconds: dict[str, float] = {}

    def step(name: str, session: Clicked, prompt: Prompt) -> Mask:
        started = time.perf_counter()
        region = session.add(prompt, k)
        seconds[name] = time.perf_counter() - started
        found = np.zeros(truth.shape, bool) if region is None else on_grid(region.mask, truth.shape)
        dices[name] = dice(found, truth)
        return found

    session, found, nothing = open_session(volume), np.zeros(truth.shape, bool), 0.0
    for name in CLICKS:
        click = next_click(found, truth)
        if click is None:  # perfect: nobody clicks any more
            dices[name] = 1.0
            continue
        y, x, positive = click
        prompt = Prompt(kind="point", points=places_on(frame, [(x, y)], truth.shape), positive=positive)
        found = step(name, session, prompt)
        if name == CLICKS[0]:
            nothing = session.pointed.nothing - session.pointed.something
    step("box", open_session(volume), tight_box(truth, frame))
    return Interaction(row=row, dice=dices, nothing=nothing, seconds=seconds)


def tight_box(truth: Mask, frame: Frame) -> Prompt:
    """A box around all of a mask, along the outer edges of its outermost pixels."""
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    corners = [(columns[0] - 0.5, rows[0] - 0.5), (columns[-1] + 0.5, rows[-1] + 0.5)]
    return Prompt(kind="box", points=places_on(frame, corners, truth.shape))


def click_on_nothing(
    open_session: OpenSession,
    images: Sequence[Sequence[Row]],
    root: Path,
    *,
    seeds: Sequence[int] = BACKGROUND_SEEDS,
    on_progress: Callable[[int], None],
) -> Iterator[Background]:
    """One click per seed on every image, at a distance from all its outlines.

    Args:
        open_session: As for `click_through`.
        images: Those that `honest` chose; an image without such a place is passed over.
        root: Folder that the manifest's paths start from.
        seeds: Of the random places; the same ones on every machine.
        on_progress: Told after each image how many clicks were meant for it.
    """
    for rows in images:
        volume = open_volume(root / rows[0].image)
        k = volume.middle
        frame = volume.slice_frame(k)
        shape = (frame.shape[1], frame.shape[2])
        taken = np.zeros(shape, bool)
        for row in rows:
            if row.mask is not None:
                taken |= on_grid(read_mask(root / row.mask), shape)
        free = free_places(display(volume, k), taken)
        for seed in seeds if len(free) else ():
            number = np.random.default_rng([seed, zlib.crc32(rows[0].image.encode())]).integers(len(free))
            y, x = (int(n) for n in free[number])
            session = open_session(volume)
            region = session.add(Prompt(kind="point", points=places_on(frame, [(x, y)], shape)), k)
            margin = session.pointed.nothing - session.pointed.something
            yield Background(row=rows[0], seed=seed, xy=(x, y), region=region is not None, nothing=margin)
        on_progress(len(seeds))


def free_places(picture: NDArray[np.uint8], taken: Mask) -> NDArray[np.intp]:
    """Pixels ``(n, 2)`` (row, column) at a distance from all that is outlined and inside the picture's padding."""
    bright = picture.max(axis=2) > _DARK
    inside = np.zeros(taken.shape, bool)
    if bright.any():
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    far = ndimage.distance_transform_edt(~taken) > AWAY * max(taken.shape) if taken.any() else ~taken
    return np.argwhere(inside & far)
