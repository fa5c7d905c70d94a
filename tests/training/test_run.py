"""The four stages, run for real on a toy data set."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medsight_core.errors import InputError
from medsight_core.inference.engine import Engine
from medsight_core.model import MedSightProcessor
from tests.training import toy
from training.build import open_model
from training.recipe import read_recipe
from training.run import Run, export


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with all four stages."""
    torch.set_num_threads(1)
    data = toy.write_dataset(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("run")
    run = Run(toy.toy_recipe(data), folder, lambda text: None)
    for number in (1, 2, 3, 4):
        run.stage(number)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


CHANGED = {
    "stage2": ("model.vision_to_text.", "model.language_model."),
    "stage3-codebook": ("model.codebook.",),
    "stage3-align": ("model.text_to_vision.", "model.language_model.embed_tokens."),
    "stage4": ("model.language_model.", "model.vision_to_text.", "model.text_to_vision."),
}


@pytest.mark.parametrize(("before", "after"), list(zip(["stage1", *CHANGED][:-1], CHANGED, strict=True)))
def test_a_stage_changes_what_it_trains_and_nothing_else(trained: Path, before: str, after: str) -> None:
    old, new = weights(trained / before), weights(trained / after)
    changed = {name for name in new if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.startswith(CHANGED[after]) for name in changed), sorted(changed)[:5]


def test_alignment_moves_only_the_rows_of_region_codes(trained: Path) -> None:
    name = "model.language_model.embed_tokens.weight"
    old = weights(trained / "stage3-codebook")[name]
    new = weights(trained / "stage3-align")[name]
    moved = (old != new).any(1).nonzero().flatten().tolist()
    config = json.loads((trained / "stage3-align/last/config.json").read_text())
    assert set(moved) <= set(config["code_token_ids"])
    assert moved


def test_every_stage_leaves_pictures_and_curves(trained: Path) -> None:
    for stage in ("stage1", "stage3-align", "stage4"):
        assert list((trained / stage / "pictures").glob("*.png")), stage
        assert list((trained / stage / "curves").iterdir()), stage


def test_an_export_opens_in_the_engine_and_is_fp16(trained: Path, tmp_path: Path) -> None:
    target = export(trained / "stage4" / "last", tmp_path / "model")
    assert not (target / "optimizer.safetensors").exists()
    stored = load_file(target / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert Engine.from_pretrained(target, device="cpu").name == "model"


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = toy.write_dataset(tmp_path / "data")
    recipe = toy.toy_recipe(data)
    recipe["loop"]["save_every"] = 2
    recipe["stages"][1]["loop"] = {"steps": 4, "learning_rate": 1e-3}
    whole = Run(recipe, tmp_path / "whole", lambda text: None).stage(1)

    class Interrupted(Exception):
        pass

    run = Run(recipe, tmp_path / "halves", lambda text: None)
    import training.run as module

    def stop_at_two(stage, loop, folder):
        inner = stage.loss

        def loss(step, rng):
            if step == 2:
                raise Interrupted
            return inner(step, rng)

        stage.loss = loss
        return original(stage, loop, folder)

    original = module.train
    module.train = stop_at_two
    try:
        with pytest.raises(Interrupted):
            run.stage(1)
    finally:
        module.train = original
    assert json.loads((tmp_path / "halves/stage1/last/progress.json").read_text())["step"] == 2
    resumed = Run(recipe, tmp_path / "halves", lambda text: None).stage(1)
    one, two = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_stage_without_the_one_before_it_is_refused(tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "data")
    with pytest.raises(InputError, match="Train stage 3 first"):
        Run(toy.toy_recipe(data), tmp_path / "run", lambda text: None).stage(4)


def test_a_stage_can_do_without_region_tokens(trained: Path, tmp_path: Path) -> None:
    """A switch takes a part away: the texts lose its placeholders, the model reads the rest and is saved that way."""
    shutil.copytree(trained / "stage3-align", tmp_path / "run" / "stage3-align")
    recipe = toy.toy_recipe(toy.write_dataset(tmp_path / "data")) | {"switches": {"use_region_tokens": False}}
    last = Run(recipe, tmp_path / "run", lambda text: None).stage(4)
    before, after = (MedSightProcessor.from_pretrained(folder) for folder in (trained / "stage4" / "last", last))
    assert before.num_visual_tokens - after.num_visual_tokens == recipe["model"]["num_region_queries"]
    assert not json.loads((last / "config.json").read_text())["use_region_tokens"]
    again, processor = open_model(last)
    assert processor.num_visual_tokens == after.num_visual_tokens and not again.config.use_region_tokens


def test_a_switch_that_does_not_exist_is_named(trained: Path) -> None:
    with pytest.raises(InputError, match="no setting 'use_regoin_tokens'"):
        open_model(trained / "stage4" / "last", {"use_regoin_tokens": False})


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.jsonl"):
        Run(toy.toy_recipe(tmp_path), tmp_path / "run", lambda text: None)


def test_recipe_overrides_reach_into_numbered_stages() -> None:
    recipe = read_recipe(None, ["stages.4.loop.steps=7", "data.root=/elsewhere", "model.codes_per_group=2"])
    assert recipe["stages"][4]["loop"]["steps"] == 7
    assert recipe["data"]["root"] == "/elsewhere"
    assert recipe["model"]["codes_per_group"] == 2


@pytest.mark.parametrize("override", ["nonsense", "=3", "seed.deeper=1"])
def test_a_bad_override_is_named(override: str) -> None:
    with pytest.raises(InputError):
        read_recipe(None, [override])
