"""Hungarian matching of queries to target masks, at mask resolution."""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medsight_core.model.perceiver import PerceiverOutput
from training.data.augment import Batch
from training.losses import at_size

VISIBLE = 0.5
"""Least sum of a soft mask, in pixels, for its target to count as in view."""


@torch.no_grad()
def match(
    mask_logits: Tensor,
    class_logits: Tensor,
    targets: Tensor,
    classes: Tensor,
    *,
    bce: float = 1.0,
    dice: float = 1.0,
    ce: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One query for each target of one image, at the least total cost.

    Args:
        mask_logits: `(queries, height, width)`.
        class_logits: `(queries, classes + 1)`.
        targets: masks in 0..1 `(targets, height, width)`.
        classes: class of each target `(targets,)`; -1 where the model has no such class, and masks alone decide.
        bce, dice, ce: weights of the cost's parts; the class part is minus the probability of the target's class.

    Returns:
        Indices of queries and of targets, equally long, targets ascending.
    """
    logits, targets = mask_logits.flatten(1).float(), targets.flatten(1).float()
    pixels = logits.shape[1]
    cross = (F.softplus(-logits) @ targets.T + F.softplus(logits) @ (1 - targets).T) / pixels
    p = logits.sigmoid()
    overlap = 1 - (2 * p @ targets.T + 1) / (p.sum(1)[:, None] + targets.sum(1)[None] + 1)
    likely = class_logits.float().softmax(-1)[:, classes] * (classes >= 0)
    cost = bce * cross + dice * overlap - ce * likely
    rows, columns = linear_sum_assignment(cost.T.cpu().numpy())
    return torch.as_tensor(columns, device=logits.device), torch.as_tensor(rows, device=logits.device)


def match_images(
    regions: PerceiverOutput, batch: Batch, classes: dict[str, int], queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Match every image of a batch; targets out of view are left out.

    Args:
        regions: the perceiver's output.
        batch: images and targets.
        classes: index of each class name that the model knows.
        queries: how many of the queries take part (prompt tokens behind them do not).

    Returns:
        Image, query and target of each pair, three `(pairs,)` tensors.
    """
    device = regions.mask_logits.device
    image, query, target = [], [], []
    for i, masks in enumerate(batch.masks):
        visible = (masks.flatten(1).sum(1) > VISIBLE).nonzero().flatten()
        if not len(visible):
            continue
        targets = [batch.samples[i].targets[t] for t in visible.tolist()]
        names = torch.tensor([classes.get(one.name, -1) for one in targets], device=device)
        truth = at_size(masks[visible].to(device), regions.mask_logits.shape[-2:])
        rows, columns = match(regions.mask_logits[i, :queries], regions.class_logits[i, :queries], truth, names)
        image.append(torch.full_like(rows, i))
        query.append(rows)
        target.append(visible.to(device)[columns])
    if not image:
        empty = torch.zeros(0, dtype=torch.long, device=device)
        return empty, empty, empty
    return torch.cat(image), torch.cat(query), torch.cat(target)
