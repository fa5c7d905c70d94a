"""Prompts drawn on a grid: each kind where it was drawn, in its own channel, whatever the grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsight_core.prompt_raster import CHANNELS, POINT_SIGMA, Mark, draw

SIZES = st.tuples(st.integers(8, 120), st.integers(8, 120))


def channel(raster: np.ndarray, name: str) -> np.ndarray:
    found: np.ndarray = raster[CHANNELS.index(name)]
    return found


def places(size: tuple[int, int]) -> st.SearchStrategy[tuple[float, float]]:
    """(column, row) inside a grid, pixel centres at whole numbers."""
    return st.tuples(st.floats(0, size[1] - 1), st.floats(0, size[0] - 1))


@given(size=SIZES, positive=st.booleans(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_point_is_a_gaussian_at_its_place(size: tuple[int, int], positive: bool, data: st.DataObject) -> None:
    x, y = data.draw(places(size))
    raster = draw([Mark(kind="point", xy=np.array([[x, y]]), positive=positive)], size)
    assert raster.shape == (len(CHANNELS), *size) and raster.dtype == np.float32
    plane = channel(raster, "point" if positive else "negative point")
    sigma = max(POINT_SIGMA * max(size), 0.5)
    rows, columns = np.indices(size)
    expected = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(plane, expected, atol=1e-6)
    assert raster.sum() == pytest.approx(plane.sum()), "a point is in its own channel alone"


@given(size=SIZES, data=st.data())
@settings(max_examples=50, deadline=None)
def test_box_is_filled_between_its_corners(size: tuple[int, int], data: st.DataObject) -> None:
    """Either diagonal, corners beyond the grid cut off."""
    beyond = st.tuples(st.floats(-20, size[1] + 20), st.floats(-20, size[0] + 20))
    corners = np.array([data.draw(beyond), data.draw(beyond)])
    plane = channel(draw([Mark(kind="box", xy=corners)], size), "box")
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    rows, columns = np.indices(size)
    inside = (columns >= round(x0)) & (columns <= round(x1)) & (rows >= round(y0)) & (rows <= round(y1))
    np.testing.assert_array_equal(plane, inside.astype(np.float32))


@given(size=SIZES, positive=st.booleans(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_scribble_follows_its_line(size: tuple[int, int], positive: bool, data: st.DataObject) -> None:
    """Everything on the line is near lit pixels, and nothing else is lit."""
    corners = np.array(data.draw(st.lists(places(size), min_size=2, max_size=4)))
    raster = draw([Mark(kind="scribble", xy=corners, positive=positive)], size)
    plane = channel(raster, "scribble" if positive else "negative scribble")
    assert set(np.unique(plane)) <= {0.0, 1.0}
    steps = np.linspace(0, 1, 200)[:, None]
    line = np.concatenate([a + (b - a) * steps for a, b in pairwise(corners)])
    lit = np.argwhere(plane > 0)[:, ::-1]
    assert len(lit)
    distance = np.linalg.norm(line[:, None] - lit[None], axis=-1)
    width = max(1, round(2 * POINT_SIGMA * max(size)))
    assert distance.min(1).max() <= 2, "a part of the line was not drawn"
    assert distance.min(0).max() <= width / 2 + 1.5, "something beside the line was drawn"


def test_mask_is_taken_as_it_is() -> None:
    mask = np.random.default_rng(0).random((12, 9)).astype(np.float32)
    raster = draw([Mark(kind="mask", mask=mask)], (12, 9))
    np.testing.assert_array_equal(channel(raster, "mask"), mask)
    assert raster.sum() == pytest.approx(mask.sum(), rel=1e-6)


def test_marks_of_one_kind_join_and_kinds_stay_apart() -> None:
    """The stronger of two marks counts; order does not matter."""
    near, far = (Mark(kind="point", xy=np.array([[c, 5.0]])) for c in (6.0, 8.0))
    box = Mark(kind="box", xy=np.array([[1.0, 1.0], [3.0, 2.0]]))
    size = (16, 20)
    raster = draw([near, box, far], size)
    expected = np.maximum(channel(draw([near], size), "point"), channel(draw([far], size), "point"))
    np.testing.assert_array_equal(channel(raster, "point"), expected)
    assert channel(raster, "box").sum() == 6
    np.testing.assert_array_equal(raster, draw([far, near, box], size))
    assert raster.max() <= 1


def test_nothing_drawn_is_all_zero() -> None:
    raster = draw([], (7, 5))
    assert raster.shape == (len(CHANNELS), 7, 5) and not raster.any()


@given(x=st.floats(8, 119), y=st.floats(8, 71))
@settings(max_examples=40, deadline=None)
def test_a_click_means_the_same_at_half_the_size(x: float, y: float) -> None:
    """Training draws at mask resolution, inference at input resolution: same place, same share of the picture."""

    def moments(plane: np.ndarray) -> tuple[np.ndarray, float]:
        where = np.stack(np.indices(plane.shape)[::-1], axis=-1) + 0.5
        share = plane / plane.sum()
        centre = (where * share[..., None]).sum((0, 1))
        spread = float((np.square(where - centre).sum(-1) * share).sum())
        scale = max(plane.shape)
        return centre / scale, spread**0.5 / scale

    fine = channel(draw([Mark(kind="point", xy=np.array([[x, y]]))], (160, 256)), "point")
    halved = (np.array([[x, y]]) + 0.5) / 2 - 0.5
    coarse = channel(draw([Mark(kind="point", xy=halved)], (80, 128)), "point")
    (centre, spread), (other, other_spread) = moments(fine), moments(coarse)
    np.testing.assert_allclose(centre, other, atol=2e-3)
    assert spread == pytest.approx(other_spread, rel=0.05)


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        (Mark(kind="circle", xy=np.zeros((1, 2))), "'circle', expected one of point"),
        (Mark(kind="box", xy=np.zeros((2, 2)), positive=False), "'negative box', expected one of"),
        (Mark(kind="mask", mask=np.zeros((3, 4))), r"shape \(3, 4\), expected the grid's \(9, 9\)"),
        (Mark(kind="mask"), r"shape None, expected the grid's \(9, 9\)"),
        (Mark(kind="point"), "'point' needs coordinates"),
    ],
)
def test_what_cannot_be_drawn_is_named(mark: Mark, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw([mark], (9, 9))
