"""What is found in an archive, and what it is called."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medsight_core.batch.archive import FolderArchive, Item
from medsight_core.errors import InputError
from medsight_core.imaging.volume import open_volume
from tests.batch.archives import SHAPE, small, untidy
from tests.imaging.synthetic import change_file, write_series


def found(root: Path, **options: Path) -> dict[str, Item]:
    return {item.files[0]: item for item in FolderArchive(root=root, **options).items()}


def test_every_scan_is_found_once_and_nothing_else(tmp_path: Path) -> None:
    items = found(untidy(tmp_path))
    assert {name.rpartition("/")[0] or name for name in items} == {
        "copies/of the ct", "two/mr", "three", "four", "scan.nii.gz", "picture.png", "lost.dcm",
    }  # fmt: skip
    by_folder = {name.rpartition("/")[0]: item for name, item in items.items()}
    assert len(by_folder["copies/of the ct"].files) == 2 * SHAPE[0]
    assert by_folder["copies/of the ct"].modality == "CT" and by_folder["two/mr"].modality == "MR"
    assert items["scan.nii.gz"].modality is None
    assert "four/rest.dcm" in by_folder["four"].files  # it may be a slice that is missing there
    assert len({item.id for item in items.values()}) == len(items)


def test_a_series_is_read_as_by_itself_wherever_its_files_lie(tmp_path: Path) -> None:
    series = write_series(tmp_path / "a", shape=(4, 24, 32))
    write_series(tmp_path / "a" / "other", shape=SHAPE, seed=9)
    (tmp_path / "b").mkdir()
    for path in series.paths[:2]:
        shutil.move(path, tmp_path / "b" / path.name)
    archive = FolderArchive(root=tmp_path)
    item = next(item for item in archive.items() if item.series_uid == series.series_uid)
    volume = archive.read(item)
    np.testing.assert_array_equal(volume.array, series.array)
    assert volume.frame is not None and volume.frame.is_close(series.frame)


def test_a_copy_adds_nothing_to_a_series_but_a_sentence(tmp_path: Path) -> None:
    series = write_series(tmp_path / "a", shape=SHAPE)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    archive = FolderArchive(root=tmp_path)
    (item,) = archive.items()
    volume = archive.read(item)
    np.testing.assert_array_equal(volume.array, series.array)
    assert any("repeat another image" in sentence for sentence in volume.warnings)


def test_a_damaged_slice_is_named_and_never_left_out_silently(tmp_path: Path) -> None:
    root = untidy(tmp_path)
    archive = FolderArchive(root=root)
    items = found(root)
    three = next(item for name, item in items.items() if name.startswith("three"))
    with pytest.raises(InputError, match="cut off") as caught:
        archive.read(three)
    assert caught.value.code == "pixels_unreadable"
    with pytest.raises(InputError):
        archive.read(items["lost.dcm"])


def test_images_without_a_common_place_are_items_by_themselves(tmp_path: Path) -> None:
    bare = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    write_series(tmp_path / "film", shape=(2, 24, 32), changes={"Modality": "DX", **bare})
    write_series(tmp_path / "ct", shape=(2, 24, 32), changes=bare)
    items = FolderArchive(root=tmp_path).items()
    assert sorted((item.modality, len(item.files)) for item in items) == [("CT", 2), ("X-ray", 1), ("X-ray", 1)]
    film = next(item for item in items if item.modality == "X-ray")
    assert FolderArchive(root=tmp_path).read(film).n_slices == 1


def test_series_without_a_uid_do_not_run_into_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for path in write_series(tmp_path / name, shape=SHAPE).paths:
            change_file(path, SeriesInstanceUID=None)
    archive = FolderArchive(root=tmp_path)
    items = archive.items()
    assert [len(item.files) for item in items] == [SHAPE[0]] * 2
    assert archive.read(items[0]).n_slices == SHAPE[0]


def test_an_item_keeps_its_name_when_the_archive_moves_and_its_stamp_until_a_file_changes(tmp_path: Path) -> None:
    small(tmp_path / "here")
    before = FolderArchive(root=tmp_path / "here").items()
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = FolderArchive(root=tmp_path / "there").items()
    assert before == after
    changed = tmp_path / "there" / before[0].files[0]
    changed.write_bytes(changed.read_bytes() + b"\0")
    again = FolderArchive(root=tmp_path / "there").items()
    assert [one.id for one in again] == [one.id for one in before]
    assert [one.stamp == other.stamp for one, other in zip(before, again, strict=True)] == [False, True, True, True]


def test_the_name_of_an_item_tells_nobody_what_it_is(tmp_path: Path) -> None:
    for item in FolderArchive(root=small(tmp_path)).items():
        assert len(item.id) == 16 and item.id.isalnum()
        assert item.id not in item.key and not any(part in item.id for part in item.series_uid.split(".")[-1:] if part)


def test_results_inside_the_archive_are_not_scans(tmp_path: Path) -> None:
    small(tmp_path)
    write_series(tmp_path / "answers" / "deep", shape=SHAPE)
    assert len(found(tmp_path)) == 5
    assert len(found(tmp_path, without=tmp_path / "answers")) == 4


def test_the_readers_are_the_project_s_own(tmp_path: Path) -> None:
    root = small(tmp_path)
    archive = FolderArchive(root=root)
    for name in ("scan.nii.gz", "picture.png"):
        np.testing.assert_array_equal(archive.read(found(root)[name]).array, open_volume(root / name).array)
