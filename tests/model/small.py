"""Small models of both kinds: a convolutional encoder with details as in medsight-mini, a ViT as in the large model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, Qwen3Config, ResNetConfig

from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration
from medsight_core.prompt_raster import Mark, draw

SIDE = 64
IMAGE, PROMPT, CODES = 3, 4, list(range(40, 52))
GROUPS, PER_GROUP = 3, 4


def language(**changes: Any) -> Qwen3Config:
    """Two layers and 52 words, the last 12 of them region codes."""
    options: dict[str, Any] = {
        "vocab_size": 52,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    return Qwen3Config(**(options | changes))


def convolutional(**changes: Any) -> MedSightConfig:
    """Strides 16 and 32 make the grid, strides 8 and 4 and the pixels the details; masks are half the input's side."""
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic")
    options: dict[str, Any] = {
        "vision_config": vision,
        "text_config": language(),
        "vision_feature_layer": [3, 4],
        "detail_layers": [2, 1],
        "detail_from_pixels": True,
        "region_dim": 16,
        "num_region_queries": 4,
        "perceiver_stages": 3,
        "perceiver_heads": 2,
        "perceiver_head_dim": 8,
        "perceiver_ff_mult": 2,
        "class_names": ["liver", "lung", "spleen"],
        "modality_names": ["CT", "MR", "X-ray"],
        "codes_per_group": PER_GROUP,
        "code_dim": 8,
        "image_token_id": IMAGE,
        "prompt_token_id": PROMPT,
        "code_token_ids": CODES,
        "tie_word_embeddings": True,
    }
    return MedSightConfig(**(options | changes))


def transformer(**changes: Any) -> MedSightConfig:
    """A ViT of three blocks on patches of 16."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
    )
    options: dict[str, Any] = {
        "vision_config": vision,
        "vision_feature_layer": -2,
        "detail_layers": (),
        "detail_from_pixels": False,
    }
    return convolutional(**(options | changes))


def build(config: MedSightConfig, seed: int = 0) -> MedSightForConditionalGeneration:
    """A model whose weights are large enough to tell inputs apart, and whose prompt hints have learnt something."""
    torch.manual_seed(seed)
    model = MedSightForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                fan = parameter[0].numel()
                parameter.normal_(std=fan**-0.5)
        model.model.perceiver.region_queries.normal_()
        model.get_input_embeddings().weight.normal_()
    return model


def pictures(count: int = 2, seed: int = 0) -> Tensor:
    """Normalised images."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def raster(*marks: list[Mark]) -> Tensor:
    """Prompt rasters, one list of marks per image."""
    return torch.from_numpy(np.stack([draw(m, (SIDE, SIDE)) for m in marks]))


def click(column: float, row: float, *, positive: bool = True) -> Mark:
    """A point."""
    return Mark(kind="point", xy=np.array([[column, row]]), positive=positive)


def visual_tokens(config: MedSightConfig) -> int:
    """Placeholders that an image of `SIDE` needs: a grid of 4 x 4, pooled, and the regions."""
    return (4 // config.visual_token_pooling) ** 2 + config.use_region_tokens * config.num_region_queries


def conversation(config: MedSightConfig, *tail: int, prompted: bool = False) -> Tensor:
    """Ids `(1, length)`: an image, perhaps a prompt, a few words, and `tail`."""
    return torch.tensor([[10, *[IMAGE] * visual_tokens(config), *[PROMPT] * prompted, 11, 12, *tail]])
