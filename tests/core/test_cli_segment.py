"""`medsight segment`: what it makes of clicks, outlines, masks and words, and how it refuses. On a tiny real model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import examples
from typer.testing import CliRunner

import medsight_core.cli.segment as segment_module
from medsight_core.cli import app
from medsight_core.cli.prompts import parse_slices, place_prompt
from medsight_core.errors import InputError
from medsight_core.imaging.dicom_seg import read_dicom_seg
from medsight_core.imaging.volume import open_volume
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.inference.loading import load
from medsight_core.inference.session import Session
from tests.inference.tiny import save_tiny

CT = str(examples.get_path("ct"))  # 128 x 128 pixels
SLICES, ROWS, COLUMNS = 6, 50, 80


def checkpoint(folder: Path, bias: float) -> Path:
    """A tiny checkpoint whose class "no object" is never (or, with a positive bias, always) the likeliest."""
    save_tiny(folder)
    model, _ = load(open_checkpoint(folder))
    with torch.no_grad():
        model.model.perceiver.segmentation_cls_head.class_embed.bias[-1] = bias
    model.generation_config.max_new_tokens = 12  # it writes gibberish; a little of it will do
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("models") / "seeing", -20.0))


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("models") / "blind", 20.0))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An oblique NIfTI volume with a bright block."""
    rng = np.random.default_rng(1)
    array = rng.normal(0, 20, (COLUMNS, ROWS, SLICES))
    array[20:60, 10:40] += 500
    affine = np.array([[-0.48, 0.28, 0, 30], [0.1, 1.344, 0, -20], [0, 0, 3.5, 8], [0, 0, 0, 1.0]])
    path = tmp_path_factory.mktemp("scans") / "mr.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), affine), path)
    return str(path)


