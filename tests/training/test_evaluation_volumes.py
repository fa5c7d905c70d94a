"""3D Dice of structures asked for by text: the right masks are compared, the right structures asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from medsight_core.events import Done, Event
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Answer, Provenance, Span, VolumeRegion
from tests.inference.tiny import save_tiny
from training.cli import app
from training.evaluation.propagation import read_pairs
from training.evaluation.volumes import known_structures, markdown, measure, summarise, write_report

CLASSES = ("left lung", "liver", "spleen")
SHAPE = (20, 18, 9)  # of the files: columns, rows, slices


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A scan with a liver (1), a spleen (2) and a femur (3)."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:10, 3:12, 1:7] = 1
    labels[12:17, 3:8, 2:5] = 2
    labels[12:17, 12:16, 2:5] = 3
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    image = np.random.default_rng(0).normal(0, 60, SHAPE) + 100.0 * labels
    nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), affine), tmp_path / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "labels.nii.gz")
    rows = [
        {"file": "scan.nii.gz", "kind": "image"},
        {
            "file": "labels.nii.gz",
            "kind": "label",
            "image": "scan.nii.gz",
            "labels": {"1": "liver", "2": "spleen", "3": "femur"},
        },
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


@dataclass
class Knowing:
    """Draws the liver right when it reads every slice, half of it otherwise, and nothing else."""

    truth: np.ndarray
    classes: tuple[str, ...] = CLASSES
    forgotten: list[Volume] = field(default_factory=list)

    def ask(self, text: str, volume: Volume, *, plane: str, exact: bool = False) -> Iterator[Event]:
        mask = self.truth.copy()
        if not exact:
            mask[4:] = False
        regions = (self._region(mask, volume),) if "liver" in text else ()
        seconds = {"look": 4.0, "read": 2.0 if exact else 1.0, "total": 6.0 if exact else 5.0}
        origin = Provenance(model="m", digest="d", settings={"slices_read": [1] * (9 if exact else 3)}, timings=seconds)
        yield Done(Answer(text="", raw="", regions=(), warnings=(), provenance=origin, volume_regions=regions))

    def survey(self, volume: Volume, names: Sequence[str], *, plane: str) -> Knowing:
        self.regions = {name: self._region(self.truth, volume) if name == "liver" else None for name in names}
        return self

    def forget(self, volume: Volume) -> None:
        self.forgotten.append(volume)

    def _region(self, mask: np.ndarray, volume: Volume) -> VolumeRegion:
        return VolumeRegion(
            code="[C0_1]", label="liver", span=Span(0, 0), score=1.0, mask=mask, frame=volume.require_frame()
        )


def test_each_way_is_compared_with_the_truth(manifest: Path, tmp_path: Path) -> None:
    (pair,) = read_pairs(manifest)
    _, masks = pair.read()
    assert known_structures(masks, CLASSES) == ["liver", "spleen"]
    knowing = Knowing(masks["liver"])
    results = list(measure(knowing, [pair]))
    liver, spleen = results
    assert (liver.exact, liver.survey) == (1.0, 1.0) and liver.once == pytest.approx(2 * 3 / (3 + 6))
    assert (spleen.once, spleen.exact, spleen.survey) == (0.0, 0.0, 0.0)
    assert liver.slices == (6, 9) and liver.read == {"once": 3, "exact": 9}
    assert liver.seconds == {"once": 5.0, "exact": 6.0} and len(knowing.forgotten) == 1
    np.testing.assert_array_equal(liver.picture.masks["exact"], liver.picture.masks["truth"])
    figures = summarise(results)
    assert figures["dice"] == {"once": pytest.approx(1 / 3, abs=1e-4), "exact": 0.5, "survey": 0.5}
    report = {
        "model": {"name": "m", "digest": "d"},
        **figures,
        "settings": {"device": "cpu", "threads": 1, "plane": "acquired"},
    }
    table = markdown(report)
    assert "| scan.nii.gz | liver | 6 of 9 | 0.667 | 1.000 | 1.000 | 3 | 5.0 | 6.0 |" in table
    files = write_report(tmp_path, report=report, results=results)
    assert [file.name for file in files] == ["volumes.json", "volumes.md", "volumes.png"]
    assert all(file.stat().st_size for file in files)
    (alone,) = (one for one in measure(knowing, [pair], exact=False) if one.structure == "liver")
    assert alone.exact is None and "| - |" in markdown({**report, **summarise([alone])})


def test_the_command_on_a_real_model(manifest: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny", class_names=[*CLASSES, "polyp"])
    words = ["eval", "volumes", "--manifest", manifest, "--model", model, "--out", tmp_path / "out", "--json"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert [row["structure"] for row in figures["structures"]] == ["liver", "spleen"]
    assert all(0 <= value <= 1 for row in figures["structures"] for value in row["dice"].values())
    assert all(row["slices_read"] == {"once": 7, "exact": 9} for row in figures["structures"])


def test_a_manifest_without_a_volume_is_named(manifest: Path, tmp_path: Path) -> None:
    words = ["eval", "volumes", "--manifest", manifest, "--only", "elsewhere", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2 and "no volume to measure on" in result.output
