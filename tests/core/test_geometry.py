"""Places survive every way there and back: frames to and from the patient, grids to and from each other."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsight_core.geometry import Frame, GridTransform

LENGTH = st.floats(0.05, 20.0)
COORDINATE = st.floats(-800.0, 800.0)
SIDE = st.integers(1, 600)
SIZE = st.tuples(SIDE, SIDE)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Any orientation, left- or right-handed, any anisotropy, down to one slice."""
    quaternion = np.array([draw(st.floats(-1, 1)) for _ in range(4)])
    if np.linalg.norm(quaternion) < 0.1:
        quaternion = np.array([1.0, 0, 0, 0])
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    flips = np.array([draw(st.sampled_from((-1.0, 1.0))) for _ in range(3)])
    return Frame(
        shape=(draw(st.integers(1, 40)), draw(SIDE), draw(SIDE)),
        origin=np.array([draw(COORDINATE) for _ in range(3)]),
        spacing=np.array([draw(LENGTH) for _ in range(3)]),
        direction=rotation * flips,
    )


@given(frames(), st.tuples(st.floats(-50, 700), st.floats(-50, 700), st.floats(-50, 700)))
def test_index_to_patient_and_back(frame: Frame, index: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(frame.to_index(frame.to_lps(index)), index, atol=1e-6)
    np.testing.assert_allclose(frame.to_lps(index), (frame.affine @ (*index, 1))[:3], atol=1e-6)


@given(frames())
def test_affine_and_back_is_the_same_frame(frame: Frame) -> None:
    again = Frame.from_affine(frame.affine, frame.shape)
    assert again.is_close(frame)
    np.testing.assert_allclose(again.spacing, frame.spacing, rtol=1e-9)


@given(frames(), st.data())
def test_a_slice_lies_where_it_lay_in_the_volume(frame: Frame, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, frame.shape[0] - 1))
    alone = frame.slice(k)
    corner = (frame.shape[1] - 1, frame.shape[2] - 1)
    np.testing.assert_allclose(alone.to_lps((0, *corner)), frame.to_lps((k, *corner)), atol=1e-6)
    assert alone.shape[0] == 1
    assert alone.contains(frame.to_lps((k, *corner)))


@given(frames(), st.floats(0.05, 0.5))
def test_a_frame_moved_by_part_of_a_voxel_is_not_close(frame: Frame, part: float) -> None:
    moved = Frame(
        shape=frame.shape,
        origin=frame.origin + part * frame.spacing.min() * frame.direction[:, 1],
        spacing=frame.spacing,
        direction=frame.direction,
    )
    assert frame.is_close(frame)
    assert not moved.is_close(frame)


