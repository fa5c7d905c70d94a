"""Adapters on a tiny model that three stages have trained: what they train, keep, say and become."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from medsight_core.errors import CheckpointError, InputError
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from tests.training import toy
from tests.training.foundations import SETTINGS, tuning, write_encoder, write_language_model
from training.build import open_model
from training.checkpoint import weight_files
from training.cli import app
from training.initialising import initialise
from training.lora import Adapters, LoraSettings, adapt, base_of, merge, open_adapter
from training.run import Run, export
from training.stage4_instruction import InstructionStage
from training.vocabulary import own_ids

LORA = {"rank": 2, "alpha": 8, "dropout": 0.1}
TABLES = ("model.language_model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with stages 1 to 3 and adapters; one language model has a head of its own, one a tied one."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp(request.param)
    initialise(
        llm=write_language_model(place / "llm", request.param),
        vision=write_encoder(place / "clip"),
        out=place / "base",
        modalities=("CT", "Dermoscopy"),
        codes_per_group=4,
        settings=SETTINGS,
    )
    run = Run(recipe_of(place), place / "run", lambda text: None)
    for number in (1, 2, 3, 4):
        run.stage(number)
    return place


def recipe_of(place: Path) -> dict:
    data = place / "data"
    if not data.exists():
        toy.write_dataset(data)
    recipe = tuning(data, place / "base") | {"lora": LORA}
    recipe["stages"][4]["loop"] = {"steps": 4, "learning_rate": 1e-2}
    recipe["loop"] = recipe["loop"] | {"save_every": 2}
    return recipe


def before(place: Path) -> Path:
    return place / "run/stage3-align/last"


def adapters(place: Path) -> Path:
    return place / "run/stage4-lora/last"


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in weight_files(folder) for name, value in load_file(file).items()}


def answers(model: torch.nn.Module, processor: MedSightProcessor) -> tuple[Tensor, Tensor]:
    """Logits of a conversation about a picture, and the masks of its codes."""
    inner: MedSightForConditionalGeneration = model.get_base_model() if hasattr(model, "get_base_model") else model
    codes = "".join(processor.codes.name(code) for code in processor.codes)
    picture = np.random.default_rng(5).integers(0, 255, (56, 56, 3), dtype=np.uint8)
    inputs = processor(images=[picture], text=processor.chat("Where?", answer=f"Here {codes}"))
    with torch.no_grad():
        out = inner(**inputs)
        rows, positions = inner.code_positions(inputs["input_ids"])
        states = inner.code_states(out.last_hidden_state, rows, positions)
        masks = inner.model.decode_codes(states, out.image_features, torch.zeros(len(states), dtype=torch.long))
    return out.logits, masks


def test_only_adapters_new_rows_and_projectors_are_trained_and_saved(trained: Path) -> None:
    state = load_file(adapters(trained) / "adapter_model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}
    kinds = {
        "lora": [n for n in state if ".lora_" in n],
        "rows": [n for n in state if "token_adapter" in n],
        "projectors": [n for n in state if ".vision_to_text." in n or ".text_to_vision." in n],
    }
    assert sum(map(len, kinds.values())) == len(state) and all(kinds.values())
    assert all(".language_model." in name for name in kinds["lora"])
    model, processor = open_model(before(trained))
    untied = 2 if (trained.name.startswith("llama")) else 1
    assert [state[name].shape[0] for name in kinds["rows"]] == [len(own_ids(processor.tokenizer))] * untied
    assert len(kinds["projectors"]) == 8
    assert sum(v.numel() for v in state.values()) < 0.5 * sum(p.numel() for p in model.parameters())
    assert not list(adapters(trained).glob("model*.safetensors"))


def test_saved_and_loaded_the_logits_are_the_same_bit_by_bit(trained: Path, tmp_path: Path) -> None:
    model, processor = open_model(before(trained))
    torch.manual_seed(1)
    wrapped = adapt(model, processor, LoraSettings(**LORA))
    untouched, _ = answers(wrapped.eval(), processor)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                assert ".lora_" not in name
    logits, masks = answers(wrapped, processor)
    assert not torch.allclose(logits, untouched, atol=1e-2)
    tmp_path.joinpath("adapter").mkdir()
    Adapters(wrapped, base_of(before(trained))).write(tmp_path / "adapter")
    again, words = open_adapter(tmp_path / "adapter")
    read, drawn = answers(again, words)
    assert torch.equal(read, logits) and torch.equal(drawn, masks)
    merged, words = merge(tmp_path / "adapter")
    joined, painted = answers(merged.eval(), words)
    assert torch.allclose(joined, logits, atol=1e-4) and torch.allclose(painted, masks, atol=1e-4)
    assert not any(".lora_" in name or "token_adapter" in name for name in merged.state_dict())


def test_a_merged_model_keeps_every_old_word_and_opens_everywhere(trained: Path, tmp_path: Path) -> None:
    target = export(adapters(trained), tmp_path / "model", dtype="float32")
    old, new = stored(before(trained)), stored(target)
    assert old.keys() == new.keys()
    own = set(own_ids(MedSightProcessor.from_pretrained(target).tokenizer))
    for name, value in new.items():
        if name in TABLES:
            moved = set((value != old[name]).any(1).nonzero().flatten().tolist())
            assert moved and moved <= own
        elif ".layers." not in name and ".vision_to_text." not in name and ".text_to_vision." not in name:
            assert torch.equal(value, old[name]), name
        elif name.endswith("proj.weight"):
            assert "vision.backbone" in name or not torch.equal(value, old[name]), name
    wrapped, processor = open_adapter(adapters(trained))
    model, _ = open_model(target)
    for ours, theirs in zip(answers(model.eval(), processor), answers(wrapped, processor), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert Engine.from_pretrained(target, device="cpu").digest == open_checkpoint(target).digest


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(before(trained), tmp_path / "run/stage3-align/last")

    class Stopped(Exception):
        pass

    recipe, loss = recipe_of(trained), InstructionStage.loss

    def stop(self, step, rng):
        if step == 2:
            raise Stopped
        return loss(self, step, rng)

    InstructionStage.loss = stop
    try:
        with pytest.raises(Stopped):
            Run(recipe, tmp_path / "run", lambda text: None).stage(4)
    finally:
        InstructionStage.loss = loss
    last = Run(recipe, tmp_path / "run", lambda text: None).stage(4)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (last, adapters(trained)))
    assert all(torch.equal(one[name], two[name]) for name in two)


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_adapters_are_refused_by_another_model(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to a model with"):
        open_adapter(adapters(trained), trained / "run/stage2/last")
    with pytest.raises(CheckpointError, match="--base"):
        open_adapter(adapters(trained), tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no folder of adapters"):
        open_adapter(before(trained))
    broken = shutil.copytree(adapters(trained), tmp_path / "broken")
    state = load_file(broken / "adapter_model.safetensors")
    state.popitem()
    save_file(state, broken / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="do not fit"):
        open_adapter(broken)
    (broken / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_adapter(broken)


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_a_layer_that_is_not_there_is_named(trained: Path) -> None:
    model, processor = open_model(before(trained))
    for wrong in ({"rank": "many"}, {"rank": 0}, {"dropout": 1.0}):
        with pytest.raises(InputError, match="Adapters have rank"):
            adapt(model, processor, LoraSettings(**wrong))
    with pytest.raises(InputError, match="no linear layer called query"):
        adapt(model, processor, LoraSettings(layers=("q_proj", "query")))


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_switches_of_the_training_are_those_of_the_merged_model(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(before(trained), tmp_path / "run/stage3-align/last")
    recipe = recipe_of(trained) | {"switches": {"mask_decoder": "head"}}
    last = Run(recipe, tmp_path / "run", lambda text: None).stage(4)
    assert open_adapter(last)[0].get_base_model().config.mask_decoder == "head"


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_the_commands_train_adapters_and_merge_them(trained: Path, tmp_path: Path) -> None:
    import yaml

    recipe = recipe_of(trained)
    del recipe["lora"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copytree(before(trained), tmp_path / "run/stage3-align/last")
    settings = ["--lora", "--config", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]
    said = CliRunner().invoke(app, ["train", "4", *settings, "lora.rank=1"], catch_exceptions=False)
    assert said.exit_code == 0 and "stage4-lora" in said.output
    adapter = tmp_path / "run/stage4-lora/last"
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 1
    out = tmp_path / "model"
    said = CliRunner().invoke(app, ["merge", str(adapter), "--out", str(out)], catch_exceptions=False)
    assert said.exit_code == 0 and str(out) in said.output
    assert {value.dtype for value in stored(out).values()} == {torch.bfloat16}
    assert Engine.from_pretrained(out, device="cpu").name == "model"
    said = CliRunner().invoke(app, ["merge", str(adapter), "--out", str(out)], catch_exceptions=False)
    assert said.exit_code == 2 and "not empty" in said.output
    export_it = ["train", "export", "--run", str(tmp_path / "run"), "--to", str(tmp_path / "other")]
    said = CliRunner().invoke(app, export_it, catch_exceptions=False)
    assert said.exit_code == 2 and f"medsight merge {adapter}" in " ".join(said.output.split())
