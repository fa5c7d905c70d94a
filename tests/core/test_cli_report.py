"""`medsight report`: what it writes and prints, and how it refuses. On a tiny real model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import medsight_core.cli.report as report_module
from medsight_core import events
from medsight_core.cli import app
from medsight_core.cli.report import parse_names
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.loading import load
from medsight_core.inference.volumes import VolumeEngine
from tests.imaging.synthetic import write_series
from tests.inference.tiny import save_tiny

CLASSES = ["liver", "spleen", "liver tumor", "aorta"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny checkpoint that takes everything for a liver and nothing for anything else."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny", class_names=CLASSES)
    changed, _ = load(open_checkpoint(folder))
    with torch.no_grad():
        changed.model.perceiver.segmentation_cls_head.class_embed.bias[0] = 40.0
    changed.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CT series of 5 slices of 24 x 32 pixels."""
    return str(write_series(tmp_path_factory.mktemp("scans") / "ct", shape=(5, 24, 32)).folder)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDSIGHT_DEBUG", raising=False)
    return tmp_path


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def refused(*arguments: str) -> str:
    """One clear line on stderr, exit code 2, nothing written."""
    before = sorted(os.listdir())
    stdout, stderr = run(*arguments, code=2)
    assert stdout == ""
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert sorted(os.listdir()) == before
    return stderr


def content_of(folder: str) -> dict:
    return json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))


def test_a_series_gives_the_whole_report(series: str, model: str) -> None:
    stdout, stderr = run(series, "--model", model, "--ask", "How large is the liver?", "--ask", "Is there a spleen?")
    assert stdout.startswith("Draft by tiny - not verified - research use\n")
    assert "How large is the liver?\n  liver" in stdout
    assert "Is there a spleen?\n  No. I looked for spleen and found none." in stdout
    assert stdout.splitlines()[-1] == (
        "Written to medsight-report/: report.html, report.dcm, report.json, report.md, segmentation.dcm"
    )
    assert "survey" in stderr
    content = content_of("medsight-report")
    assert [one["name"] for one in content["looked_for"]] == CLASSES
    assert [one["label"] for one in content["regions"]] == ["liver"]
    assert content["slices_looked_at"] == [0, 1, 2, 3, 4]
    assert {"read_scan", "load_model", "survey", "look"} <= set(content["timings"])
    segmentation = hd.seg.segread("medsight-report/segmentation.dcm")
    voxels = int(segmentation.pixel_array.sum())
    report = hd.sr.srread("medsight-report/report.dcm")
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    (volume,) = [one.value for one in group.get_measurements() if one.name.meaning == "Volume"]
    assert voxels == content["regions"][0]["voxels"] > 0
    assert volume == pytest.approx(voxels * 2.5 * 0.8 * 0.7, rel=1e-6)
    assert group.tracking_uid == segmentation.get_segment_description(1).tracking_uid
    assert report.VerificationFlag == "UNVERIFIED"


def test_only_what_was_asked_for_is_looked_for(series: str, model: str) -> None:
    run(series, "--model", model, "--structures", "spleen, aorta", "--ask", "Is there a liver tumor?", "-o", "out")
    content = content_of("out")
    assert [one["name"] for one in content["looked_for"]] == ["spleen", "aorta", "liver tumor"]
    texts = [one["text"] for section in content["sections"] for one in section.get("structures", [])]
    assert texts[0].startswith("Spleen: not found") and texts[1].startswith("Aorta: not found")
    assert not Path("out/segmentation.dcm").exists() and not Path("out/report.dcm").exists()


def test_json_is_all_there_is_on_stdout(series: str, model: str) -> None:
    stdout, _ = run(series, "--model", model, "--json", "-o", "here")
    content = json.loads(stdout)
    assert content.pop("out") == "here"
    assert content == content_of("here")


def test_a_range_of_slices_is_all_that_is_read(series: str, model: str) -> None:
    run(series, "--model", model, "--slices", "1:3", "-o", "out")
    content = content_of("out")
    assert content["slices_looked_at"] == [1, 2]
    assert content["regions"][0]["slices"] in ([1, 2], [1, 1], [2, 2])
    assert "Slices 1 to 2 alone were looked at by tiny" in Path("out/report.md").read_text(encoding="utf-8")


