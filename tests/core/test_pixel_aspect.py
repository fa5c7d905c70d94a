"""Pixels that are no squares: a model sees true proportions, and the way back stays exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsight_core.geometry import SQUARE_TOLERANCE, Frame, GridTransform

SIZE = st.tuples(st.integers(1, 600), st.integers(1, 600))
ASPECT = st.fractions(Fraction(1, 20), Fraction(20), max_denominator=500)


def frame(height: float, width: float) -> Frame:
    return Frame(shape=(1, 4, 4), origin=np.zeros(3), spacing=np.array([1.0, height, width]), direction=np.eye(3))


@given(SIZE, SIZE, ASPECT)
def test_a_letterbox_inverts_exactly_whatever_the_pixels(source: tuple, target: tuple, aspect: Fraction) -> None:
    box = GridTransform.letterbox(source, target, aspect=aspect)
    assert box.then(box.inverse()) == GridTransform.identity(source)
    assert box.inverse().then(box) == GridTransform.identity(target)


@given(SIZE, SIZE)
def test_square_pixels_change_nothing(source: tuple, target: tuple) -> None:
    plain = GridTransform.letterbox(source, target)
    assert GridTransform.letterbox(source, target, aspect=Fraction(1)) == plain
    factor = min(Fraction(target[0], source[0]), Fraction(target[1], source[1]))
    inner = [max(1, int(n * factor + Fraction(1, 2))) for n in source]
    assert plain.scale == tuple(Fraction(n, size) for n, size in zip(inner, source, strict=True))


@given(SIZE, SIZE, ASPECT)
def test_proportions_are_true_to_a_pixel_and_nothing_is_cut_off(source: tuple, target: tuple, aspect: Fraction) -> None:
    box = GridTransform.letterbox(source, target, aspect=aspect)
    inner = [scale * size for scale, size in zip(box.scale, source, strict=True)]
    assert all(offset >= 0 and offset + n <= t for offset, n, t in zip(box.offset, inner, target, strict=True))
    assert any(n == t for n, t in zip(inner, target, strict=True))
    true = source[0] * aspect / source[1]
    if min(inner) > 1:
        assert abs(inner[0] - inner[1] * true) <= Fraction(1, 2) * max(1, true) + Fraction(1, 2)


@given(st.floats(0.05, 20), st.floats(0.05, 20))
def test_the_aspect_of_a_frame(height: float, width: float) -> None:
    aspect = frame(height, width).pixel_aspect
    assert float(aspect) == pytest.approx(height / width, rel=SQUARE_TOLERANCE)
    assert frame(width, height).pixel_aspect == 1 / aspect


@pytest.mark.parametrize("noise", [0.0, 1e-7, -1e-7, 1e-3, -1e-3])
def test_square_to_the_digits_of_a_header_is_square(noise: float) -> None:
    assert frame(0.703125 * (1 + noise), 0.703125).pixel_aspect == 1


def test_a_circle_stays_one() -> None:
    height, width = 6.0, 0.6  # mm, of pixels in 20 rows and 200 columns
    rows, columns = np.mgrid[:20, :200]
    disc = ((rows - 9.5) * height) ** 2 + ((columns - 99.5) * width) ** 2 <= 40.0**2
    box = GridTransform.letterbox((20, 200), (256, 256), aspect=frame(height, width).pixel_aspect)
    seen = box.image(disc.astype(np.float32)) >= 0.5
    extent = [np.ptp(np.flatnonzero(seen.any(axis=axis))) for axis in (0, 1)]
    assert extent[0] == pytest.approx(extent[1], abs=height / width * 256 / 200)
    np.testing.assert_array_equal(box.back(seen.astype(np.float32)) >= 0.5, disc)
