"""Stage 1: the region perceiver learns to find, cut out and name regions, with and without a prompt.

L_R = L_seg (BCE + Dice) + L_ce over queries matched one to one with the targets; queries without a target learn
"no object". Every other batch carries simulated prompts: the prompt token must then yield the prompted region, or
"no object" where a person pointed at nothing. Intermediate stages of the perceiver are supervised with the same
matching. An encoder without pre-trained weights (mini) is trained along.

Source: MedSIGHT, "progressive four-stage training", stage 1.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from medsight_core.model.modeling import ImageFeatures
from medsight_core.model.vision import VisionFeatures
from medsight_core.prompt_raster import Mark, draw
from training.clicks import go_on, point_at, rasters
from training.data.augment import Batch, augment
from training.data.biomedparse import Sample, sampling_weights
from training.data.prompts import simulate
from training.grounded import normalise
from training.losses import at_size, bce_loss, class_loss, segmentation_loss
from training.matching import match_images
from training.pictures import overlay_sheet


@dataclass(frozen=True, kw_only=True)
class RegionPerceiverConfig:
    """Stage 1.

    Attributes:
        batch: images.
        sizes: input sides over the run, as (share of the steps, side); small first is faster.
        prompt_share: share of the batches with prompts.
        misplaced: share of prompts that point at nothing.
        refined: share of those batches in which a first guess is corrected by further clicks.
        no_object, nothing_there: weight of the class "no object", for the learned queries and for prompts.
        auxiliary: weight of the intermediate stages' losses.
        bce, dice, ce: weights of the loss.
        train_encoder: False for a pre-trained encoder.
    """

    batch: int = 8
    sizes: tuple[tuple[float, int], ...] = ((1.0, 256),)
    prompt_share: float = 0.75
    misplaced: float = 0.2
    refined: float = 0.5
    no_object: float = 0.1
    nothing_there: float = 1.0
    auxiliary: float = 0.3
    bce: float = 2.0
    dice: float = 1.0
    ce: float = 0.5
    train_encoder: bool = True


class RegionPerceiverStage:
    """Trains encoder (mini), perceiver and prompt encoder."""

    def __init__(
        self,
        *,
        model: MedSightForConditionalGeneration,
        processor: MedSightProcessor,
        config: RegionPerceiverConfig,
        samples: list[Sample],
        validation: list[Sample],
        steps: int,
    ) -> None:
        self.model = model
        self.processor = processor
        self.config = config
        self.samples = samples
        self.validation = validation
        self.steps = steps
        self.weights = sampling_weights(samples)
        self.classes = {name: index for index, name in enumerate(model.config.class_names)}

    def trainable(self, name: str) -> bool:
        """Perceiver and prompts; the encoder where it starts from nothing."""
        parts = ("model.perceiver.", "model.prompt_encoder.")
        return name.startswith(parts + (("model.vision.",) if self.config.train_encoder else ()))

    def size(self, step: int) -> int:
        """Input side at a step."""
        reached = 0.0
        for share, side in self.config.sizes:
            reached += share
            if step < round(reached * self.steps):
                return side
        return self.config.sizes[-1][1]

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """See `training.loop.Stage`."""
        chosen = rng.choice(len(self.samples), self.config.batch, p=self.weights)
        batch = augment([self.samples[i] for i in chosen], size=self.size(step), rng=rng)
        device = self.model.device
        raster, wanted = None, None
        vision = self.model.model.vision(normalise(batch.images, self.processor).to(device))
        if rng.random() < self.config.prompt_share:
            raster, wanted = self.prompts(batch, vision, rng)
        features = self.model.model.perceive(vision, raster)
        queries = self.model.config.num_region_queries
        loss, figures = self.matched_loss(features, batch, queries)
        if wanted is not None:
            prompted, more = self.prompted_loss(features, batch, wanted)
            loss, figures = loss + prompted, figures | more
        return loss, {"loss": float(loss.detach())} | figures

    def matched_loss(self, features: ImageFeatures, batch: Batch, queries: int) -> tuple[Tensor, dict[str, float]]:
        """L_R of the learned queries, with the intermediate stages."""
        regions, device = features.regions, features.regions.mask_logits.device
        classes = torch.full((len(batch.samples), queries), self.model.config.num_classes, device=device)
        image, query, target = match_images(regions, batch, self.classes, queries)
        pairs = list(zip(image.tolist(), target.tolist(), strict=True))
        names = [self.classes[batch.samples[i].targets[t].name] for i, t in pairs]
        classes[image, query] = torch.tensor(names, dtype=torch.long, device=device)
        half = batch.images.shape[-1] // 2
        truth = torch.stack([batch.masks[i][t] for i, t in pairs]) if pairs else torch.zeros(0, half, half)
        truth = truth.to(device)

        def level(mask_logits: Tensor, class_logits: Tensor) -> tuple[Tensor, Tensor]:
            picked = mask_logits[image, query]
            rough = at_size(truth, picked.shape[-2:])
            seg = segmentation_loss(picked, rough, bce=self.config.bce, dice=self.config.dice)
            named = class_logits[:, :queries].flatten(0, 1)
            return seg, class_loss(named, classes.flatten(), no_object=self.config.no_object)

        seg, ce = level(regions.mask_logits, regions.class_logits)
        loss = seg + self.config.ce * ce
        for mask_logits, class_logits in zip(regions.stage_mask_logits, regions.stage_class_logits, strict=True):
            rough, naming = level(mask_logits, class_logits)
            loss = loss + self.config.auxiliary * (rough + self.config.ce * naming)
        return loss, {"segmentation": float(seg.detach()), "class": float(ce.detach())}

    def prompts(
        self, batch: Batch, vision: VisionFeatures, rng: np.random.Generator
    ) -> tuple[Tensor, list[int | None]]:
        """Prompt rasters at mask resolution, and which target each points at (None: nothing).

        In some batches these are the second or third step of a person who corrects what the first one yielded.
        """
        pointings = point_at(batch, rng, share=1.0, misplaced=self.config.misplaced)
        for _ in range(int(rng.integers(1, 3)) if rng.random() < self.config.refined else 0):
            pointings = go_on(self.model.model, vision, batch, pointings, rng)
        raster = rasters(pointings, batch.images.shape[-1] // 2).to(self.model.device)
        return raster, [None if pointing is None else pointing.under for pointing in pointings]

    def prompted_loss(
        self, features: ImageFeatures, batch: Batch, wanted: list[int | None]
    ) -> tuple[Tensor, dict[str, float]]:
        """The prompt token's mask and class, at every stage."""
        regions, device = features.regions, features.regions.mask_logits.device
        nothing = self.model.config.num_classes
        names = [nothing if w is None else self.classes[batch.samples[i].targets[w].name] for i, w in enumerate(wanted)]
        classes = torch.tensor(names, device=device)
        found = classes != nothing
        blank = torch.zeros(batch.images.shape[-1] // 2, batch.images.shape[-1] // 2)
        truth = torch.stack([blank if w is None else batch.masks[i][w] for i, w in enumerate(wanted)]).to(device)

        def level(mask_logits: Tensor, class_logits: Tensor) -> tuple[Tensor, Tensor]:
            logits = mask_logits[:, -1]
            target = at_size(truth, logits.shape[-2:])
            seg = segmentation_loss(logits[found], target[found], bce=self.config.bce, dice=self.config.dice)
            empty = bce_loss(logits[~found], target[~found]).mean() if (~found).any() else seg * 0
            return seg + 0.2 * empty, class_loss(class_logits[:, -1], classes, no_object=self.config.nothing_there)

        seg, ce = level(regions.mask_logits, regions.class_logits)
        loss = seg + self.config.ce * ce
        for mask_logits, class_logits in zip(regions.stage_mask_logits, regions.stage_class_logits, strict=True):
            rough, naming = level(mask_logits, class_logits)
            loss = loss + self.config.auxiliary * (rough + self.config.ce * naming)
        return loss, {"prompted": float(seg.detach())}

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Macro Dice over datasets and classes: by the query likeliest of the class, and by one click."""
        rng = np.random.default_rng(0)
        by_class: dict[tuple[str, str], list[float]] = {}
        by_click: dict[tuple[str, str], list[float]] = {}
        shown = []
        side = self.size(step - 1)
        for start in range(0, len(self.validation), 8):
            batch = augment(self.validation[start : start + 8], size=side, rng=rng, strength=0.0)
            pixels = normalise(batch.images, self.processor).to(self.model.device)
            vision = self.model.model.vision(pixels)
            regions = self.model.model.perceive(vision).regions
            depth = max((len(m) for m in batch.masks), default=0)
            clicked = []
            for k in range(depth):
                rasters = [draw(one_click(masks, k, rng), tuple(masks.shape[-2:])) for masks in batch.masks]
                raster = torch.from_numpy(np.stack(rasters)).to(self.model.device)
                clicked.append(self.model.model.perceive(vision, raster).regions.mask_logits[:, -1])
            for i, sample in enumerate(batch.samples):
                for k, target in enumerate(sample.targets):
                    truth = at_size(batch.masks[i][k : k + 1], regions.mask_logits.shape[-2:])[0] > 0.5
                    key = sample.dataset, target.name
                    best = int(regions.class_logits[i].float().softmax(-1)[:, self.classes[target.name]].argmax())
                    mask = regions.mask_logits[i, best].float().cpu() > 0
                    by_class.setdefault(key, []).append(dice(mask, truth))
                    by_click.setdefault(key, []).append(dice(clicked[k][i].float().cpu() > 0, truth))
                    if len(by_class[key]) == 1:
                        shown.append((batch.images[i], mask, truth, f"{target.name} {by_class[key][0]:.2f}"))
        overlay_sheet(shown, folder / f"step{step:06d}.png")
        scores = {f"{d}/{t}": float(np.mean(v)) for (d, t), v in sorted(by_class.items())}
        return {
            "macro_dice": float(np.mean(list(scores.values()))),
            "macro_dice_point": float(np.mean([np.mean(v) for v in by_click.values()])),
        } | scores

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing to keep up."""
        return {}


def one_click(masks: Tensor, index: int, rng: np.random.Generator) -> list[Mark]:
    """A click into a target, if the image has that many and it is in view."""
    if index >= len(masks) or not (masks[index] > 0.5).any():
        return []
    return simulate(masks[index].numpy() > 0.5, rng, "point")[:1]


def dice(mask: Tensor, truth: Tensor) -> float:
    """Dice of two boolean masks; 1 when both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 1.0 if not total else 2 * int((mask & truth).sum()) / total