def test_another_plane_is_named_and_the_masks_stay_on_the_scan(model: str) -> None:
    rng = np.random.default_rng(3)
    affine = np.array([[-0.7, 0, 0, 30], [0, 0.7, 0, -20], [0, 0, 3.5, 8], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(rng.normal(0, 20, (40, 30, 6)).astype(np.float32), affine), "mr.nii.gz")
    run("mr.nii.gz", "--model", model, "--plane", "coronal", "--slices", "10:20", "--ask", "Describe it.", "-o", "out")
    content = content_of("out")
    assert content["source"]["shape"] == [6, 30, 40]
    assert content["slices_looked_at"] == list(range(6))
    text = Path("out/report.md").read_text(encoding="utf-8")
    assert "10 coronal slices were looked at by tiny" in text and "coronal slices 10 to 19" in text
    assert Path("out/segmentation.seg.nrrd").is_file() and not Path("out/report.dcm").exists()


def test_a_template_may_name_what_the_model_does_not_know(series: str, model: str) -> None:
    Path("ours.toml").write_text('title = "Ours"\nstructures = ["appendix", "liver"]', encoding="utf-8")
    run(series, "--model", model, "--template", "ours.toml", "-o", "out")
    content = content_of("out")
    assert content["title"] == "Ours"
    (findings,) = [section for section in content["sections"] if section["kind"] == "findings"]
    assert [(one["name"], one["basis"]) for one in findings["structures"]] == [
        ("appendix", "nothing"), ("liver", "slices"),
    ]  # fmt: skip


def test_what_can_be_refused_early_is_refused_before_the_model_is_loaded(
    series: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(report_module, "load_engine", never)
    Path("bad.toml").write_text("sections = 3", encoding="utf-8")
    Path("file").write_text("not a folder")
    for arguments, words in (
        (("nowhere",), "no file or folder nowhere"),
        ((series, "--template", "bad.toml"), "The template bad.toml is of no use"),
        ((series, "--template", "none.toml"), "cannot be read"),
        ((series, "--structures", " , "), "--structures names nothing"),
        ((series, "--ask", " "), "question of --ask is empty"),
        ((series, "--plane", "oblique"), 'There is no plane "oblique"'),
        ((series, "--slices", "3"), "--slices takes A:B"),
        ((series, "--slices", "3:3"), "holds no slice"),
        ((series, "--slices", "2:9"), "reaches outside"),
        ((series, "--model", "nowhere"), "not a folder"),
        ((series, "--out", "file"), "not a folder"),
    ):
        assert words in refused(*arguments), arguments


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((20, 20, 4, 3), (), "holds 3 volumes, such as time points"),
        ((20, 20, 1), ("--plane", "coronal"), "a single axial slice"),
        ((20, 20, 4), ("--plane", "coronal", "--slices", "15:25"), "slices are 0 to 19"),
        ((20, 20, 4), ("--slices", "2:2"), "holds no slice"),
    ],
)
def test_what_is_no_such_volume_is_refused_before_the_model_is_loaded(
    shape: tuple[int, ...], options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "load_engine", lambda *_: pytest.fail("the model was loaded"))
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.diag([-1.0, -1.0, 1.0, 1.0])), "scan.nii")
    assert words in refused("scan.nii", *options)


def test_a_structure_that_nobody_knows_is_refused(series: str, model: str) -> None:
    assert 'does not know "appendix"; it knows liver' in refused(series, "--model", model, "--structures", "appendix")
    Path("ours.toml").write_text('structures = ["appendix"]', encoding="utf-8")
    assert "none of the structures of the template" in refused(series, "--model", model, "--template", "ours.toml")


@pytest.mark.parametrize("at", ["survey", "write"])
def test_an_interrupt_leaves_what_was_there(
    at: str, series: str, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(series, "--model", model, "-o", "out")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if at == "survey":
        monkeypatch.setattr(VolumeEngine, "look", stop)
    else:
        monkeypatch.setattr("medsight_core.output.draft_writer.draft_page", stop)
    _, stderr = run(series, "--model", model, "--structures", "spleen", "-o", "out", code=130)
    assert "nothing was written" in stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_stopped_answer_is_one_line(series: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        VolumeEngine, "ask", lambda *_, **__: iter([events.Failed("bad", "It is\ntoo large.", "Use less.")])
    )
    assert "It is too large. Use less." in refused(series, "--model", model, "--ask", "Describe it.")


def test_names_come_one_by_one_or_with_commas() -> None:
    assert parse_names(["liver, left   kidney", "spleen", "liver"]) == ("liver", "left kidney", "spleen")
    assert parse_names([]) == ()