@pytest.fixture(autouse=True)
def undemanding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights a region that is followed is never the same structure as on the slice before."""
    monkeypatch.setattr("medsight_core.inference.session.AGREEMENT", 0.0)
    monkeypatch.setattr("medsight_core.inference.propagation.goes_on", lambda before, after: True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDSIGHT_DEBUG", raising=False)
    return tmp_path


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["segment", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def result(out: str = "medsight-segment") -> dict:
    return json.loads(Path(out, "segment.json").read_text(encoding="utf-8"))


def test_a_click_gives_a_table_a_picture_and_a_segmentation(scan: str, seeing: str) -> None:
    stdout, stderr = run(scan, "--point", "30,20", "--slice", "2", "--model", seeing)
    content = result()
    (region,) = content["regions"]
    assert content["slice"] == region["slice"] == 2 and content["volume_regions"] == []
    for words in (region["label"], region["code"], f"{region['score']:.2f}", "mm²", "Area"):
        assert words in stdout
    assert "Written to medsight-segment/: overlay.png, segment.json, segmentation.seg.nrrd" in stdout
    assert "Research use only" in stderr
    assert sorted(os.listdir("medsight-segment")) == ["overlay.png", "segment.json", "segmentation.seg.nrrd"]
    assert content["settings"]["encoded"] == content["settings"]["perceived"] == 1
    with Image.open("medsight-segment/overlay.png") as picture:
        assert min(picture.size) > 500


def test_clicks_count_as_in_a_session(scan: str, seeing: str) -> None:
    run(scan, "--point", "30,20", "--point", "50,30", "--negative", "3,3", "--slice", "2", "--nifti", "--model", seeing)
    volume = open_volume(scan)
    session = Session(Engine.from_pretrained(seeing, device="cpu"), volume)
    frame = volume.slice_frame(2)
    for xy, positive in (((30, 20), True), ((50, 30), True), ((3, 3), False)):
        session.add(place_prompt("point", (xy,), frame, positive=positive), 2)
    assert session.region is not None
    labels = open_volume("medsight-segment/segmentation.nii.gz")
    assert labels.frame is not None and volume.frame is not None and labels.frame.is_close(volume.frame)
    assert np.array_equal(labels.array[2] > 0, session.region.mask)
    assert [prompt["positive"] for prompt in result()["prompts"]] == [True, True, False]


def test_a_click_is_followed_through_the_volume_and_saved_in_place(scan: str, seeing: str) -> None:
    stdout, _ = run(scan, "--point", "30,20", "--slice", "2", "--volume", "-o", "block.nii.gz", "--model", seeing)
    assert sorted(os.listdir()) == ["block", "block.json", "block.nii.gz"]
    assert sorted(os.listdir("block")) == ["overlay.png", "segment.json", "segmentation.seg.nrrd"]
    content = result("block")
    (region,) = content["volume_regions"]
    assert content["regions"] == [] and region["key_slices"] == [2] and region["slices"] == [0, SLICES - 1]
    assert "Volume" in stdout and ("mm³" in stdout or "ml" in stdout) and "Written: block.nii.gz" in stdout
    volume, labels = open_volume(scan), open_volume("block.nii.gz")
    assert labels.frame is not None and volume.frame is not None and labels.frame.is_close(volume.frame)
    assert np.count_nonzero(labels.array) == region["voxels"]
    meaning = json.loads(Path("block.json").read_text(encoding="utf-8"))
    assert list(meaning["labels"]) == ["background", region["label"]]


def test_a_range_bounds_the_volume(scan: str, seeing: str) -> None:
    run(scan, "--point", "30,20", "--volume", "--slices", "1:4", "--model", seeing)
    content = result()
    assert content["volume_regions"][0]["slices"] == [1, 3]
    assert content["settings"]["encoded"] == 3


def test_a_dicom_source_gets_a_dicom_segmentation(seeing: str) -> None:
    stdout, _ = run(CT, "--box", "30,30,90,90", "--model", seeing, "--json")
    content = json.loads(stdout)
    assert content["segmentation"] == "segmentation.dcm" and content["out"] == "medsight-segment"
    (stored,) = read_dicom_seg("medsight-segment/segmentation.dcm")
    assert int(stored.mask.sum()) == content["regions"][0]["area_pixels"]
    assert content == {**result(), "out": "medsight-segment"}


def test_outlines_and_masks_mean_the_same(scan: str, seeing: str, folder: Path) -> None:
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[10:40, 20:60] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save("mask.png")
    volume = np.zeros((COLUMNS, ROWS, SLICES), np.uint8)
    opened = open_volume(scan)
    nibabel.save(nibabel.Nifti1Image(volume, nibabel.load(scan).affine), "empty.nii.gz")
    found = []
    for option in (("--lasso", "19.5,9.5;59.5,9.5;59.5,39.5;19.5,39.5"), ("--mask", "mask.png")):
        run(scan, *option, "--slice", "2", "--model", seeing, "--nifti")
        found.append(open_volume("medsight-segment/segmentation.nii.gz").array[2] > 0)
    label_map = nibabel.Nifti1Image(
        np.asarray(mask.T[..., None].repeat(SLICES, 2), np.uint8), nibabel.load(scan).affine
    )
    nibabel.save(label_map, "map.nii.gz")
    as_read = open_volume("map.nii.gz").array[2] > 0
    run(scan, "--mask", "map.nii.gz", "--slice", "2", "--model", seeing, "--nifti")
    found.append(open_volume("medsight-segment/segmentation.nii.gz").array[2] > 0)
    assert np.array_equal(as_read, mask), "the scan is read in the order of the file"
    assert found[0].any() and all(np.array_equal(found[0], other) for other in found[1:])
    assert opened.n_slices == SLICES
    _, stderr = run(scan, "--mask", "empty.nii.gz", "--model", seeing, code=2)
    assert "marks nothing on slice" in stderr


def test_words_go_to_the_language_model(scan: str, seeing: str) -> None:
    run(scan, "--prompt", "left lung", "--slice", "2", "--model", seeing)
    content = result()
    assert content["settings"]["decoding"] == "greedy" and content["text"]
    assert all(region["slice"] == 2 for region in content["regions"])
    assert segment_module._question("the left lung") == "Segment the left lung in this image."
    assert segment_module._question("Is there a polyp?") == "Is there a polyp?"


def test_words_with_a_click_are_followed_too(scan: str, seeing: str) -> None:
    run(scan, "--prompt", "left lung", "--point", "30,20", "--slice", "2", "--volume", "--model", seeing)
    content = result()
    assert content["prompts"][0]["kind"] == "point" and content["regions"] == []
    for region in content["volume_regions"]:
        assert 2 in region["key_slices"] and content["text"][slice(*region["span"])] in ("", region["label"])


def test_words_about_a_volume(scan: str, seeing: str) -> None:
    _, stderr = run(scan, "--prompt", "left lung", "--volume", "--slices", "1:5", "--model", seeing, "--nifti")
    assert "4 " in stderr.splitlines()[0] and "(1 to 4)" in stderr.splitlines()[0], "the plan comes first"
    content = result()
    assert content["regions"] == [] and content["settings"]
    for region in content["volume_regions"]:
        first, last = region["slices"]
        assert 1 <= first <= last <= 4
    if content["volume_regions"]:
        largest = max(content["volume_regions"], key=lambda region: region["voxels"])
        assert largest["slices"][0] <= content["slice"] <= largest["slices"][1], "the picture shows it"


def test_nothing_found_is_an_answer(scan: str, blind: str) -> None:
    Path("medsight-segment").mkdir()
    Path("medsight-segment/segmentation.seg.nrrd").write_text("of an earlier run")
    stdout, _ = run(scan, "--point", "30,20", "--volume", "--model", blind)
    assert "No region was found" in stdout
    assert sorted(os.listdir("medsight-segment")) == ["overlay.png", "segment.json"]
    assert result()["segmentation"] is None


def test_that_nothing_was_found_of_what_was_never_taught_says_nothing(scan: str, blind: str, folder: Path) -> None:
    taught = folder / "taught"
    shutil.copytree(blind, taught)
    model, processor = load(open_checkpoint(taught))
    with torch.no_grad():  # nothing but the end of the answer is ever written, so nothing is found
        model.lm_head.weight.zero_()
        model.lm_head.weight[processor.tokenizer.eos_token_id] = 1.0
    model.config.class_names = ["left lung", "liver", "polyp", "spleen"]
    model.save_pretrained(taught)
    said = {}
    for words in ("pancreas", "liver"):
        _, stderr = run(scan, "--prompt", words, "--slice", "2", "--model", str(taught))
        said[words] = "says nothing about the scan" in stderr
        assert result()["regions"] == []
        assert any("says nothing about the scan" in warning for warning in result()["warnings"]) == said[words]
    assert said == {"pancreas": True, "liver": False}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Nothing says what to segment"),
        (("--prompt", " "), "words of --prompt are empty"),
        (("--negative", "3,3"), "says only what is not meant"),
        (("--point", "80,3"), "80 columns and 50 rows"),
        (("--negative", "3,-1", "--point", "1,1"), "Y from 0 to 49"),
        (("--point", "3"), "--point takes X,Y"),
        (("--negative", "3"), "--negative takes X,Y"),
        (("--box", "5,5,5,40"), "two different corners"),
        (("--lasso", "1,1;2,2"), "--lasso takes"),
        (("--lasso", "1,1;5,1;9,1"), "encloses no pixel"),
        (("--lasso", "1,1;5,1;9,9", "--lasso", "1,1;5,1;9,9"), "Only one outline"),
        (("--mask", "nowhere.png"), "no file or folder nowhere.png"),
        (("--point", "3,3", "--slice", "6"), "slices are 0 to 5"),
        (("--point", "3,3", "--slices", "1:3"), "--slices bounds a volume"),
        (("--point", "3,3", "--volume", "--slices", "3"), "--slices takes A:B"),
        (("--point", "3,3", "--volume", "--slices", "4:4"), "is empty"),
        (("--point", "3,3", "--volume", "--slices", "2:9"), "slices 0 to 5"),
        (("--point", "3,3", "--slice", "5", "--volume", "--slices", "1:3"), "Widen the range"),
        (("--prompt", "liver", "--volume", "--slices", "9:2"), "is empty"),
        (("--point", "3,3", "--model", "nowhere"), "not a folder"),
        (("--point", "3,3", "--out", "/dev/null"), "not a folder"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    arguments: tuple[str, ...], words: str, scan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(chosen: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(segment_module, "open_backend", load)
    stdout, stderr = run(scan, *arguments, code=2)
    assert stdout == "" and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert words in stderr
    assert os.listdir() == []


def test_what_is_no_volume_is_refused_as_one(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(segment_module, "open_backend", lambda chosen: pytest.fail("the model was loaded"))
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save("polyp.png")
    four = nibabel.Nifti1Image(np.zeros((20, 20, 4, 3), np.int16), np.eye(4))
    nibabel.save(four, "perfusion.nii.gz")
    for name, words in ((CT, "one slice"), ("polyp.png", "one slice"), ("perfusion.nii.gz", "")):
        _, stderr = run(name, "--point", "5,5", "--volume", code=2)
        assert words in stderr and stderr.count("\n") == 1


def test_ranges_are_read_exactly() -> None:
    assert parse_slices("3:10") == range(3, 10)
    assert parse_slices(" 0 : 2 ") == range(0, 2)
    for text in ("3", "3:", ":4", "a:b", "1:2:3", "-1:4", ""):
        with pytest.raises(InputError):
            parse_slices(text)


def test_help_teaches_with_examples() -> None:
    stdout, _ = run("--help")
    for words in ("medsight segment", "--lasso", "--negative", "NAME.nii.gz", "from 0"):
        assert words in stdout
