"""The picture of an answer shows each mask where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.output.overlay import badge_place, badge_radius, canvas_size, overlay, region_layer, slice_picture
from medsight_core.regions import Question
from medsight_core.terminology import display_colours


def question(rows: int, columns: int, spacing: tuple[float, float] | None = None) -> Question:
    frame = Frame.of_pixels((1, rows, columns))
    if spacing:
        frame = dataclasses.replace(frame, spacing=np.array([1.0, *spacing]), physical=True)
    array = np.linspace(0, 255, rows * columns, dtype=np.float32).reshape(1, rows, columns)
    volume = Volume(
        array=array, frame=frame, slice_frames=(frame,), modality="MR", source=Source(kind="nrrd", paths=())
    )
    return Question(text="What is this?", volume=volume, slice_index=0)


@pytest.mark.parametrize(
    ("rows", "columns", "spacing", "size"),
    [
        (100, 200, None, (960, 480)),
        (100, 100, (2.0, 1.0), (480, 960)),
        (100, 200, (2.0, 1.0), (960, 960)),
        (3000, 1500, None, (800, 1600)),
        (1000, 1200, (0.5, 0.5), (1200, 1000)),
    ],
)
def test_a_slice_is_drawn_in_its_true_proportions(
    rows: int, columns: int, spacing: tuple[float, float] | None, size: tuple[int, int]
) -> None:
    asked = question(rows, columns, spacing)
    assert canvas_size(asked) == size
    assert slice_picture(asked).size == size


def test_a_mask_is_drawn_where_it_is() -> None:
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:70] = True
    layer = np.asarray(region_layer(mask, (10, 200, 30), (900, 600)))
    assert (layer[250:350, 350:650, 3] > 40).all()  # the inside
    assert (layer[250:350, 350:650, 3] < 120).all()  # through which the scan is seen
    assert (layer[300, 500, :3] == (10, 200, 30)).all()
    outside = np.ones((600, 900), bool)
    outside[180:420, 280:720] = False
    assert not layer[outside, 3].any()
    for row, column in ((200, 500), (399, 500), (300, 300), (300, 699)):
        assert layer[row, column, 3] > 220  # the contour runs along the edge
        assert (layer[row, column, :3].astype(int) - (10, 200, 30) < 12).all()


@given(st.data())
def test_a_number_lies_on_a_large_mask_and_beside_a_small_one(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(30, 60)), data.draw(st.integers(30, 60))
    mask = np.zeros((rows, columns), bool)
    large = data.draw(st.booleans())
    height = rows // 2 if large else 1
    width = columns // 2 if large else 1
    top, left = data.draw(st.integers(0, rows - height)), data.draw(st.integers(0, columns - width))
    mask[top : top + height, left : left + width] = True
    size = (columns * 20, rows * 20)
    place = badge_place(mask, size)
    assert place is not None
    x, y = place
    radius = badge_radius(size)
    on_mask = left * 20 <= x < (left + width) * 20 and top * 20 <= y < (top + height) * 20
    assert on_mask == large
    if not large:
        assert radius <= x <= size[0] and x - radius + 1 >= 0 and y - radius + 1 >= 0 and y + radius <= size[1] + 1
        assert max(abs(x - (left + 0.5) * 20), abs(y - (top + 0.5) * 20)) < radius + 20


def test_an_empty_mask_has_no_number() -> None:
    assert badge_place(np.zeros((5, 5), bool), (50, 50)) is None


def test_the_overlay_keeps_the_scan_and_has_a_legend(picture: Volume, answering: Callable[..., tuple]) -> None:
    asked, answer = answering(picture)
    image = overlay(asked, answer.regions)
    width, height = canvas_size(asked)
    assert image.mode == "RGB" and image.width == width and image.height > height
    drawn, plain = np.asarray(image)[:height], np.asarray(slice_picture(asked))
    scale = width / 90
    apart = np.abs(drawn.astype(int) - plain).max(axis=2)
    assert not apart[:, round(60 * scale) :].any()  # nothing is drawn far from the masks
    inside = apart[round(14 * scale) : round(18 * scale), round(8 * scale) : round(26 * scale)]
    assert (inside > 0).mean() > 0.95
    legend = np.asarray(image)[height:].reshape(-1, 3)
    for colour in display_colours(region.label for region in answer.regions):
        assert (legend == colour.rgb).all(axis=1).any()


def test_without_regions_the_overlay_says_so(picture: Volume, answering: Callable[..., tuple]) -> None:
    asked, answer = answering(picture, raw="Nothing.")
    image = overlay(asked, answer.regions)
    width, height = canvas_size(asked)
    assert image.crop((0, 0, width, height)).tobytes() == slice_picture(asked).tobytes()
    assert np.asarray(image)[height:].max() > 200  # letters


def test_many_long_labels_fit(picture: Volume, answering: Callable[..., tuple]) -> None:
    masks = [np.eye(60, 90, k, dtype=bool) for k in range(3)]
    labels = ["a very long label of a finding that nobody would ever write " * 2, "b" * 90, "c"]
    asked, answer = answering(picture, raw="<p>a</p>[C0_0] <p>b</p>[C0_1] <p>c</p>[C0_2]", masks=masks, labels=labels)
    image = overlay(asked, answer.regions)
    assert isinstance(image, Image.Image)
    # The last column of pixels is background: no letter is cut off.
    below = np.asarray(image)[canvas_size(asked)[1] :]
    assert (below[:, -1] == below[0, -1]).all()
