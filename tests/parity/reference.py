"""Reading the reference tensors, and making models of them by the table of released names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, Qwen3Config

from medsight_core.model import MedSightConfig, MedSightModel
from medsight_core.model.official import Recipe, clean, recipes
from medsight_core.model.perceiver import RegionPerceiver

TOLERANCE = 1e-4
"""Largest absolute difference that counts as equal, fp32."""

IMAGE_TOKEN = 63
"""A word that the recorded texts do not use stands for the visual tokens; the release writes -200 once."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One set of recorded tensors.

    Attributes:
        tensors: by name; `state.` parameters, `in.` inputs, `mid.` steps on the way, `out.` results, `grad.` gradients.
        about: sizes and switches of the recorded run.
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, name: str) -> Reference:
        """Reads `name`.safetensors and `name`.json."""
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return cls(tensors=load_file(folder / f"{name}.safetensors"), about=about)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names start with `prefix`, without it."""
        return part(self.tensors, prefix)


def state(official: Mapping[str, Tensor], config: MedSightConfig) -> dict[str, Tensor]:
    """Every tensor of ours that can be made of those given, as the table of the release says."""
    given = {clean(name): tensor for name, tensor in official.items()}
    return {
        recipe.name: _make(recipe, [given[source] for source in recipe.sources])
        for recipe in recipes(config)
        if all(source in given for source in recipe.sources)
    }


def part(tensors: Mapping[str, Tensor], beginning: str) -> dict[str, Tensor]:
    """Those of one part, without what its names begin with."""
    return {name.removeprefix(beginning): t for name, t in tensors.items() if name.startswith(beginning)}


def perceiver(reference: Reference, *, beginning: str = "state.") -> RegionPerceiver:
    """A recorded perceiver, whose tensors have only their own names behind ``beginning``."""
    settings = config(reference.about)
    official = {f"region_perceiver.{name}": tensor for name, tensor in reference.below(beginning).items()}
    with torch.device("meta"):
        module = MedSightModel(settings).perceiver
    module.load_state_dict(part(state(official, settings), "model.perceiver."), assign=True)
    return module.eval().requires_grad_()


def _make(recipe: Recipe, sources: list[Tensor]) -> Tensor:
    if recipe.rule == "stack":
        return torch.stack(sources)
    return sources[0].chunk(3)[recipe.index] if recipe.rule == "third" else sources[0]


def small_clip(about: Mapping[str, Any]) -> CLIPVisionConfig:
    """The tower of the recorded runs; activation and norms are CLIP's defaults (quick GELU)."""
    return CLIPVisionConfig(
        hidden_size=about["width"],
        intermediate_size=4 * about["width"],
        num_hidden_layers=about["layers"],
        num_attention_heads=about["heads"],
        image_size=about["image_size"],
        patch_size=about["patch"],
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        projection_dim=24,
    )


def config(about: Mapping[str, Any], **changes: Any) -> MedSightConfig:
    """Our configuration of a recorded run; the sizes that a record leaves out are those of all of them."""
    clip = about.get("clip", {"image_size": 70, "patch": 14, "width": about["dim"], "layers": 4, "heads": 4})
    language = Qwen3Config(
        vocab_size=76,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    options = {
        "vision_config": small_clip(clip),
        "text_config": language,
        "vision_feature_layer": -1,
        "region_dim": about["dim"],
        "num_region_queries": about["num_queries"],
        "perceiver_stages": about["num_stages"],
        "perceiver_stacks": about.get("num_stacks", 1),
        "perceiver_self_attention": about.get("use_self_attn", False),
        "perceiver_heads": about["heads"],
        "perceiver_head_dim": about["dim_head"],
        "perceiver_ff_mult": about["ff_mult"],
        "num_classes": about["num_classes"],
        "use_codebook": False,
        "use_prompts": False,
        "image_token_id": IMAGE_TOKEN,
    }
    return MedSightConfig(**(options | changes))


def language_config(reference: Reference) -> MedSightConfig:
    """Our configuration of the recorded model with words."""
    about = reference.about
    codes = list(range(about["code_ids"][0], about["code_ids"][1] + 1))
    assert codes == reference["in.code_token_ids"].tolist()
    return config(
        about["vision"],
        vision_feature_layer=about["vision"]["select_layer"],
        code_token_ids=codes,
        image_token_id=IMAGE_TOKEN,
    )


def expand(ids: Tensor, tokens: int, *, fill: int = IMAGE_TOKEN) -> Tensor:
    """One placeholder (-200) becomes one for each visual token."""
    place = int((ids[0] == -200).nonzero()) if (ids == -200).any() else None
    assert place is not None, "the recorded text has no image"
    return torch.cat((ids[:, :place], ids.new_full((1, tokens), fill), ids[:, place + 1 :]), dim=1)
