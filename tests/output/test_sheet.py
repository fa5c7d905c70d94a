"""What an answer about a volume looks like on paper: a contact sheet, a page, a segmentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsight_core.imaging.dicom_seg import read_dicom_seg
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.output.overlay import region_colours
from medsight_core.output.sheet import MOST_TILES, make_sheet, tile_slices
from medsight_core.output.writer import write_answer
from medsight_core.regions import Answer, Provenance, Question, Region, Span, VolumeRegion
from tests.imaging.synthetic import write_series

TEXT = "The liver and a cyst."


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Eight slices of 24 x 32 pixels, as they were acquired."""
    folder = tmp_path_factory.mktemp("scans") / "series"
    write_series(folder)
    return open_volume(folder)


def about(volume: Volume, *, found: bool = True) -> tuple[Question, Answer]:
    """A large region on slices 1 to 6 and a small one on 4 and 5, or none."""
    frame = volume.require_frame()
    large, small = np.zeros(frame.shape, dtype=bool), np.zeros(frame.shape, dtype=bool)
    large[1:7, 4:18, 5:25] = True
    small[4:6, 8:11, 9:12] = True
    regions = (
        VolumeRegion(
            code="[C0_1]", label="liver", span=Span(4, 9), score=0.9, mask=large, frame=frame, key_slices=(2, 5)
        ),
        VolumeRegion(
            code="[C0_2]", label="cyst", span=Span(16, 20), score=0.4, mask=small, frame=frame, key_slices=(4,)
        ),
    )
    return Question(text="What is seen?", volume=volume, slice_index=3), Answer(
        text=TEXT,
        raw=TEXT,
        regions=(),
        warnings=(),
        provenance=Provenance(model="m", digest="d"),
        volume_regions=regions if found else (),
    )


def test_a_tile_for_each_slice_it_rests_on(series: Volume) -> None:
    question, answer = about(series)
    sheet = make_sheet(question, answer.volume_regions)
    assert [tile.slice_index for tile in sheet.tiles] == [2, 4, 5]
    for tile in sheet.tiles:
        assert tile.corner[0] + tile.size[0] <= sheet.size[0] and tile.corner[1] + tile.size[1] <= sheet.size[1]
    assert len(list(sheet.badges(1))) == 3 and len(list(sheet.badges(2))) == 2
    picture = sheet.picture()
    assert picture.width >= sheet.size[0] and picture.height > sheet.size[1], "a legend below"


def test_a_mask_lies_on_its_own_tile(series: Volume) -> None:
    question, answer = about(series)
    sheet = make_sheet(question, answer.volume_regions)
    colour = region_colours(answer.volume_regions)[1]
    alpha = np.asarray(sheet.layer(2, colour))[..., 3]
    for tile in sheet.tiles:
        (left, top), (width, height) = tile.corner, tile.size
        part = alpha[top : top + height, left : left + width]
        assert part.any() == (tile.slice_index in (4, 5))
        if part.any():
            rows, columns = np.nonzero(part > 60)
            scale = height / 24, width / 32
            assert rows.mean() / scale[0] == pytest.approx(9.5, abs=0.3)
            assert columns.mean() / scale[1] == pytest.approx(10.5, abs=0.3)


def test_which_slices_are_shown(series: Volume) -> None:
    _, answer = about(series)
    assert tile_slices((), otherwise=6) == [6]
    frame = series.require_frame()
    mask = np.ones(frame.shape, dtype=bool)
    resting_on_none = VolumeRegion(code="", label="x", span=Span(0, 0), score=1, mask=mask, frame=frame)
    assert tile_slices([resting_on_none], otherwise=0) == [3]

    class Many:
        key_slices = tuple(range(40))

    chosen = tile_slices([*answer.volume_regions, Many()], otherwise=0)  # type: ignore[list-item]
    assert len(chosen) == MOST_TILES and chosen[0] == 0 and chosen[-1] == 39 and chosen == sorted(set(chosen))


def test_an_answer_about_a_series_is_saved_whole(series: Volume, tmp_path: Path) -> None:
    question, answer = about(series)
    written = write_answer(question, answer, tmp_path / "out", nifti=True)
    assert set(written.files) == {
        "report.html", "answer.json", "overlay.png", "segmentation.dcm", "segmentation.nii.gz", "segmentation.json",
    }  # fmt: skip
    stored = read_dicom_seg(tmp_path / "out" / "segmentation.dcm")
    for number, region in enumerate(answer.volume_regions, start=1):
        frames = [one for one in stored if one.segment_number == number]
        assert len(frames) == np.ptp(region.slices) + 1 and frames[0].label == region.label
        assert sum(int(one.mask.sum()) for one in frames) == region.voxels
        for one in frames:
            k = min(range(8), key=lambda k: np.linalg.norm(series.slice_frame(k).origin - one.frame.origin))
            assert one.frame.is_close(series.slice_frame(k))
            np.testing.assert_array_equal(one.mask, region.mask[k])
    labels = nibabel.load(tmp_path / "out" / "segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(labels.dataobj).T == 2, answer.volume_regions[1].mask)
    content = json.loads((tmp_path / "out" / "answer.json").read_text(encoding="utf-8"))
    assert [one["key_slices"] for one in content["volume_regions"]] == [[2, 5], [4]]
    assert content["source"]["frame"]["shape"] == [8, 24, 32] and content["label_map"] == "segmentation.nii.gz"
    with Image.open(tmp_path / "out" / "overlay.png") as picture:
        assert picture.size == make_sheet(question, answer.volume_regions).picture().size


def test_the_page_ties_words_to_masks_on_all_tiles(series: Volume, tmp_path: Path) -> None:
    question, answer = about(series)
    write_answer(question, answer, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<img class="layer"', page)) == 2
    assert len(re.findall(r'<span class="mark" data-region="1"', page)) == 3
    assert re.search(r'data-regions="1"[^>]*>liver<sup>1</sup>', page)
    assert "<th>Volume</th>" in page and answer.volume_regions[0].volume_text in page


def test_without_a_finding_the_asked_slice_is_shown(series: Volume, tmp_path: Path) -> None:
    question, answer = about(series, found=False)
    written = write_answer(question, answer, tmp_path / "out", nifti=True)
    assert set(written.files) == {"report.html", "answer.json", "overlay.png"}


def test_a_region_of_a_volume_says_how_large_it_is(series: Volume) -> None:
    _, answer = about(series)
    large, small = answer.volume_regions
    assert large.voxels == 6 * 14 * 20 and large.slices == (1, 6) and small.slices == (4, 5)
    assert large.volume_mm3 == pytest.approx(large.voxels * float(np.prod(series.require_frame().spacing)))
    part = small.on_slice(series, 4)
    assert isinstance(part, Region) and part.area_pixels == 9 and part.frame is series.slice_frame(4)
    assert small.on_slice(series, 0) is None
    assert large.certainty == "certain" and small.certainty == "uncertain"
    assert large.to_json()["voxels"] == large.voxels
    with pytest.raises(ValueError, match="read-only"):
        large.mask[0, 0, 0] = True
