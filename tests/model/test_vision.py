"""Tokens of any vision transformer become a grid: with a class token, with registers too, with neither."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, Dinov2WithRegistersConfig, SiglipVisionConfig

from medsight_core.model.vision import VisionEncoder, as_map
from tests.model.small import transformer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("leading", [0, 1, 5])
def test_the_grid_is_what_comes_last(leading: int) -> None:
    """Row by row, also where the picture is not square."""
    tokens = torch.arange(leading + 6).float()[None, :, None]
    found = as_map(tokens, torch.Size((16, 24)), 8)
    assert found[0, 0].tolist() == [[leading, leading + 1, leading + 2], [leading + 3, leading + 4, leading + 5]]


@pytest.mark.parametrize(
    ("vision", "leading"),
    [
        (CLIPVisionConfig(**SIZES, intermediate_size=32), 1),
        (SiglipVisionConfig(**SIZES, intermediate_size=32), 0),
        (Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=3), 4),
    ],
    ids=["CLIP", "SigLIP", "DINOv2 with registers"],
)
@torch.no_grad()
def test_encoders(vision: Any, leading: int) -> None:
    """The patches stand where their tokens were; the image's vector is the class token, or the patches' mean."""
    encoder = VisionEncoder(transformer(vision_config=vision, vision_feature_layer=-1)).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = encoder.backbone(pixels, output_hidden_states=True).hidden_states[-1]
    assert tokens.shape[1] == 16 + leading
    found = encoder(pixels)
    assert torch.equal(found.grid.flatten(1, 2), tokens[:, leading:])
    expected = tokens[:, 0] if leading else tokens.mean(1)
    torch.testing.assert_close(found.summary, expected)


def test_tokens_without_a_patch_size() -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="patch_size"):
        as_map(torch.zeros(1, 5, 2), torch.Size((8, 8)), None)
