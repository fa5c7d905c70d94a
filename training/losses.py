"""Losses as pure functions of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medsight_core.model.codebook import Quantized


def dice_loss(logits: Tensor, targets: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of each mask.

    Args:
        logits, targets: `(masks, height, width)`; targets in 0..1.
        smooth: added above and below, so that an empty target asks for an empty mask.

    Returns:
        `(masks,)` in 0..1.
    """
    p, t = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    return 1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, mean over its pixels, `(masks,)`."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").flatten(1).mean(1)


def segmentation_loss(logits: Tensor, targets: Tensor, *, bce: float = 1.0, dice: float = 1.0) -> Tensor:
    """L_seg, mean over masks; zero (with a gradient path) where there is none."""
    if not len(logits):
        return logits.sum() * 0
    return (bce * bce_loss(logits, targets) + dice * dice_loss(logits, targets)).mean()


def class_loss(logits: Tensor, classes: Tensor, *, no_object: float) -> Tensor:
    """Cross-entropy over all queries, the matched ones against their class, the rest against "no object".

    Args:
        logits: `(queries, classes + 1)`.
        classes: `(queries,)`; the last class is "no object".
        no_object: weight of that class.
    """
    weight = torch.ones(logits.shape[-1], device=logits.device)
    weight[-1] = no_object
    return F.cross_entropy(logits.float(), classes, weight=weight)


def at_size(targets: Tensor, size: torch.Size) -> Tensor:
    """Soft masks `(masks, h, w)` averaged to `size`; a slightly finer one, as of a ViT's grid, works as well."""
    if targets.shape[-2:] == size or not len(targets):
        return targets if targets.shape[-2:] == size else targets.new_zeros(0, *size)
    return F.adaptive_avg_pool2d(targets[:, None], tuple(size))[:, 0]


def codebook_losses(quantized: Quantized, regions: Tensor, matched: Tensor) -> dict[str, Tensor]:
    """The codebook's own losses over matched regions.

    Comparison happens on the unit sphere, where the code was chosen; each loss is counted once.

    Args:
        quantized: regions and their codes `(batch, n, …)`.
        regions: embeddings that were quantised `(batch, n, dim)`.
        matched: which regions count `(batch, n)` bool.

    Returns:
        `vq` moves codes to regions, `commit` regions to codes, `recon` the decoded to the original embedding.
    """
    code, unit = quantized.code[matched], quantized.unit[matched]
    decoded, original = quantized.decoded[matched].float(), regions[matched].float().detach()
    if not len(code):
        zero = quantized.projected.sum() * 0
        return {"vq": zero, "commit": zero, "recon": zero}
    return {
        "vq": (code - unit.detach()).square().sum(-1).mean(),
        "commit": (unit - code.detach()).square().sum(-1).mean(),
        "recon": F.mse_loss(decoded, original),
    }
