"""Reading the reference tensors, and the names that released checkpoints give to ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, Qwen3Config

from medsight_core.model import MedSightConfig

TOLERANCE = 1e-4
"""Largest absolute difference that counts as equal, fp32."""


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
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def perceiver_state(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names are ours already; only the query position embedding, which the released maths never reads, goes."""
    foreign = ("region_position_embed.", "to_code.", "code_decoder.", "quantizer.")
    return {name: tensor for name, tensor in official.items() if not name.startswith(foreign)}


def codebook_state(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The quantiser of a released stage-2 checkpoint: one embedding per modality becomes one table of groups."""
    renamed = {
        "region_perceiver.to_code.": "to_code.",
        "region_perceiver.code_decoder.from_code.": "from_code.",
        "region_perceiver.code_decoder.segmentation_cls_head_quant.": "head.",
        "modality_predictor.": "modality_predictor.",
    }
    state = {
        new + name.removeprefix(old): tensor
        for name, tensor in official.items()
        for old, new in renamed.items()
        if name.startswith(old)
    }
    groups = sum(re.fullmatch(r"quantizer\.codebooks\.\d+\.embedding\.weight", name) is not None for name in official)
    state["codes"] = torch.stack([official[f"quantizer.codebooks.{k}.embedding.weight"] for k in range(groups)])
    return state


def clip_state(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower of open_clip in the names of `CLIPVisionModel`; `proj` belongs to the text-image space."""
    state = {
        "embeddings.class_embedding": official["class_embedding"],
        "embeddings.position_embedding.weight": official["positional_embedding"],
        "embeddings.patch_embedding.weight": official["conv1.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"pre_layrnorm.{kind}"] = official[f"ln_pre.{kind}"]
        state[f"post_layernorm.{kind}"] = official[f"ln_post.{kind}"]
    parts = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    layers = sum(name.endswith(".attn.in_proj_weight") for name in official)
    for layer in range(layers):
        old, new = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            joined = official[f"{old}.attn.in_proj_{kind}"].chunk(3)
            for part, tensor in zip("qkv", joined, strict=True):
                state[f"{new}.self_attn.{part}_proj.{kind}"] = tensor
            for theirs, ours in parts.items():
                state[f"{new}.{ours}.{kind}"] = official[f"{old}.{theirs}.{kind}"]
    return state


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
    clip = about.get("clip", {"image_size": 70, "patch": 14, "width": 32, "layers": 4, "heads": 4})
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
        "perceiver_heads": about["heads"],
        "perceiver_head_dim": about["dim_head"],
        "perceiver_ff_mult": about["ff_mult"],
        "num_classes": about["num_classes"],
        "use_codebook": False,
        "use_prompts": False,
        "image_token_id": 63,
    }
    return MedSightConfig(**(options | changes))
