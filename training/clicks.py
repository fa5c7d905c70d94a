"""People who point: simulated prompts on a batch, and how they go on when the first answer is not right.

A prompt may be clumsy, may miss everything, or may be the mask of a neighbouring slice. Who corrects sends what the
model answered along with a click into what is wrong with it, as the viewer does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsight_core.model import MedSightModel
from medsight_core.model.vision import VisionFeatures, resize
from medsight_core.prompt_raster import Mark, draw
from training.data.augment import Batch
from training.data.prompts import correct, marks_for


@dataclass(frozen=True, kw_only=True)
class Pointing:
    """What was drawn on an image.

    Attributes:
        marks: on the mask grid.
        drawn: the target that it was drawn for; None for a prompt at nothing.
        under: the target that it means without a word, the smallest one under a click; None likewise.
    """

    marks: tuple[Mark, ...]
    drawn: int | None
    under: int | None


def point_at(batch: Batch, rng: np.random.Generator, *, share: float, misplaced: float) -> list[Pointing | None]:
    """Prompts on a share of a batch's images; None for an image without one.

    Args:
        batch: images with soft masks.
        rng: source of randomness.
        share: of the images; those that come with questions of their own get none.
        misplaced: share of the prompts that point at nothing.
    """
    pointings: list[Pointing | None] = []
    for sample, masks, nearby in zip(batch.samples, batch.masks, batch.nearby, strict=True):
        if sample.questions or rng.random() >= share:
            pointings.append(None)
            continue
        names = {target.name: index for index, target in enumerate(sample.targets)}
        neighbours = [
            (mask > 0.5, names.get(target.name))
            for mask, target in zip(nearby.numpy(), sample.nearby, strict=True)
            if (mask > 0.5).any()
        ]
        marks, drawn, under = marks_for(masks.numpy() > 0.5, rng, misplaced=misplaced, neighbours=neighbours)
        pointings.append(Pointing(marks=tuple(marks), drawn=drawn, under=under) if marks else None)
    return pointings


def rasters(pointings: Sequence[Pointing | None], side: int) -> Tensor:
    """Prompt rasters `(images, channels, side, side)`; empty where nothing was drawn."""
    return torch.from_numpy(np.stack([draw(p.marks if p else (), (side, side)) for p in pointings]))


@torch.no_grad()
def go_on(
    model: MedSightModel,
    vision: VisionFeatures,
    batch: Batch,
    pointings: Sequence[Pointing | None],
    rng: np.random.Generator,
) -> list[Pointing | None]:
    """The next prompt of everybody who pointed at something: what the prompt token yields now, corrected by a click."""
    side = batch.images.shape[-1] // 2
    seen = model.perceive(vision, rasters(pointings, side).to(vision.grid.device))
    logits = resize(seen.regions.mask_logits[:, -1:].float(), torch.Size((side, side)))
    guesses = logits[:, 0].cpu().numpy() > 0
    further: list[Pointing | None] = []
    for pointing, guess, masks in zip(pointings, guesses, batch.masks, strict=True):
        if pointing is None or pointing.under is None or pointing.drawn is None:
            further.append(pointing)
            continue
        marks = correct(list(pointing.marks), guess, masks[pointing.drawn].numpy() > 0.5, rng)
        further.append(Pointing(marks=tuple(marks), drawn=pointing.drawn, under=pointing.drawn))
    return further
