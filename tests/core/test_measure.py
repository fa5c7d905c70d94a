"""Measurements equal what geometry says of known shapes, and what SimpleITK says of any mask."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.measure import Measurements, measure


def frame_of(
    shape: tuple[int, ...],
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    turn: tuple[float, ...] = (0.0, 0.0, 0.0),
    origin: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> Frame:
    """Axial before it is turned: slices towards the head, rows to the back, columns to the left."""
    axes = np.eye(3)[:, ::-1]
    return Frame(
        shape=(shape[0], shape[1], shape[2]),
        origin=np.array(origin),
        spacing=np.array(spacing),
        direction=Rotation.from_euler("xyz", turn).as_matrix() @ axes,
    )


frames = st.builds(
    frame_of,
    shape=st.tuples(st.integers(1, 7), st.integers(1, 14), st.integers(1, 14)),
    spacing=st.tuples(*[st.floats(0.2, 8.0)] * 3),
    turn=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    origin=st.tuples(*[st.floats(-400, 400)] * 3),
)


def blob(frame: Frame, seed: int) -> np.ndarray:
    """Ragged, often in several pieces, often at the edge; never empty."""
    random = np.random.default_rng(seed)
    mask = random.random(frame.shape) < random.choice([0.05, 0.3, 0.8])
    mask[tuple(random.integers(0, n) for n in frame.shape)] = True
    return mask


def itk(array: np.ndarray, frame: Frame) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(frame.origin.tolist())
    image.SetSpacing(frame.spacing[::-1].tolist())
    image.SetDirection(frame.direction[:, ::-1].ravel().tolist())
    return image


def outline(plane: np.ndarray) -> np.ndarray:
    """Every point half way between a pixel inside and a neighbour outside, one by one."""
    padded = np.pad(plane, 1)
    points = []
    for row, column in np.argwhere(padded):
        for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            if not padded[row + down, column + right]:
                points.append((row + down / 2 - 1, column + right / 2 - 1))
    return np.array(points)


@settings(max_examples=40, deadline=None)
@given(frame=frames, seed=st.integers(0, 10**6))
def test_volume_centroid_and_values_are_those_of_simpleitk(frame: Frame, seed: int) -> None:
    mask = blob(frame, seed)
    values = np.random.default_rng(seed + 1).normal(40, 300, frame.shape)
    found = measure(mask, frame, values=values)
    shape, intensity = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelIntensityStatisticsImageFilter()
    shape.Execute(itk(mask.astype(np.uint8), frame))
    intensity.Execute(itk(mask.astype(np.uint8), frame), itk(values, frame))
    assert found.voxels == shape.GetNumberOfPixels(1)
    assert found.volume_mm3 == pytest.approx(shape.GetPhysicalSize(1), rel=1e-6)
    np.testing.assert_allclose(found.centroid_lps, shape.GetCentroid(1), rtol=1e-6, atol=1e-6)
    assert found.mean == pytest.approx(intensity.GetMean(1), rel=1e-6)
    assert (found.minimum, found.maximum) == (intensity.GetMinimum(1), intensity.GetMaximum(1))
    if found.voxels > 1:
        assert found.sd == pytest.approx(intensity.GetStandardDeviation(1), rel=1e-6)
    pieces = sitk.ConnectedComponentImageFilter()
    pieces.FullyConnectedOn()
    pieces.Execute(itk(mask.astype(np.uint8), frame))
    assert found.components == pieces.GetObjectCount()


@settings(max_examples=40, deadline=None)
@given(frame=frames, seed=st.integers(0, 10**6))
def test_the_diameter_is_the_longest_of_all_lines_between_outline_points(frame: Frame, seed: int) -> None:
    mask = blob(frame, seed)
    found = measure(mask, frame)
    longest = 0.0
    for plane in mask:
        labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(plane.astype(np.uint8)), True))
        for number in range(1, labels.max() + 1):
            longest = max(longest, pdist(outline(labels == number) * frame.spacing[1:]).max())
    assert found.diameter.length_mm == pytest.approx(longest, rel=1e-9)
    for line in (found.diameter, found.perpendicular):
        assert np.linalg.norm(line.end - line.start) == pytest.approx(line.length_mm, rel=1e-9)
        np.testing.assert_allclose(frame.to_index(np.array([line.start, line.end]))[:, 0], line.slice_index, atol=1e-9)
    # Feret's diameter of ITK joins centres, which lie up to a pixel's diagonal further in; it joins pieces too.
    if found.components == 1 and frame.shape[0] == 1:
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.ComputeFeretDiameterOn()
        statistics.Execute(itk(mask.astype(np.uint8), frame))
        feret, pixel = statistics.GetFeretDiameter(1), float(np.linalg.norm(frame.spacing[1:]))
        assert feret < found.diameter.length_mm <= feret + pixel + 1e-9


@settings(max_examples=40, deadline=None)
@given(frame=frames, seed=st.integers(0, 10**6))
def test_the_perpendicular_is_the_longest_within_the_hull(frame: Frame, seed: int) -> None:
    mask = blob(frame, seed)[:1]
    one = frame.slice(0)
    if (
        not mask.any()
        or sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask[0].astype(np.uint8)), True)).max()
        > 1
    ):
        mask = np.ones_like(mask)
    found = measure(mask, one)
    ends = one.to_index(np.array([found.diameter.start, found.diameter.end]))[:, 1:] * one.spacing[1:]
    cross = one.to_index(np.array([found.perpendicular.start, found.perpendicular.end]))[:, 1:] * one.spacing[1:]
    along = (ends[1] - ends[0]) / found.diameter.length_mm
    assert abs((cross[1] - cross[0]) @ along) < 1e-6
    hull = ConvexHull(outline(mask[0]) * one.spacing[1:])
    normals, offsets = hull.equations[:, :2], hull.equations[:, 2]
    assert (normals @ cross.T + offsets[:, None] < 1e-6).all()
    # Independently: how long a line across is, by clipping it with the half-planes of the hull.
    across = np.array([-along[1], along[0]])
    corners = (hull.points[hull.vertices] - ends[0]) @ along
    lengths = []
    for place in (*corners, *np.linspace(0, found.diameter.length_mm, 50)):
        slope, room = normals @ across, -(offsets + normals @ (ends[0] + place * along))
        with np.errstate(divide="ignore", invalid="ignore"):
            cut = room / slope
        lengths.append(cut[slope > 1e-12].min() - cut[slope < -1e-12].max())
    assert found.perpendicular.length_mm == pytest.approx(max(lengths), abs=1e-6)


def drawn(inside: np.ndarray, frame: Frame) -> Measurements:
    return measure(inside, frame, values=np.full(frame.shape, 7.0))


def places(frame: Frame) -> np.ndarray:
    """LPS mm of every voxel centre, from the middle of the grid."""
    index = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), axis=-1)
    return frame.to_lps(index) - frame.to_lps((np.array(frame.shape) - 1) / 2)


@settings(max_examples=20, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(st.floats(0.8, 3.0), st.floats(0.5, 1.0), st.floats(0.5, 1.0)),
    radius=st.floats(9.0, 12.0),
)
@example(turn=(0.0, 0.0, 0.0), spacing=(0.875, 1.0, 1.0), radius=11.0)  # five slices with the same diameter
def test_a_ball_in_any_frame(turn: tuple[float, ...], spacing: tuple[float, ...], radius: float) -> None:
    frame = frame_of(tuple(int(2 * radius / s) + 5 for s in spacing), spacing, turn, (5.0, -70.0, 300.0))
    found = drawn(np.linalg.norm(places(frame), axis=-1) <= radius, frame)
    middle = frame.to_lps((np.array(frame.shape) - 1) / 2)
    pixel = float(np.linalg.norm(spacing[1:]))
    assert found.volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.04)
    # Voxels whose centre lies exactly on the surface fall to either side.
    np.testing.assert_allclose(found.centroid_lps, middle, atol=0.05)
    assert 2 * radius - 2 * pixel < found.diameter.length_mm <= 2 * radius + pixel
    assert 2 * radius - 2 * pixel < found.perpendicular.length_mm <= found.diameter.length_mm + 1e-9
    # Through the middle of its slice, but for half a pixel of rounding. Slices near the middle may hold pixels that
    # lie as far apart as there; farther away the ball is too narrow for that.
    centre = (found.diameter.start + found.diameter.end) / 2
    depth, down, right = (frame.to_index(centre) - (np.array(frame.shape) - 1) / 2) * spacing
    assert np.hypot(down, right) < pixel
    assert found.diameter.length_mm <= 2 * np.sqrt(radius**2 - depth**2) + pixel
    assert (found.mean, found.sd, found.components) == (7.0, 0.0, 1)


@pytest.mark.parametrize("angle", [0.0, 0.4, 0.8, 2.0])
def test_an_ellipsoid_turned_within_its_slices(angle: float) -> None:
    frame = frame_of((15, 90, 120), (2.0, 0.5, 0.4), (0.3, -0.8, 1.0))
    inner = (np.argwhere(np.ones(frame.shape)) - (np.array(frame.shape) - 1) / 2) * frame.spacing
    depth, down, right = inner.T
    long, short = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    mask = ((long / 18) ** 2 + (short / 9) ** 2 + (depth / 12) ** 2 <= 1).reshape(frame.shape)
    found = drawn(mask, frame)
    assert found.volume_mm3 == pytest.approx(4 / 3 * np.pi * 18 * 9 * 12, rel=0.01)
    assert found.diameter.length_mm == pytest.approx(36, abs=0.7)
    assert found.perpendicular.length_mm == pytest.approx(18, abs=0.9)
    assert found.diameter.slice_index == 7


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 6), (3, 4, 9), (1, 8, 8)])
def test_a_box_exactly(size: tuple[int, int, int]) -> None:
    frame = frame_of((6, 12, 15), (5.0, 0.7, 1.1), (0.2, 0.1, -0.4))
    mask = np.zeros(frame.shape, bool)
    slices, rows, columns = size
    mask[2 : 2 + slices, 1 : 1 + rows, 3 : 3 + columns] = True
    found = measure(mask, frame)
    assert found.volume_mm3 == pytest.approx(slices * rows * columns * 5.0 * 0.7 * 1.1)
    assert found.slices == (2, 1 + slices)
    # The outline cuts the corners: it runs through the middle of the outer edges of a corner's pixel.
    high, wide = rows * 0.7, columns * 1.1
    diagonals = [(high, wide - 1.1), (high - 0.7, wide)]
    assert found.diameter.length_mm == pytest.approx(max(np.hypot(*pair) for pair in diagonals))
    assert (found.mean, found.sd, found.minimum, found.maximum) == (None, None, None, None)


def test_nothing_changes_when_the_grid_is_stored_in_another_order() -> None:
    frame = frame_of((5, 12, 10), (3.0, 0.7, 1.2), (0.1, 0.9, -0.3), (10.0, 20.0, 30.0))
    mask = np.random.default_rng(4).random(frame.shape) < 0.3
    mask[2, 1:11, 4:7] = True
    values = np.random.default_rng(5).normal(size=frame.shape)
    wanted = measure(mask, frame, values=values)
    for axes in ((0,), (1,), (2,), (0, 1), (0, 1, 2)):
        affine = frame.affine
        for axis in axes:
            affine[:3, 3] += affine[:3, axis] * (frame.shape[axis] - 1)
            affine[:3, axis] *= -1
        found = measure(np.flip(mask, axes), Frame.from_affine(affine, frame.shape), values=np.flip(values, axes))
        assert found.volume_mm3 == pytest.approx(wanted.volume_mm3)
        np.testing.assert_allclose(found.centroid_lps, wanted.centroid_lps)
        assert found.diameter.length_mm == pytest.approx(wanted.diameter.length_mm)
        assert found.mean == pytest.approx(wanted.mean)
        ends = {tuple(np.round(end, 6)) for end in (found.diameter.start, found.diameter.end)}
        assert ends == {tuple(np.round(end, 6)) for end in (wanted.diameter.start, wanted.diameter.end)}


def test_two_lesions_are_not_joined_by_a_diameter() -> None:
    frame = frame_of((3, 20, 40))
    mask = np.zeros(frame.shape, bool)
    mask[1, 5:9, 2:8] = True
    mask[1, 5:9, 30:38] = True
    mask[2, 12, 12] = True
    found = measure(mask, frame)
    assert found.components == 3
    assert found.diameter.length_mm == pytest.approx(np.hypot(8, 3))
    assert found.diameter.slice_index == 1
    assert frame.to_index(np.array([found.diameter.start, found.diameter.end]))[:, 2].min() > 20


def test_a_mask_that_fills_the_grid() -> None:
    found = measure(np.ones((2, 3, 3), bool), frame_of((2, 3, 3)))
    assert found.diameter.length_mm == pytest.approx(np.hypot(3, 2))
    assert (found.voxels, found.slices) == (18, (0, 1))


def test_one_slice_of_a_scan_keeps_its_number() -> None:
    found = measure(np.eye(4, dtype=bool)[None], frame_of((1, 4, 4)), first_slice=12)
    assert found.slices == (12, 12) and found.diameter.slice_index == found.perpendicular.slice_index == 12


def test_without_spacing_lengths_are_pixels_and_there_is_no_volume() -> None:
    mask = np.zeros((1, 9, 9), bool)
    mask[0, 4, 2:7] = True
    found = measure(mask, Frame.of_pixels(mask.shape))
    assert (found.volume_mm3, found.volume_ml, found.unit) == (None, None, "pixels")
    assert (found.diameter.length_mm, found.perpendicular.length_mm) == (5.0, 1.0)
    assert found.to_json()["unit_of_length"] == "pixels"


def test_values_that_are_not_finite_do_not_count() -> None:
    mask = np.ones((1, 1, 4), bool)
    frame = frame_of((1, 1, 4))
    found = measure(mask, frame, values=np.array([[[np.nan, 1.0, 3.0, np.inf]]]))
    assert (found.mean, found.minimum, found.maximum) == (2.0, 1.0, 3.0)
    assert measure(mask, frame, values=np.full(mask.shape, np.nan)).mean is None
    small = measure(mask, frame, values=np.array([[[30000, 30000, -30000, -30000]]], np.int16))
    assert small.mean == 0.0 and small.sd == pytest.approx(34641.0162)


def test_it_can_be_written_as_json() -> None:
    content = json.loads(json.dumps(measure(np.ones((1, 2, 2), bool), frame_of((1, 2, 2))).to_json()))
    assert content["longest_diameter"]["length"] == pytest.approx(2.2361)
    assert content["slices"] == [0, 0] and content["mean"] is None


@pytest.mark.parametrize(
    ("mask", "values", "code"),
    [
        (np.zeros((2, 3, 4), bool), None, "empty_mask"),
        (np.ones((2, 3, 5), bool), None, "bad_mask"),
        (np.ones((3, 4), bool), None, "bad_mask"),
        (np.ones((2, 3, 4), np.uint8), None, "bad_mask"),
        (np.ones((2, 3, 4), bool), np.zeros((2, 3, 4, 3)), "bad_mask"),
    ],
)
def test_what_cannot_be_measured_is_refused(mask: np.ndarray, values: np.ndarray | None, code: str) -> None:
    with pytest.raises(InputError) as caught:
        measure(mask, frame_of((2, 3, 4)), values=values)
    assert caught.value.code == code and caught.value.remedy
