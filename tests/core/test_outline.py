"""A closed outline becomes the mask that it encloses."""

from __future__ import annotations

import numpy as np
import pytest

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.outline import lasso

FRAME = Frame(
    shape=(1, 40, 60),
    origin=np.array([10.0, -20.0, 5.0]),
    spacing=np.array([3.0, 0.8, 1.5]),
    direction=np.array([[0.0, 0.6, 0.8], [0.0, 0.8, -0.6], [1.0, 0.0, 0.0]]),
)


def drawn(*corners: tuple[float, float], k: float = 0.0) -> np.ndarray:
    """The mask of an outline through (row, column) places."""
    return np.asarray(lasso(FRAME.to_lps([[k, *corner] for corner in corners]), FRAME).mask)


def test_a_rectangle_along_pixel_edges_is_filled_exactly() -> None:
    mask = drawn((4.5, 9.5), (4.5, 29.5), (19.5, 29.5), (19.5, 9.5))
    wanted = np.zeros((40, 60), bool)
    wanted[5:20, 10:30] = True
    assert np.array_equal(mask, wanted)


@pytest.mark.parametrize("turned", [False, True])
def test_a_circle_has_its_area_and_place_whichever_way_it_is_drawn(turned: bool) -> None:
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)[:: -1 if turned else 1]
    mask = drawn(*((20.2 + 12.3 * np.sin(a), 31.4 + 12.3 * np.cos(a)) for a in angles))
    assert mask.sum() == pytest.approx(np.pi * 12.3**2, rel=0.03)
    assert np.argwhere(mask).mean(axis=0) == pytest.approx([20.2, 31.4], abs=0.1)


def test_a_concave_outline_leaves_its_bay_out() -> None:
    mask = drawn((5, 5), (5, 50), (35, 50), (35, 5), (30, 5), (30, 40), (10, 40), (10, 5))
    assert mask[7, 20] and mask[32, 20] and mask[20, 45] and not mask[20, 20]


def test_what_reaches_beyond_the_image_is_cut_off() -> None:
    assert drawn((-20, -20), (-20, 90), (70, 90), (70, -20)).all()
    half = drawn((-20, 29.5), (-20, 500), (90, 500), (90, 29.5))
    assert half[:, 30:].all() and not half[:, :30].any()


@pytest.mark.parametrize(
    ("corners", "k", "words"),
    [
        (((1, 1), (5, 5)), 0, "three or more points"),
        (((1, 1), (5, 5), (9, 1)), 1, "does not lie on the slice"),
        (((-9, -9), (-5, -5), (-9, -3)), 0, "encloses no pixel"),
        (((5, 5), (5, 20), (5, 40)), 0, "encloses no pixel"),
        (((float("nan"), 5), (5, 20), (9, 40)), 0, "three or more points"),
    ],
)
def test_an_outline_of_nothing_is_refused(corners: tuple[tuple[float, float], ...], k: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        drawn(*corners, k=k)
