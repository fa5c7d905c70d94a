"""Simulated prompts: what a person would draw to point at a mask, sometimes clumsily, sometimes beside it."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medsight_core.prompt_raster import Mark

KINDS = {"point": 0.5, "box": 0.2, "scribble": 0.15, "mask": 0.15}


def point_inside(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pixel `(column, row)` inside a mask, likelier away from its border."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    weight = depth.ravel() ** 1.5
    row, column = np.unravel_index(rng.choice(weight.size, p=weight / weight.sum()), mask.shape)
    return np.array([column, row], float)


def point_outside(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A pixel `(column, row)` at some distance outside a mask; None where there is none."""
    distance = ndimage.distance_transform_edt(~mask)
    far = max(mask.shape) * 0.04
    candidates = np.flatnonzero(distance > far)
    if not candidates.size:
        return None
    row, column = np.unravel_index(rng.choice(candidates), mask.shape)
    return np.array([column, row], float)


def simulate(mask: np.ndarray, rng: np.random.Generator, kind: str | None = None) -> list[Mark]:
    """Marks that point at a mask.

    Args:
        mask: `(height, width)` bool, not empty.
        rng: source of randomness.
        kind: one of `KINDS`; drawn at random when None.
    """
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "point":
        marks = [Mark(kind="point", xy=point_inside(mask, rng)[None])]
        while rng.random() < 0.25:
            marks.append(Mark(kind="point", xy=point_inside(mask, rng)[None]))
        if rng.random() < 0.25 and (away := point_outside(mask, rng)) is not None:
            marks.append(Mark(kind="point", xy=away[None], positive=False))
        return marks
    if kind == "box":
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        corners = np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]], float)
        extent = corners[1] - corners[0] + 1
        return [Mark(kind="box", xy=corners + rng.normal(0, 0.06, (2, 2)) * extent)]
    if kind == "scribble":
        ends = np.stack([point_inside(mask, rng) for _ in range(int(rng.integers(2, 4)))])
        shaky = ends + rng.normal(0, 0.5, ends.shape)
        last = np.array(mask.shape[::-1]) - 1  # nobody draws beside the image
        return [Mark(kind="scribble", xy=np.clip(shaky, 0, last))]
    return [Mark(kind="mask", mask=distort(mask, rng).astype(np.float32))]


def distort(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask as a neighbouring slice or an earlier guess would have it: shifted, grown or shrunk, partly wrong."""
    side = max(mask.shape)
    moved = ndimage.shift(mask.astype(np.uint8), rng.normal(0, 0.015 * side, 2).round(), order=0) > 0
    steps = int(rng.integers(-2, 3)) * max(1, side // 128)
    if steps > 0:
        moved = ndimage.binary_dilation(moved, iterations=steps)
    elif steps < 0 and (shrunk := ndimage.binary_erosion(moved, iterations=-steps)).any():
        moved = shrunk
    return moved if moved.any() else mask


def correct(marks: list[Mark], guess: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> list[Mark]:
    """The next step of a person who refines: the guess so far goes along, with a click into what is wrong with it.

    Args:
        marks: what was drawn until now.
        guess: what that yielded `(height, width)` bool; an empty one is not worth sending.
        truth: what the person means.
        rng: source of randomness.

    Returns:
        All marks of the next step; an earlier mask gives way to the guess.
    """
    drawn = [mark for mark in marks if mark.kind != "mask"]
    missed, extra = truth & ~guess, guess & ~truth
    if missed.any() or extra.any():
        positive = bool(missed.sum() >= extra.sum())
        place = point_inside(missed if positive else extra, rng)
        drawn.append(Mark(kind="point", xy=place[None], positive=positive))
    return [*drawn, Mark(kind="mask", mask=guess.astype(np.float32))] if guess.any() else drawn


def marks_for(
    masks: np.ndarray,
    rng: np.random.Generator,
    *,
    misplaced: float,
    neighbours: Sequence[tuple[np.ndarray, int | None]] = (),
) -> tuple[list[Mark], int | None, int | None]:
    """A prompt on one image.

    Args:
        masks: targets `(targets, height, width)` bool.
        rng: source of randomness.
        misplaced: share of prompts that point at nothing.
        neighbours: masks of the neighbouring slices, each with the target that it goes on as (None where it ends);
            some prompts are such a mask.

    Returns:
        Marks; the target they were drawn for; the target that they mean without a word, the smallest one under a click
        or scribble. Both are None for a prompt at nothing; no marks when there is no such place.
    """
    if neighbours and rng.random() < 0.4:
        mask, goes_on = neighbours[int(rng.integers(len(neighbours)))]
        if goes_on is not None and not masks[goes_on].any():
            goes_on = None
        return [Mark(kind="mask", mask=mask.astype(np.float32))], goes_on, goes_on
    areas = masks.reshape(len(masks), -1).sum(1) if len(masks) else np.zeros(0)
    visible = np.flatnonzero(areas > 3)
    if not len(visible) or rng.random() < misplaced:
        away = point_outside(np.logical_or.reduce(masks, axis=0), rng)
        return ([] if away is None else [Mark(kind="point", xy=away[None])]), None, None
    drawn = int(rng.choice(visible))
    marks = simulate(masks[drawn], rng)
    if marks[0].kind in ("point", "scribble") and marks[0].xy is not None:
        return marks, drawn, smallest_under(masks, visible, marks[0].xy)
    return marks, drawn, drawn


def smallest_under(masks: np.ndarray, visible: np.ndarray, xy: np.ndarray) -> int:
    """The smallest of the visible masks that holds most of the marked pixels `(n, 2)` (column, row)."""
    columns, rows = np.clip(np.rint(xy).astype(int), 0, np.array(masks.shape[:0:-1]) - 1).T
    hits = masks[visible][:, rows, columns].mean(1)
    areas = masks[visible].reshape(len(visible), -1).sum(1)
    return int(visible[np.lexsort((areas, -hits))[0]])
