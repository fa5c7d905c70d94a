"""What is shown of a slice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from medsight_core.cli.info import describe
from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume, open_volume
from medsight_core.imaging.windowing import WINDOWS, display, grey_scale
from tests.imaging.synthetic import write_series


def volume(values: np.ndarray, modality: str = "CT", **source: object) -> Volume:
    """One slice."""
    frame = Frame.of_pixels((1, *values.shape[:2]))
    return Volume(
        array=values[None],
        frame=frame,
        slice_frames=(frame,),
        modality=modality,
        source=Source(kind="image", paths=(Path("x"),), **source),  # type: ignore[arg-type]
    )


RAMP = np.arange(-1024, 1024, dtype=np.int16).reshape(32, 64)


def _limits(picture: np.ndarray, values: np.ndarray = RAMP) -> tuple[int, int]:
    grey = picture[..., 0]
    return int(values[grey == 0].max()), int(values[grey == 255].min())


def test_ct_shows_soft_tissue_unless_told_otherwise() -> None:
    picture = display(volume(RAMP), 0)
    assert picture.shape == (32, 64, 3) and picture.dtype == np.uint8
    assert _limits(picture) == (-160, 239)  # a width of 400 spans 400 values, both ends included (PS3.3 C.11.2.1.2.1)
    assert _limits(display(volume(RAMP, window=(0.0, 101.0)), 0)) == pytest.approx((-50, 50), abs=1)
    low, high = _limits(display(volume(RAMP, window=(0.0, 101.0)), 0, window="brain"))
    assert (low, high) == (0, 79)
    assert set(WINDOWS) == {"soft tissue", "lung", "bone", "brain"}


def test_a_window_that_shows_nothing_is_not_used() -> None:
    assert _limits(display(volume(RAMP, window=(90000.0, 10.0)), 0)) == (-160, 239)


def test_mr_shows_percentiles_and_is_not_thrown_by_one_bright_pixel() -> None:
    values = np.random.default_rng(0).normal(500, 50, (100, 100)).astype(np.float32)
    values[0, 0] = 30000
    picture = display(volume(values, "MR"), 0)
    assert 90 < picture.mean() < 165
    assert picture[..., 0].std() > 30


def test_monochrome1_is_inverted_here_only() -> None:
    plain, inverted = volume(RAMP), volume(RAMP, photometric="MONOCHROME1")
    np.testing.assert_array_equal(display(inverted, 0), 255 - display(plain, 0))
    np.testing.assert_array_equal(inverted.array, plain.array)


def test_pictures_and_ultrasound_are_shown_as_they_are() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    shown = display(volume(rgb, "unknown"), 0)
    np.testing.assert_array_equal(shown, rgb)
    grey = np.random.default_rng(0).integers(30, 99, (5, 6)).astype(np.int16)
    np.testing.assert_array_equal(display(volume(grey, "Ultrasound"), 0)[..., 1], grey)


@pytest.mark.parametrize("modality", ["CT", "MR", "X-ray", "unknown"])
def test_a_slice_of_one_value_is_shown(modality: str) -> None:
    assert display(volume(np.full((4, 4), 7, np.int16), modality), 0).shape == (4, 4, 3)


def test_a_window_that_cannot_be_is_refused() -> None:
    for window in ("bones", (0.0, 0.0), (float("nan"), 10.0)):
        with pytest.raises(InputError) as caught:
            display(volume(RAMP), 0, window=window)  # type: ignore[arg-type]
        assert caught.value.code == "unknown_window"


def test_the_files_own_window_is_used(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(3, 8, 8), changes={"WindowCenter": [40, 300], "WindowWidth": [80, 1500]})
    scan = open_volume(tmp_path)
    assert scan.source.window == (40.0, 80.0)
    told = display(dataclasses.replace(scan, source=dataclasses.replace(scan.source, window=None)), 1, (40.0, 80.0))
    np.testing.assert_array_equal(display(scan, 1), told)


@pytest.mark.parametrize(
    ("modality", "window", "centre", "origin"),
    [
        ("CT", (0.0, 101.0), 0.0, "the file"),
        ("CT", None, 40.0, "the default for CT"),
        ("CT", (90000.0, 10.0), 40.0, "the default for CT"),
        ("MR", (90000.0, 10.0), None, "percentiles 0.5 and 99.5 of each slice"),
        ("Ultrasound", None, None, "grey values as they are"),
    ],
)
def test_info_tells_the_window_that_is_shown(
    modality: str, window: tuple[float, float] | None, centre: float | None, origin: str
) -> None:
    values = RAMP if modality != "Ultrasound" else np.clip(RAMP, 0, 255)
    shown = volume(values, modality=modality, window=window)
    told = describe(shown)["window"]
    assert (told["centre"], told["from"]) == (centre, origin)
    scale = grey_scale(shown, 0)
    assert (scale.window and scale.window[0], scale.origin) == (centre, origin)
    if told["width"] is not None:
        np.testing.assert_array_equal(display(shown, 0), display(shown, 0, window=(told["centre"], told["width"])))


@pytest.mark.parametrize("value", [0.0, -1000.0, 1e17, -3e38])
def test_a_flat_slice_has_a_grey_however_large_its_value(value: float) -> None:
    assert len(np.unique(display(volume(np.full((4, 4), value, np.float32), modality="MR"), 0))) == 1
