"""A converted release answers: in this process, on a DICOM through the command, and from a server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from medsight_core.cli import app
from medsight_core.cli.backends import load_engine
from medsight_core.client import RemoteBackend
from medsight_core.inference.engine import Engine
from medsight_core.inference.running import Running
from medsight_core.inference.scheduler import Scheduler
from medsight_core.model import MedSightForConditionalGeneration
from tests.client.equal import assert_same
from tests.convert.command import convert
from tests.convert.release import write_release
from tests.inference.tiny import ask_about, noise
from tests.server.running import serving

CT = str(get_testdata_file("CT_small.dcm"))
QUESTION = "Segment the liver in this image."


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted release that likes to write region codes, and little of anything."""
    folder = tmp_path_factory.mktemp("talkative")
    convert(write_release(folder / "MedSIGHT", loud=3.0), folder / "model", "-q")
    settings = folder / "model" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"max_new_tokens": 12}))
    return folder / "model"


@pytest.fixture(scope="module")
def engine(talkative: Path) -> Engine:
    return load_engine(talkative, Running(device="cpu"))


def ask(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["ask", *arguments, "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def check_regions(answer: dict[str, object], file: Path, rows: int, columns: int) -> None:
    regions = answer["regions"]
    assert isinstance(regions, list) and regions
    for region in regions:
        assert region["code"].startswith("[C") and "[M" not in str(answer["text"])
    segmentation = pydicom.dcmread(file)
    assert (segmentation.Rows, segmentation.Columns) == (rows, columns)


def test_the_engine_runs_it(engine: Engine) -> None:
    answer = engine.answer(ask_about(noise(60, 90), QUESTION))
    assert answer.regions
    for region in answer.regions:
        assert region.code.startswith("[C")
        assert np.asarray(region.mask).shape[-2:] == (60, 90)
    assert engine.answer(ask_about(noise(60, 90), QUESTION)).text == answer.text


def test_the_library_opens_it(talkative: Path) -> None:
    model = MedSightForConditionalGeneration.from_pretrained(talkative)
    assert sum(parameter.numel() for parameter in model.parameters()) == 549957


def test_the_command_asks_it_about_a_dicom(talkative: Path, tmp_path: Path) -> None:
    answer = ask(CT, QUESTION, "--model", str(talkative), "--out", str(tmp_path / "answer"))
    check_regions(answer, tmp_path / "answer" / "segmentation.dcm", 128, 128)


def test_and_about_a_real_ct(talkative: Path, tmp_path: Path, shared_data: Path) -> None:
    series = shared_data / "dicom" / "ct_abdomen_totalseg"
    answer = ask(str(series), QUESTION, "--model", str(talkative), "--out", str(tmp_path / "answer"))
    first = pydicom.dcmread(next(iter(sorted(series.rglob("*.dcm")))), stop_before_pixels=True)
    check_regions(answer, tmp_path / "answer" / "segmentation.dcm", first.Rows, first.Columns)


def test_a_server_gives_the_same_answer(engine: Engine, tmp_path: Path) -> None:
    question = ask_about(noise(60, 90), QUESTION)
    scheduler = Scheduler(engine)
    try:
        with serving(scheduler, tmp_path) as running:
            remote = RemoteBackend(running.url)
            remote.open(question.volume)
            assert_same(remote.ask(question), engine.ask(question))
    finally:
        scheduler.close()
