"""`medsight ask` about whole volumes: what it says, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medsight_core.cli import app
from medsight_core.imaging.dicom_seg import read_dicom_seg
from medsight_core.imaging.volume import open_volume
from tests.imaging.synthetic import write_series
from tests.inference.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", class_names=["liver", "left lung", "polyp", "spleen"])


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT of eight slices."""
    folder = tmp_path_factory.mktemp("scans") / "series"
    write_series(folder)
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["ask", *map(str, words)])


def test_a_question_about_a_volume(series: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(series, "What is this?", "--volume", "--model", model, "--out", out, "--nifti")
    assert result.exit_code == 0, result.output
    assert "Looks at 8 axial slices (0 to 7) and reads 7: about" in result.output, "the plan comes first"
    content = json.loads((out / "answer.json").read_text(encoding="utf-8"))
    assert content["text"] and content["regions"] == []
    assert content["settings"]["looked_at"] == 8
    volume = open_volume(series)
    assert content["volume_regions"], "the random model draws something"
    stored = read_dicom_seg(out / "segmentation.dcm")
    for number, region in enumerate(content["volume_regions"], start=1):
        frames = [one for one in stored if one.segment_number == number]
        assert sum(int(one.mask.sum()) for one in frames) == region["voxels"]
        assert all(any(one.frame.is_close(frame) for frame in volume.slice_frames) for one in frames)
    assert {"report.html", "overlay.png", "segmentation.nii.gz"} <= {path.name for path in out.iterdir()}


def test_a_part_in_another_plane(series: Path, model: Path, tmp_path: Path) -> None:
    result = run(
        series, "What is this?", "--plane", "coronal", "--slices", "3:9", "--slice", 5, "--model", model,
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    settings = content["settings"]
    assert settings["plane"] == "coronal" and settings["slices"] == [3, 9] and 5 in settings["slices_read"]


def test_every_slice_read(series: Path, model: Path, tmp_path: Path) -> None:
    result = run(series, "What is this?", "--exact", "--model", model, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["settings"]["slices_read"] == list(range(8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--slices", "5:5"), "holds no slice"),
        (("--slices", "5:99"), "reaches outside"),
        (("--slices", "some"), "takes A:B"),
        (("--plane", "slanted"), 'no plane "slanted"'),
        (("--volume", "--point", "3,4"), "lies on one slice"),
        (("--volume", "--slice", "99"), "no slice 99"),
    ],
)
def test_bad_options_are_named_before_the_model_is_loaded(series: Path, options: tuple, said: str) -> None:
    result = run(series, "What is this?", *options, "--out", series.parent / "never")
    assert result.exit_code == 2 and said in " ".join(result.output.split())
    assert result.output.count("error:") == 1 and not (series.parent / "never").exists()


def test_a_series_with_a_gap_needs_resampling(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gappy"
    write_series(folder, missing=(3,))
    refused = run(folder, "What is this?", "--volume", "--model", model, "--out", tmp_path / "out")
    assert refused.exit_code == 2 and "--resample" in refused.output
    result = run(
        folder, "What is this?", "--volume", "--resample", "--model", model, "--out", tmp_path / "out", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["settings"]["slices"] == [0, 8]
