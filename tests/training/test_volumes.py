"""Labelled volumes as training slices."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medsight_core.errors import InputError
from training.data.biomedparse import Sample
from training.data.volumes import load_volumes

CLASSES = ("anterior part", "liver", "organ")


def write(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(path))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Ten slices: an anterior part in 2..5, a posterior one in 4..7, seen as one organ."""
    labels = np.zeros((10, 24, 24), np.uint8)
    labels[2:6, 4:10, 4:10] = 1
    labels[4:8, 12:20, 4:10] = 2
    write(tmp_path / "scan.nii.gz", (labels > 0).astype(np.int16) * 100)
    write(tmp_path / "labels.nii.gz", labels)
    row = {"file": "labels.nii.gz", "image": "scan.nii.gz", "labels": {"1": "anterior part", "2": "posterior part"}}
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"file": "scan.nii.gz"}) + "\n" + json.dumps(row))
    return tmp_path / "manifest.jsonl"


def load(manifest: Path, **entry: str) -> list[Sample]:
    use = [{"labels": "labels.nii.gz", "site": "abdomen", **entry}]
    return load_volumes(manifest, use, classes=CLASSES, size=48)


def words(sample: Sample) -> list[tuple[str, ...]]:
    return sorted(target.names for target in sample.targets)


def by_place(samples: list[Sample]) -> dict[int, Sample]:
    """Samples by the slice of the file that they show, whatever order the reader gave them."""
    return {int(sample.path.split("#")[1]): sample for sample in samples}


def test_every_slice_is_a_sample_and_says_what_is_absent(manifest: Path) -> None:
    samples = load(manifest)
    assert len(samples) == 10 and all(sample.complete for sample in samples)
    assert sum(bool(sample.targets) for sample in samples) == 4  # "posterior part" is no class
    assert {name for sample in samples for names in words(sample) for name in names} == {"anterior part"}
    assert all(sample.image.shape == (48, 48, 3) for sample in samples)


def test_parts_and_their_whole(manifest: Path) -> None:
    """Two parts are two masks and their union; a part that is all of it shares its mask with the whole."""
    samples = by_place(load(manifest, whole="organ"))
    kinds = {tuple(words(sample)) for sample in samples.values()}
    assert kinds == {
        (),
        (("anterior part", "organ"),),
        (("organ", "posterior part"),),
        (("anterior part",), ("organ",)),
    }
    both = next(s for s in samples.values() if len(s.targets) == 2)
    areas = {target.name: int(target.mask.sum()) for target in both.targets}
    assert areas == {"anterior part": 144, "organ": 144 + 192}


def test_neighbours_bring_their_masks(manifest: Path) -> None:
    samples = by_place(load(manifest))
    for k, sample in samples.items():
        around = [t.name for n in (k - 1, k + 1) if n in samples for t in samples[n].targets]
        assert [target.name for target in sample.nearby] == around
    assert any(sample.nearby and not sample.targets for sample in samples.values())


def test_slices_with_a_structure_can_be_left_out(manifest: Path) -> None:
    assert len(load(manifest, without="anterior part")) == 6


def test_a_label_map_that_is_not_there_is_named(manifest: Path) -> None:
    with pytest.raises(InputError, match=r"no label map other\.nii.* It has labels\.nii\.gz\."):
        load_volumes(manifest, [{"labels": "other.nii", "site": "x"}], classes=CLASSES)


def test_a_manifest_that_is_not_there_is_named_with_the_way_to_do_without(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.volumes=null"):
        load_volumes(tmp_path / "manifest.jsonl", [], classes=CLASSES)


def test_a_mistyped_setting_is_no_silence(manifest: Path) -> None:
    with pytest.raises(InputError, match="no setting withuot"):
        load(manifest, withuot="anterior part")


def test_labels_on_another_grid_are_refused(manifest: Path) -> None:
    write(manifest.parent / "scan.nii.gz", np.zeros((9, 24, 24), np.int16))
    with pytest.raises(ValueError, match="does not lie on the grid"):
        load(manifest)
