"""Simulated prompts point at what they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medsight_core.prompt_raster import CHANNELS, draw
from training.data.prompts import (
    KINDS,
    correct,
    distort,
    marks_for,
    point_inside,
    point_outside,
    simulate,
    smallest_under,
)

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(6, 60), st.integers(6, 60))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Blobs, specks and whole pictures, in any number of pieces, never empty."""
    shape, seed = draw(SHAPES), draw(SEEDS)
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), draw(st.floats(0, 4)))
    share = draw(st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0]))
    mask: np.ndarray = smooth >= np.quantile(smooth, 1 - share)
    assume(mask.any())
    return mask


def holds(mask: np.ndarray, xy: np.ndarray) -> bool:
    """Whether every (column, row) is a pixel of the mask."""
    return all(bool(mask[int(row), int(column)]) for column, row in xy)


@given(mask=masks(), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_points_inside_lie_inside(mask: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(5):
        xy = point_inside(mask, rng)
        assert xy.shape == (2,) and (xy == np.rint(xy)).all()
        assert holds(mask, xy[None])


@given(mask=masks(), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_points_outside_lie_outside(mask: np.ndarray, seed: int) -> None:
    """At a distance from the mask, or None where there is no such place."""
    xy = point_outside(mask, np.random.default_rng(seed))
    far = 0.04 * max(mask.shape)
    rows, columns = np.where(mask)
    if xy is None:
        assert not (ndimage.distance_transform_edt(~mask) > far).any()
        return
    assert 0 <= xy[0] < mask.shape[1] and 0 <= xy[1] < mask.shape[0]
    assert np.hypot(columns - xy[0], rows - xy[1]).min() > far


def test_points_prefer_the_depth_of_a_region() -> None:
    """A person clicks the middle of things rather than their rim."""
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    rng = np.random.default_rng(0)
    depth = ndimage.distance_transform_edt(mask)
    clicked = np.mean([depth[int(y), int(x)] for x, y in (point_inside(mask, rng) for _ in range(300))])
    assert clicked > 1.3 * depth[mask].mean()


@pytest.mark.parametrize("kind", [*KINDS, None])
@given(mask=masks(), seed=SEEDS)
@example(mask=np.pad([[True]], ((5, 0), (5, 0))), seed=6)  # in a corner, where a shaky hand leaves the image
@settings(max_examples=40, deadline=None)
def test_positive_marks_point_at_the_mask(kind: str | None, mask: np.ndarray, seed: int) -> None:
    """Points lie in it and negative ones do not; boxes, scribbles and masks touch it; all of them can be drawn."""
    marks = simulate(mask, np.random.default_rng(seed), kind)
    assert marks and all(mark.kind == (kind or marks[0].kind) for mark in marks)
    assert marks[0].positive
    near = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=3)
    for mark in marks:
        if mark.kind == "point":
            assert mark.xy is not None and mark.xy.shape == (1, 2)
            assert holds(mask, mark.xy) == mark.positive
        elif mark.kind == "scribble":
            assert mark.xy is not None and 2 <= len(mark.xy) <= 3
            inner = np.clip(np.rint(mark.xy), 0, np.array(mask.shape[::-1]) - 1)
            assert holds(near, inner)
    raster = draw(marks, mask.shape)
    assert raster.shape == (len(CHANNELS), *mask.shape)
    positive = sum(raster[i] for i, name in enumerate(CHANNELS) if not name.startswith("negative"))
    assert positive.max() > 0.5, "a prompt that leaves no trace"


@given(mask=masks(), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_box_is_about_the_extent(mask: np.ndarray, seed: int) -> None:
    """Each side off by a small share of the extent, as a hand would have it."""
    (mark,) = simulate(mask, np.random.default_rng(seed), "box")
    assert mark.xy is not None
    rows, columns = np.where(mask)
    exact = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]], float)
    extent = exact[1] - exact[0] + 1
    assert (np.abs(mark.xy - exact) <= 0.4 * extent).all()


@given(mask=masks(), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_distorted_mask_is_a_mask_nearby(mask: np.ndarray, seed: int) -> None:
    found = distort(mask, np.random.default_rng(seed))
    assert found.shape == mask.shape and found.dtype == bool and found.any()
    reach = int(0.015 * max(mask.shape) * 6) + 4
    assert not (found & ~ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=reach)).any()


def test_every_kind_occurs_as_often_as_stated() -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:15, 6:12] = True
    rng = np.random.default_rng(1)
    counts = dict.fromkeys(KINDS, 0)
    for _ in range(800):
        counts[simulate(mask, rng)[0].kind] += 1
    for kind, share in KINDS.items():
        assert counts[kind] / 800 == pytest.approx(share, abs=0.06)


