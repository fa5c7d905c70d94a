"""Loading the release's own tensor names through the library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration, MedSightModel
from medsight_core.model.conversion import unread
from medsight_core.model.official import TOWER, recipes, release_shapes
from tests.model.small import CODES, build, language, transformer


@pytest.fixture
def model() -> MedSightForConditionalGeneration:
    text = language(tie_word_embeddings=False)
    return build(transformer(use_prompts=False, tie_word_embeddings=False, text_config=text))


def released(model: MedSightForConditionalGeneration, *, split: bool) -> dict[str, Tensor]:
    """The model's tensors under the release's names, with all that the release has besides."""
    config: MedSightConfig = model.config
    state, made = model.state_dict(), {}
    for recipe in recipes(config, split_embedding=split):
        tensor, (first, *rest) = state[recipe.name], recipe.sources
        if recipe.rule == "third":
            joined = made.setdefault(first, torch.zeros(3 * len(tensor), *tensor.shape[1:]))
            joined[recipe.index * len(tensor) :][: len(tensor)] = tensor
        elif recipe.rule == "stack":
            made |= dict(zip(recipe.sources, tensor.unbind(), strict=True))
        elif recipe.rule == "rows":
            made |= {first: tensor.index_fill(0, torch.tensor(CODES), 9.0), rest[0]: tensor[CODES]}
        else:
            made[first] = tensor
    shapes = release_shapes(config, split_embedding=split)
    made |= {name: torch.zeros(shape) for name, shape in shapes.items() if name not in made}
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == shapes
    inside = ("image_encoder.", "region_perceiver.", "quantizer.", "modality_predictor.")
    return {(TOWER if n.startswith(inside) else "") + n: t.clone().contiguous() for n, t in made.items()}


@pytest.mark.parametrize("split", [False, True], ids=["words whole", "codes apart"])
def test_released_names(model: MedSightForConditionalGeneration, split: bool, tmp_path: Path) -> None:
    """Every tensor arrives, in the whole model and in the one without word head; what is saved has our names."""
    model.config.save_pretrained(tmp_path / "release")
    save_file(released(model, split=split), tmp_path / "release" / "model.safetensors", metadata={"format": "pt"})
    state = model.state_dict()
    found, told = MedSightForConditionalGeneration.from_pretrained(tmp_path / "release", output_loading_info=True)
    assert not (told["missing_keys"] or told["mismatched_keys"] or told["error_msgs"])
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    core = MedSightModel.from_pretrained(tmp_path / "release").state_dict()
    assert all(torch.equal(tensor, state[f"model.{name}"]) for name, tensor in core.items())
    found.save_pretrained(tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == state.keys()


def test_what_is_left_over_is_known(model: MedSightForConditionalGeneration, tmp_path: Path) -> None:
    """The names that stay unread are those that are known to be needless, and any other would be seen."""
    model.config.save_pretrained(tmp_path)
    strange = {"region_perceiver.query_adapters.0.to_gamma.weight": torch.zeros(2, 2)}
    save_file(released(model, split=False) | strange, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, told = MedSightForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    unknown = {name for name in told["unexpected_keys"] if not any(re.fullmatch(p, name) for p in unread())}
    assert unknown == {"model.perceiver.query_adapters.0.to_gamma.weight"}


def test_our_own_names_are_left_alone(model: MedSightForConditionalGeneration, tmp_path: Path) -> None:
    """Saved and loaded, twice, a checkpoint of ours keeps names and values."""
    state = model.state_dict()
    for step in ("first", "second"):
        model.save_pretrained(tmp_path / step)
        assert load_file(tmp_path / step / "model.safetensors").keys() == state.keys()
        model = MedSightForConditionalGeneration.from_pretrained(tmp_path / step)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
