"""Slices become structures: islands go, holes are filled, and what was done is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medsight_core.geometry import Frame
from medsight_core.inference.joining import ISLAND, bounding_box, join


def frame(shape: tuple[int, ...], spacing: tuple[float, float, float] = (4.0, 2.0, 2.5)) -> Frame:
    slices, rows, columns = shape
    return Frame(
        shape=(slices, rows, columns), origin=np.zeros(3), spacing=np.array(spacing), direction=np.eye(3)[::-1]
    )


def test_islands_go_and_are_counted() -> None:
    mask = np.zeros((8, 40, 40), dtype=bool)
    mask[1:7, 5:25, 5:25] = True
    mask[3, 35:37, 35:37] = True
    mask[6, 36, 2] = True
    joined = join(mask, frame(mask.shape), label="liver")
    assert (joined.components, joined.islands, joined.removed) == (1, 2, 5)
    np.testing.assert_array_equal(joined.mask[:, :30, :30], mask[:, :30, :30])
    assert not joined.mask[:, 30:].any() and mask[3, 35, 35], "the input stays as it was"
    assert joined.steps == ("liver: 2 small islands (0.1 ml) removed.",)


def test_small_lesions_stay_beside_a_large_one() -> None:
    mask = np.zeros((8, 40, 40), dtype=bool)
    mask[1:7, 5:25, 5:25] = True
    mask[3, 35, 35] = True
    joined = join(mask, frame(mask.shape), label="lesion", island=0.0)
    assert joined.mask is mask and joined.components == 2 and not joined.steps


def test_two_of_a_size_both_stay() -> None:
    mask = np.zeros((6, 30, 60), dtype=bool)
    mask[1:5, 5:25, 5:20] = True
    mask[1:5, 5:25, 40:50] = True
    joined = join(mask, frame(mask.shape), label="kidney")
    assert joined.components == 2 and joined.steps == () and joined.mask is mask


def test_parts_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((4, 8, 8), dtype=bool)
    mask[1, 2:4, 2:4] = True
    mask[2, 4:6, 4:6] = True
    assert join(mask, frame(mask.shape), label="x").components == 1


def test_holes_are_filled_and_measured() -> None:
    mask = np.zeros((9, 30, 30), dtype=bool)
    mask[1:8, 5:25, 5:25] = True
    whole = mask.copy()
    mask[3:5, 10:12, 10:13] = False
    joined = join(mask, frame(mask.shape), label="spleen")
    np.testing.assert_array_equal(joined.mask, whole)
    assert joined.filled == 12 and joined.steps == ("spleen: holes of 0.2 ml filled.",)


def test_a_hole_that_opens_outwards_stays() -> None:
    mask = np.zeros((5, 20, 20), dtype=bool)
    mask[1:4, 5:15, 5:15] = True
    mask[2:4, 9, 9] = False
    assert join(mask, frame(mask.shape), label="x").filled == 0


def test_one_slice_stays_as_it_was_drawn() -> None:
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 2:15, 2:15] = True
    mask[0, 5, 5] = False
    mask[0, 18, 18] = True
    joined = join(mask, frame(mask.shape), label="x")
    assert joined.mask is mask and joined.components == 2 and not joined.steps


def test_nothing_is_nothing() -> None:
    mask = np.zeros((4, 5, 6), dtype=bool)
    joined = join(mask, frame(mask.shape), label="x")
    assert joined.components == 0 and not joined.mask.any() and bounding_box(mask) is None


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.6))
@settings(max_examples=25, deadline=None)
def test_as_scipy_does_it(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.binary_closing(rng.random((6, 14, 15)) < share, iterations=1)
    joined = join(mask, frame(mask.shape), label="x")
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        assert not joined.mask.any()
        return
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = sizes >= ISLAND * sizes.max()
    kept[0] = False
    # Filled inside the box around the mask: what touches the box's face is open to it.
    expected = np.zeros_like(mask)
    box = bounding_box(mask)
    assert box is not None
    expected[box] = ndimage.binary_fill_holes(kept[labels][box])
    assert joined.components == int(kept.sum())
    assert joined.removed == int(mask.sum() - kept[labels].sum())
    # ITK fills what is closed to straight and diagonal steps alike or to straight ones only; scipy the latter.
    assert not (kept[labels] & ~joined.mask).any() and not (joined.mask & ~expected).any()


def test_without_a_place_sizes_are_voxels() -> None:
    mask = np.zeros((5, 30, 30), dtype=bool)
    mask[:, 2:20, 2:20] = True
    mask[2, 28, 28] = True
    assert join(mask, Frame.of_pixels(mask.shape), label="x").steps == ("x: 1 small island (1 voxels) removed.",)


@pytest.mark.parametrize("corner", [(0, 0, 0), (4, 11, 12)])
def test_the_box_around_a_mask(corner: tuple[int, int, int]) -> None:
    mask = np.zeros((5, 12, 13), dtype=bool)
    mask[corner] = True
    mask[2, 5, 6] = True
    box = bounding_box(mask)
    assert box is not None and mask[box].sum() == 2 and all(np.take(mask[box], [0, -1], axis=a).any() for a in range(3))
