"""The image encoder: any transformers vision model, seen as a patch grid plus finer details.

A ViT gives one grid. A convolutional backbone also has finer feature maps, which the perceiver adds after its
upsampling steps; where masks must be finer than the finest map, a small convolution on the pixels supplies the last.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from medsight_core.model.configuration import MedSightConfig


@dataclass(frozen=True, kw_only=True)
class VisionFeatures:
    """An encoded image, before the perceiver.

    Attributes:
        grid: patch features I `(batch, height, width, region_dim)`.
        details: finer features, coarse to fine, each `(batch, h, w, region_dim)`.
        summary: one vector per image `(batch, width)`, for the modality.
    """

    grid: Tensor
    details: tuple[Tensor, ...]
    summary: Tensor


class VisionEncoder(nn.Module):
    """Wraps the backbone of `config.vision_config`."""

    def __init__(self, config: MedSightConfig) -> None:
        super().__init__()
        self.backbone = AutoModel.from_config(config.vision_config)
        self.patch_size = getattr(config.vision_config, "patch_size", None)
        layers = config.vision_feature_layer
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.detail_layers = list(config.detail_layers)
        widths = feature_widths(config.vision_config)
        width = sum(widths[i] for i in self.layers)
        dim = config.region_dim
        self.summary_width = width
        self.grid_projection = nn.Identity() if width == dim else nn.Linear(width, dim)
        self.detail_projections = nn.ModuleList(nn.Linear(widths[i], dim) for i in self.detail_layers)
        self.pixel_stem = PixelStem(dim) if config.detail_from_pixels else None

    def forward(self, pixel_values: Tensor) -> VisionFeatures:
        """Encode `(batch, channels, height, width)`, already normalised."""
        states = self.backbone(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        image_size = pixel_values.shape[-2:]
        maps = [as_map(states[i], image_size, self.patch_size) for i in self.layers]
        size = maps[0].shape[-2:]
        grid = torch.cat([resize(m, size) for m in maps], dim=1).permute(0, 2, 3, 1)
        tokens = states[self.layers[0]]
        has_class_token = tokens.ndim == 3 and tokens.shape[1] > size[0] * size[1]
        summary = tokens[:, 0] if has_class_token else grid.mean((1, 2))
        details = [
            project(as_map(states[i], image_size, self.patch_size).permute(0, 2, 3, 1))
            for i, project in zip(self.detail_layers, self.detail_projections, strict=True)
        ]
        if self.pixel_stem is not None:
            details.append(self.pixel_stem(pixel_values))
        return VisionFeatures(grid=self.grid_projection(grid), details=tuple(details), summary=summary)


class PixelStem(nn.Module):
    """Two small convolutions on the pixels: features at half resolution, `(batch, height / 2, width / 2, dim)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, dim // 2, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, kernel_size=3, padding=1),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of `(batch, 3, height, width)`, channels last."""
        return self.layers(pixel_values).permute(0, 2, 3, 1)


def feature_widths(vision_config) -> list[int]:
    """Channels of every hidden state of a vision model, in the order it returns them."""
    stages = getattr(vision_config, "hidden_sizes", None)
    if stages:
        return [getattr(vision_config, "embedding_size", stages[0]), *stages]
    return [vision_config.hidden_size] * (vision_config.num_hidden_layers + 1)


def as_map(state: Tensor, image_size: torch.Size, patch_size: int | None) -> Tensor:
    """A hidden state as `(batch, channels, h, w)`: tokens become a row-major grid.

    Args:
        state: Map, or tokens `(batch, tokens, channels)`; those before the patches (class token, registers) are lost.
        image_size: Height and width that were looked at.
        patch_size: Side of a patch; needed for tokens.
    """
    if state.ndim == 4:
        return state
    if patch_size is None:
        raise ValueError("the vision model yields tokens and its configuration has no patch_size")
    rows, columns = (side // patch_size for side in image_size)
    return state[:, -rows * columns :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


def resize(feature_map: Tensor, size: torch.Size) -> Tensor:
    """Bilinear, only where the size differs."""
    if feature_map.shape[-2:] == size:
        return feature_map
    return F.interpolate(feature_map, size=tuple(size), mode="bilinear", align_corners=False)