def test_contains_reaches_half_a_voxel_further_than_the_centres() -> None:
    frame = Frame(shape=(2, 3, 4), origin=np.zeros(3), spacing=np.array([5.0, 2, 1]), direction=np.eye(3)[::-1])
    assert frame.contains((3.49, 4.9, 7.4))
    assert not frame.contains((3.51, 4.9, 7.4))
    assert frame.pixel_area == 2.0
    np.testing.assert_allclose(frame.normal, (0, 0, 1))


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": [1.0, 0.0, 1.0]},
        {"spacing": [1.0, -1.0, 1.0]},
        {"spacing": [1.0, np.nan, 1.0]},
        {"origin": [0.0, np.inf, 0.0]},
        {"origin": [0.0, 0.0]},
        {"direction": np.ones((3, 3))},
        {"direction": np.eye(3) * 2},
        {"shape": (0, 3, 3)},
    ],
)
def test_a_frame_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    good = {"shape": (2, 3, 4), "origin": np.zeros(3), "spacing": np.ones(3), "direction": np.eye(3)}
    Frame(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Frame(**{**good, **change})  # type: ignore[arg-type]


def test_a_frame_cannot_be_changed_through_its_arrays() -> None:
    origin = np.zeros(3)
    frame = Frame(shape=(1, 2, 2), origin=origin, spacing=np.ones(3), direction=np.eye(3))
    origin[0] = 9
    assert frame.origin[0] == 0
    with pytest.raises(ValueError):
        frame.origin[0] = 9


@st.composite
def transforms(draw: st.DrawFn, source: tuple[int, int] | None = None) -> GridTransform:
    source = source or draw(SIZE)
    kind = draw(st.sampled_from(("letterbox", "resize", "flip", "crop")))
    if kind == "letterbox":
        return GridTransform.letterbox(source, draw(SIZE))
    if kind == "resize":
        return GridTransform.resize(source, draw(SIZE))
    if kind == "flip":
        return GridTransform.flip(source, rows=draw(st.booleans()), columns=draw(st.booleans()))
    return GridTransform.crop(source, top=draw(st.integers(-9, 90)), left=draw(st.integers(-9, 90)), size=draw(SIZE))


@given(transforms(), st.lists(st.tuples(st.floats(-9, 700), st.floats(-9, 700)), min_size=1, max_size=5))
def test_inverse_is_exact(transform: GridTransform, points: list[tuple[float, float]]) -> None:
    identity = transform.then(transform.inverse())
    assert identity == GridTransform.identity(transform.source)
    assert transform.inverse().inverse() == transform
    np.testing.assert_allclose(transform.inverse().points(transform.points(points)), points, atol=1e-6)


@given(st.data())
def test_composition_maps_points_as_one_after_the_other(data: st.DataObject) -> None:
    first = data.draw(transforms())
    second = data.draw(transforms(source=first.target))
    third = data.draw(transforms(source=second.target))
    xy = np.array([[0.0, 0.0], [3.5, 8.25]])
    np.testing.assert_allclose(first.then(second).points(xy), second.points(first.points(xy)), atol=1e-6)
    assert first.then(second).then(third) == first.then(second.then(third))
    assert first.then(second).inverse() == second.inverse().then(first.inverse())


def test_only_matching_grids_compose() -> None:
    with pytest.raises(ValueError, match="cannot compose"):
        GridTransform.resize((4, 4), (8, 8)).then(GridTransform.resize((4, 4), (8, 8)))


@given(SIZE, SIZE)
def test_letterbox_keeps_the_whole_picture_inside(source: tuple[int, int], target: tuple[int, int]) -> None:
    transform = GridTransform.letterbox(source, target)
    corners = transform.points([(-0.5, -0.5), (source[1] - 0.5, source[0] - 0.5)])
    assert (corners >= -0.5 - 1e-9).all()
    assert (corners[1] <= np.array(target[::-1]) - 0.5 + 1e-9).all()
    inner = [Fraction(n) * s for n, s in zip(source, transform.scale, strict=True)]
    assert inner[0] == target[0] or inner[1] == target[1]  # one side is filled
    margins = [t - n for t, n in zip(target, inner, strict=True)]
    assert all(abs(2 * o - m) <= 1 for o, m in zip(transform.offset, margins, strict=True))  # centred


def _square_centre(mask: np.ndarray) -> tuple[float, float, int]:
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean()), len(rows)


