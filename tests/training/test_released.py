"""Adapters for the released model: converted, trained from where it stands, merged, asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from medsight_core.inference.engine import Engine
from tests.convert.command import convert
from tests.convert.release import write_release
from tests.inference.tiny import ask_about, noise
from tests.training import toy
from training.cli import app
from training.lora import open_adapter
from training.vocabulary import own_ids

CODES = range(326, 338)
"""Rows of the synthetic release's region codes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted release and data to train on."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("released")
    convert(write_release(place / "MedSIGHT", loud=3.0), place / "model", "-q")
    toy.write_dataset(place / "data")
    return place


def train(place: Path, stage: str, *more: str):
    options = [f"data.root={place / 'data'}", "data.validation=0.2", "data.size=56", "loop.accumulate=1"]
    arguments = ["train", stage, "--lora", "--config", "8b", "--run", str(place / "run"), *options, *more]
    return CliRunner().invoke(app, arguments)


def test_it_is_trained_on_from_where_it_stands(place: Path) -> None:
    """It knows no names of classes or modalities and reads no prompts; its rows of codes learn, other words do not."""
    loop = [f"stages.4.loop.{setting}" for setting in ("steps=2", "accumulate=1", "learning_rate=0.01")]
    result = train(place, "4", f"start={place / 'model'}", *loop)
    assert result.exit_code == 0, result.output
    adapters = place / "run" / "stage4-lora" / "last"
    wrapped, processor = open_adapter(adapters)
    assert list(processor.codes.token_ids.values()) == list(CODES)
    merged = CliRunner().invoke(app, ["merge", str(adapters), "--out", str(place / "tuned"), "--dtype", "float32"])
    assert merged.exit_code == 0, merged.output
    before, after = (Engine.from_pretrained(place / name, device="cpu") for name in ("model", "tuned"))
    moved = (before.model.lm_head.weight != after.model.lm_head.weight).any(1).nonzero().flatten().tolist()
    assert set(moved) & set(CODES) and set(moved) <= set(own_ids(processor.tokenizer))
    made = after.make_ready(ask_about(noise(60, 60)), max_new_tokens=4)
    given = {"input_ids": made.input_ids[None], "pixel_values": made.pixels(after.processor)[None]}
    with torch.no_grad():
        assert torch.allclose(wrapped(**given).logits, after.model(**given).logits, atol=1e-4)
    assert after.answer(ask_about(noise(60, 60)), max_new_tokens=4).raw


def test_all_stages_do_not_start_from_one_model(place: Path) -> None:
    result = train(place, "all", f"start={place / 'model'}")
    assert result.exit_code != 0 and "Name that stage" in str(result.exception) + result.output
