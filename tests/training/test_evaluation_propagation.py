"""One click followed through a volume, beside a click on every slice: against a session whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from medsight_core.errors import InputError
from medsight_core.events import Event
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Prompt, Region, Span, VolumeRegion
from tests.inference.tiny import save_tiny
from training.cli import app
from training.evaluation.propagation import Labelled, follow, read_pairs, summarise

AFFINE = np.diag([-0.7, -0.7, 3.0, 1.0])


def labels_of_two() -> np.ndarray:
    """A front part on slices 1 to 3 and a back part on slices 3 to 6; something else on one slice."""
    labels = np.zeros((30, 24, 8), np.uint8)
    labels[5:15, 5:15, 1:4] = 1
    labels[15:25, 5:15, 3:7] = 2
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = labels_of_two()
    image = (labels > 0) * 200 + rng.normal(0, 10, labels.shape)
    nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), AFFINE), tmp_path / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / "labels.nii.gz")
    rows = [
        {"file": "scan.nii.gz", "kind": "image", "image": None, "labels": None},
        {"file": "labels.nii.gz", "kind": "label", "image": "scan.nii.gz",
         "labels": {"1": "anterior hippocampus", "2": "posterior hippocampus"}},
    ]  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


class KnownSession:
    """Draws the truth on each slice, all but its last row; follows it one slice too far, downwards only."""

    perceived = 7

    def __init__(self, volume: Volume, truth: np.ndarray, log: list[int]) -> None:
        self.volume, self.truth, self.log = volume, truth, log
        self.volume_region: VolumeRegion | None = None

    def add(self, prompt: Prompt, slice_index: int) -> Region | None:
        self.log.append(slice_index)
        mask = self.truth[slice_index].copy()
        mask[np.flatnonzero(mask.any(axis=1))[-1:]] = False
        self.clicked = slice_index
        frame = self.volume.slice_frame(slice_index)
        return Region(
            code="[C0_0]", label="x", span=Span(0, 0), score=1, slice_index=slice_index, mask=mask, frame=frame
        )

    def propagate(self) -> Iterator[Event]:
        mask = np.zeros(self.truth.shape, bool)
        mask[: self.clicked + 1] = self.truth[: self.clicked + 1]
        self.volume_region = VolumeRegion(
            code="[C0_0]", label="x", span=Span(0, 0), score=1, mask=mask, frame=self.volume.require_frame()
        )
        return iter(())


def test_a_manifest_gives_scans_with_their_structures_and_the_whole(folder: Path) -> None:
    (pair,) = read_pairs(folder / "manifest.jsonl")
    volume, masks = pair.read()
    assert list(masks) == ["anterior hippocampus", "posterior hippocampus", "hippocampus"]
    assert volume.array.shape == (8, 24, 30)
    assert masks["hippocampus"].sum() == 300 + 400
    unnamed = Labelled(image=pair.image, labels=pair.labels, names={})
    assert list(unnamed.read()[1]) == ["label 1", "label 2"]


def test_both_ways_are_scored_in_3d(folder: Path) -> None:
    pairs = read_pairs(folder / "manifest.jsonl")
    whole = labels_of_two().T[...] == 2
    log: list[int] = []
    steps: list[int] = []
    results = list(follow(lambda volume: KnownSession(volume, whole, log), pairs, on_progress=steps.append))
    one = next(result for result in results if result.structure == "posterior hippocampus")
    assert steps == [1] and one.slices == 4 and one.truth == (3, 6) and one.clicked == 3
    # Each slice lacks a tenth of the truth: 2 x 0.9 / 1.9. One click gives slice 3 of 3 to 6, whole: 2 x 1 / 5.
    assert one.per_slice == pytest.approx(1.8 / 1.9)
    assert one.propagated == pytest.approx(0.4)
    assert one.ratio == pytest.approx(0.4 / (1.8 / 1.9)) and one.found == (3, 3) and one.passes == 7
    report = summarise([one, one])
    assert report["ratio_of_means"] == pytest.approx(one.ratio, abs=1e-4)
    assert report["median_ratio"] == pytest.approx(one.ratio, abs=1e-4)


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    shifted = np.array(AFFINE)
    shifted[0, 3] = 5
    nibabel.save(nibabel.Nifti1Image(labels_of_two(), shifted), folder / "elsewhere.nii.gz")
    pair = Labelled(image=folder / "scan.nii.gz", labels=folder / "elsewhere.nii.gz", names={})
    with pytest.raises(InputError, match="does not lie on the grid"):
        pair.read()
    (folder / "bad.jsonl").write_text('{"file": "x"}', encoding="utf-8")
    with pytest.raises(InputError, match="no manifest of volumes"):
        read_pairs(folder / "bad.jsonl")
    (folder / "labels.nii.gz").unlink()
    with pytest.raises(InputError, match="There is no file"):
        read_pairs(folder / "manifest.jsonl")


def test_the_command_follows_with_a_real_model(folder: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    given = ["--volume", str(folder / "scan.nii.gz"), "--labels", str(folder / "labels.nii.gz")]
    arguments = ["eval", "propagation", *given, "--model", str(model), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert [row["structure"] for row in figures["structures"]] == ["label 1", "label 2"]
    assert all(0 <= row["propagated"] <= 1 for row in figures["structures"])
    assert (tmp_path / "out" / "propagation.md").is_file()
    for wrong, words in ((given[:2], "go in pairs"), (["--only", "x", *given], "no volume")):
        refused = CliRunner().invoke(app, ["eval", "propagation", *wrong])
        assert refused.exit_code == 2 and words in refused.output