@given(
    st.tuples(st.integers(60, 400), st.integers(60, 400)),
    st.sampled_from((64, 96, 128, 256)),
    st.sampled_from((1, 2, 4)),
    st.data(),
)
def test_a_square_comes_back_within_half_a_pixel(
    source: tuple[int, int], side: int, coarser: int, data: st.DataObject
) -> None:
    """Through the letterbox, as mask logits at a lower resolution, and back: the edges may blur, the place may not."""
    size = min(max(source) // 4, min(source))
    top = data.draw(st.integers(0, source[0] - size))
    left = data.draw(st.integers(0, source[1] - size))
    image = np.full(source, -1, np.float32)
    image[top : top + size, left : left + size] = 1
    transform = GridTransform.letterbox(source, (side, side))
    there = transform.image(image, fill=-1.0)
    assert there.shape == (side, side)
    coarse = GridTransform.resize((side, side), (side // coarser, side // coarser)).image(there)
    back = transform.back(coarse, fill=-1.0)
    assert back.shape == source
    row, column, count = _square_centre(back > 0)
    pixel = max(1.0, max(source) / side * coarser)  # what one pixel of the coarse mask covers of the source
    assert abs(row - (top + (size - 1) / 2)) <= 0.5 * pixel
    assert abs(column - (left + (size - 1) / 2)) <= 0.5 * pixel
    assert abs(np.sqrt(count) - size) <= pixel


@given(st.tuples(st.integers(20, 90), st.integers(20, 90)), st.data())
def test_image_puts_a_ramp_where_points_says(source: tuple[int, int], data: st.DataObject) -> None:
    """A linear ramp keeps its values exactly under linear resampling, so values tell coordinates."""
    transform = data.draw(
        st.sampled_from(
            (
                GridTransform.letterbox(source, (64, 80)),
                GridTransform.flip(source, rows=True, columns=True),
                GridTransform.crop(source, top=3, left=-5, size=(source[0] - 7, source[1] + 2)),
                GridTransform.resize(source, (77, 31)),
                GridTransform.flip(source, columns=True).then(GridTransform.letterbox(source, (50, 50))),
            )
        )
    )
    columns = np.broadcast_to(np.arange(source[1], dtype=np.float32), source)
    rows = np.broadcast_to(np.arange(source[0], dtype=np.float32)[:, None], source)
    got = np.stack([transform.image(columns, fill=-99), transform.image(rows, fill=-99)], axis=-1)
    grid = np.stack(np.meshgrid(np.arange(transform.target[1]), np.arange(transform.target[0])), axis=-1)
    expected = transform.inverse().points(grid)
    margin = 1.5 / min(1.0, *(abs(float(s)) for s in transform.scale))  # where the filter meets the edge
    inner = ((expected > margin) & (expected < np.array(source[::-1]) - 1 - margin)).all(axis=-1)
    np.testing.assert_allclose(got[inner], expected[inner], atol=0.12)  # Pillow weighs whole pixels
    outside = ((expected < -0.51) | (expected > np.array(source[::-1]) - 0.49)).any(axis=-1)
    assert (got[outside] == -99).all()


def test_flip_and_identity_copy_pixels_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(GridTransform.identity((5, 7)).image(image), image)
    np.testing.assert_array_equal(GridTransform.flip((5, 7), rows=True).image(image), image[::-1])
    np.testing.assert_array_equal(GridTransform.flip((5, 7), columns=True).image(image), image[:, ::-1])
    crop = GridTransform.crop((5, 7), top=1, left=-1, size=(3, 4))
    np.testing.assert_array_equal(crop.image(image)[:, 1:], image[1:4, :3])
    assert (crop.image(image, fill=9)[:, 0] == 9).all()


def test_shrinking_averages_and_does_not_skip() -> None:
    stripes = np.zeros((64, 64), np.float32)
    stripes[:, ::2] = 1
    small = GridTransform.resize((64, 64), (8, 8)).image(stripes)
    np.testing.assert_allclose(small[1:-1, 1:-1], 0.5, atol=0.05)


def test_padding_does_not_bleed_into_the_picture() -> None:
    """A mask that touches the rim of a letterboxed picture still touches it when it comes back."""
    transform = GridTransform.letterbox((100, 300), (64, 64))
    logits = np.full((32, 32), -8.0, np.float32)
    top = int(transform.offset[0]) // 2
    logits[top + 1 : 31 - top, :] = 8.0
    assert (transform.back(logits)[10:-10] > 0).all()
    assert (transform.back(logits)[:, [0, -1]][10:-10] > 0).all()


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.float64), np.zeros((4, 5), np.float32), np.zeros(4, np.float32)])
def test_a_picture_of_the_wrong_kind_is_refused(array: np.ndarray) -> None:
    with pytest.raises((TypeError, ValueError), match="picture has"):
        GridTransform.identity((4, 4)).image(array)