@given(seed=SEEDS, count=st.integers(0, 4), misplaced=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=80, deadline=None)
def test_marks_for_an_image(seed: int, count: int, misplaced: float) -> None:
    """A prompt at a target means the smallest thing under it; a prompt at nothing is away from everything."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((count, 30, 40)), (0, 3, 3))
    targets = noise > rng.uniform(0, 0.15, (count, 1, 1))
    marks, drawn, under = marks_for(targets, rng, misplaced=misplaced)
    visible = [i for i in range(count) if targets[i].sum() > 3]
    assert (drawn is None) == (under is None)
    if drawn is None or under is None:
        assert misplaced > 0 or not visible
        for mark in marks:
            assert mark.kind == "point" and mark.positive and mark.xy is not None
            assert not any(holds(target, mark.xy) for target in targets)
        return
    assert misplaced < 1
    assert {drawn, under} <= set(visible)
    first = marks[0]
    if first.kind == "point" and first.xy is not None:
        assert holds(targets[drawn], first.xy) and holds(targets[under], first.xy)
        smaller = [i for i in visible if targets[i].sum() < targets[under].sum()]
        assert not any(holds(targets[i], first.xy) for i in smaller)
    elif first.kind in ("box", "mask"):
        assert under == drawn


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_correction_clicks_into_what_is_wrong(seed: int) -> None:
    """The click lies in the larger error and says so; the guess goes along in place of an earlier mask."""
    rng = np.random.default_rng(seed)
    truth, guess = ndimage.gaussian_filter(rng.standard_normal((2, 30, 40)), (0, 3, 3)) > 0.05
    earlier = [*simulate(truth, rng, "box"), *simulate(truth, rng, "mask")]
    marks = correct(earlier, guess, truth, rng)
    assert [mark.kind for mark in marks[:1]] == ["box"]
    masks = [mark.mask for mark in marks if mark.kind == "mask"]
    assert len(masks) == bool(guess.any()) and all((mask == guess).all() for mask in masks)
    clicks = [mark for mark in marks if mark.kind == "point"]
    missed, extra = truth & ~guess, guess & ~truth
    assert len(clicks) == bool((truth != guess).any())
    for click in clicks:
        assert click.positive == bool(missed.sum() >= extra.sum())
        assert holds(missed if click.positive else extra, click.xy)


def test_a_right_guess_needs_no_click() -> None:
    truth = np.zeros((9, 9), bool)
    truth[2:6, 3:7] = True
    marks = correct([], truth, truth, np.random.default_rng(0))
    assert [mark.kind for mark in marks] == ["mask"]


def test_a_neighbouring_slice_may_be_the_prompt() -> None:
    """Its mask as it is, meaning the target that it goes on as, or nothing where that has ended or left the view."""
    here, there = np.zeros((2, 12, 12), bool)
    here[3:9, 3:9] = there[2:8, 3:9] = True
    masks = np.stack([here, np.zeros_like(here)])
    for goes_on, meant in ((0, 0), (None, None), (1, None)):
        seen = 0
        for seed in range(40):
            marks, drawn, under = marks_for(
                masks, np.random.default_rng(seed), misplaced=0.0, neighbours=[(there, goes_on)]
            )
            if marks[0].kind == "mask" and marks[0].mask is not None and (marks[0].mask == there).all():
                seen += 1
                assert (drawn, under) == (meant, meant)
        assert seen > 5


def test_no_room_no_mark() -> None:
    """A target that fills the image leaves no place to miss it."""
    everything = np.ones((1, 12, 12), bool)
    assert marks_for(everything, np.random.default_rng(0), misplaced=1.0) == ([], None, None)


def test_smallest_under_counts_marked_pixels() -> None:
    """Most of the marked pixels first, then the smaller mask; places beyond the grid count for its rim."""
    masks = np.zeros((3, 10, 12), bool)
    masks[0] = True
    masks[1, 2:6, 2:6] = True
    masks[2, 4:6, 4:6] = True
    visible = np.arange(3)
    assert smallest_under(masks, visible, np.array([[4.0, 5.0]])) == 2
    assert smallest_under(masks, visible, np.array([[2.0, 3.0]])) == 1
    assert smallest_under(masks, visible, np.array([[11.0, 9.0]])) == 0
    assert smallest_under(masks, visible, np.array([[40.0, -3.0]])) == 0
    assert smallest_under(masks, visible, np.array([[2.0, 2.0], [5.0, 5.0]])) == 1
    assert smallest_under(masks, np.array([0, 2]), np.array([[2.0, 3.0]])) == 0
