"""Visual prompts: points, boxes, scribbles and masks become one query and a hint on the pixels.

What a person draws arrives as a raster with one channel per kind of prompt, on the model's input grid. The encoder
makes of it (1) a *prompt token*: features of the image under the drawing, with what was drawn and where, which joins
the region queries in the perceiver and, refined there, is read by the language model in place of its placeholder; and
(2) a *hint*: the raster itself, projected and added to the pixels at every scale, so that the exact click, edge or
previous mask is not lost. An image without prompts has an empty raster, which changes nothing.

Source: the visual referring input of MIMO (CVPR 2025) and SAM's sparse and dense prompt embeddings, joined to the
region perceiver.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsight_core.model.perceiver import sine_position
from medsight_core.prompt_raster import CHANNELS

NEGATIVE = tuple(i for i, kind in enumerate(CHANNELS) if kind.startswith("negative"))


@dataclass(frozen=True, kw_only=True)
class PromptEmbedding:
    """Encoded prompts of a batch.

    Attributes:
        token: initial query `(batch, 1, dim)`.
        hints: added to the pixels after each upsampling, one per stage, `(batch, h, w, dim)`.
        present: which images have a prompt `(batch,)`, bool.
    """

    token: Tensor
    hints: tuple[Tensor, ...]
    present: Tensor


class PromptEncoder(nn.Module):
    """Encodes prompt rasters.

    Args:
        dim: width of the perceiver.
        num_stages: stages of the perceiver.
    """

    def __init__(self, *, dim: int, num_stages: int) -> None:
        super().__init__()
        kinds = len(CHANNELS)
        self.token = nn.Sequential(
            nn.LayerNorm(3 * dim), nn.Linear(3 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.kind = nn.Linear(kinds, dim)
        self.hints = nn.ModuleList(
            nn.Conv2d(kinds, dim, kernel_size=3, padding=1, bias=False) for _ in range(num_stages)
        )
        for hint in self.hints:
            hint.initial_gain = 0.0  # nothing changes until it has learnt

    def forward(self, raster: Tensor, grid: Tensor) -> PromptEmbedding:
        """Encode.

        Args:
            raster: `(batch, channels, height, width)` in 0..1 over the input image, at any resolution; channels as in
                `prompt_raster.CHANNELS`.
            grid: patch features `(batch, h, w, dim)`.
        """
        batch, height, width, dim = grid.shape
        raster = raster.to(grid.dtype)
        present = raster.flatten(1).amax(1) > 0
        place = sine_position(height, width, dim, device=grid.device).to(grid.dtype)
        coarse = F.adaptive_avg_pool2d(raster, (height, width))
        negative = coarse[:, list(NEGATIVE)].sum(1)
        drawn = coarse.sum(1) - negative

        def under(weights: Tensor, values: Tensor) -> Tensor:
            weights = weights / weights.flatten(1).sum(1).clamp_min(1e-6)[:, None, None]
            return torch.einsum("bhw,bhwd->bd", weights, values.expand(batch, -1, -1, -1))

        described = torch.cat((under(drawn, grid), under(drawn, place), under(negative, grid)), dim=-1)
        kinds = raster.flatten(2).amax(2)
        token = self.token(described) + self.kind(kinds)
        stages = range(1, len(self.hints) + 1)
        scaled = (F.adaptive_max_pool2d(raster, (height << s, width << s)) for s in stages)
        hints = tuple(conv(r).permute(0, 2, 3, 1) for conv, r in zip(self.hints, scaled, strict=True))
        return PromptEmbedding(token=token[:, None], hints=hints, present=present)
