"""Batches of conversations about images, shared by stages 2 to 4.

A batch is some images, half of them with a prompt, and some turns about each. The frozen encoder and perceiver look at
each image once; queries are matched with the targets; the codebook names each matched query's code, which then stands
in the answer's text. The language model reads and its states at the codes are decoded to masks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsight_core.errors import InputError
from medsight_core.model import ImageFeatures, MedSightForConditionalGeneration, MedSightProcessor
from training.clicks import Pointing, go_on, point_at, rasters
from training.data.augment import Batch, augment
from training.data.biomedparse import Sample, sampling_weights
from training.data.conversations import CODE, Conversations, Turn
from training.losses import at_size, segmentation_loss
from training.matching import match_images

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class GroundedConfig:
    """What a batch of conversations is.

    Attributes:
        images: per batch.
        turns: per image.
        size: input side.
        negatives: how much likelier than by their number images are that show nothing of what their data set knows.
        prompted: share of the images with a prompt; none where the model reads no prompts.
        misplaced: share of the prompts that point at nothing.
        refined: share of the batches in which a first answer to the prompts is corrected by further clicks.
        bce, dice: weights of L_seg.
        single_code: write one and the same code for every region (ablation: a plain [SEG] token).
        strength: of the augmentation.
    """

    images: int = 8
    turns: int = 3
    size: int = 256
    negatives: float = 1.0
    prompted: float = 0.5
    misplaced: float = 0.2
    refined: float = 0.3
    bce: float = 2.0
    dice: float = 1.0
    single_code: bool = False
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A batch of images as the frozen half sees them.

    Attributes:
        batch: images and targets.
        pointings: what was drawn on each; None where nothing was.
        features: of the images with their prompts.
    """

    batch: Batch
    pointings: list[Pointing | None]
    features: ImageFeatures


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Tokenised turns.

    Attributes:
        input_ids, labels, attention_mask: `(rows, length)`.
        image: image of each row `(rows,)`.
        masks: target of each code in reading order `(codes, h, w)`.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    image: Tensor
    masks: Tensor


class Grounded:
    """Makes batches and computes the losses over them."""

    def __init__(
        self,
        *,
        model: MedSightForConditionalGeneration,
        processor: MedSightProcessor,
        samples: list[Sample],
        config: GroundedConfig,
    ) -> None:
        self.model = model
        self.processor = processor
        self.samples = samples
        self.config = config
        negative = np.array([not (sample.targets or sample.questions) for sample in samples])
        weights = sampling_weights(samples) * np.where(negative, config.negatives, 1.0)
        self.weights = weights / weights.sum()
        self.conversations = Conversations(samples)
        self.classes = {name: index for index, name in enumerate(model.config.class_names)}
        self.code_names = [processor.codes.name(code) for code in processor.codes]
        self.groups = {name: index for index, name in enumerate(model.config.modality_names)}
        self.prompted = config.prompted if model.model.prompt_encoder is not None else 0.0

    @torch.no_grad()
    def scene(self, rng: np.random.Generator) -> Scene:
        """Images, what people drew on some of them, and what the frozen half sees."""
        config, model = self.config, self.model.model
        chosen = rng.choice(len(self.samples), config.images, p=self.weights)
        batch = augment([self.samples[i] for i in chosen], size=config.size, rng=rng, strength=config.strength)
        pointings = point_at(batch, rng, share=self.prompted, misplaced=config.misplaced)
        vision = model.vision(normalise(batch.images, self.processor).to(self.model.device))
        if not any(pointings):
            return Scene(batch=batch, pointings=pointings, features=model.perceive(vision))
        if rng.random() < config.refined:
            pointings = go_on(model, vision, batch, pointings, rng)
        raster = rasters(pointings, config.size // 2).to(self.model.device)
        return Scene(batch=batch, pointings=pointings, features=model.perceive(vision, raster))

    def turns(self, scene: Scene, rng: np.random.Generator) -> list[list[Turn]]:
        """Turns about each image of a batch; targets that the augmentation moved out of view are not asked for."""
        asked = []
        batch = scene.batch
        for sample, pointing, masks in zip(batch.samples, scene.pointings, batch.masks, strict=True):
            of_image: list[Turn] = []
            while len(of_image) < self.config.turns:
                if pointing is None:
                    turn = self.conversations.plain(sample, rng)
                else:
                    turn = self.conversations.prompted(sample, pointing.drawn, pointing.under, rng)
                if all(masks[t].sum() > 0.5 for t in turn.targets):
                    of_image.append(turn)
            asked.append(of_image)
        return asked

    @torch.no_grad()
    def codes(self, scene: Scene) -> list[dict[int, str]]:
        """Name of the region code of each target of each image: the code of the query that matches it.

        Where the model has no group of that name, as the released one has none, the group is the one it takes the image
        for: so its authors did it.

        Raises:
            InputError: no_codebook.
        """
        batch, features = scene.batch, scene.features
        names: list[dict[int, str]] = [{} for _ in batch.samples]
        image, query, target = match_images(features.regions, batch, self.classes, self.model.config.num_region_queries)
        if self.config.single_code or not len(image):
            for masks, of_image in zip(batch.masks, names, strict=True):
                of_image.update(dict.fromkeys(range(len(masks)), self.code_names[0]))
            return names
        codebook = self.model.model.codebook
        if codebook is None:
            raise InputError(
                "no_codebook",
                "The model has no codebook, which tells the region codes of what it is trained on.",
                "Where it was converted, convert it again with --codebook FILE.",
            )
        likely = codebook.modality_predictor(features.vision.summary).argmax(-1).tolist()
        known = torch.tensor(
            [self.groups.get(sample.modality, guess) for sample, guess in zip(batch.samples, likely, strict=True)],
            device=query.device,
        )
        index = codebook(features.regions.queries, known).index
        per_group = self.model.config.codes_per_group
        for i, q, t in zip(image.tolist(), query.tolist(), target.tolist(), strict=True):
            names[i][t] = self.code_names[int(known[i]) * per_group + int(index[i, q])]
        return names

    def texts(self, batch: Batch, asked: list[list[Turn]], name: Callable[[int, int], str]) -> Texts:
        """Tokenise turns; `name(image, target)` is what stands for a target's code ("" leaves codes out)."""
        ids, labels, image, masks = [], [], [], []
        tokenizer = self.processor.tokenizer
        for i, turns in enumerate(asked):
            for turn in turns:
                answer = turn.answer
                for target in turn.targets:
                    code = name(i, target)
                    answer = answer.replace(CODE, code, 1)
                    if code:
                        masks.append(batch.masks[i][target])
                whole = self.processor.chat(turn.question, prompted=turn.prompted, answer=answer)
                asking = self.processor.chat(turn.question, prompted=turn.prompted)
                row = self.encode(whole)
                start = len(self.encode(asking))
                ids.append(row)
                labels.append([IGNORE] * start + row[start:])
                image.append(i)
        width = max(map(len, ids))
        pad = tokenizer.pad_token_id
        half = self.config.size // 2
        return Texts(
            input_ids=torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
            labels=torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels]),
            attention_mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
            image=torch.tensor(image),
            masks=torch.stack(masks) if masks else torch.zeros(0, half, half),
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a chat text with its placeholders written out."""
        ids: list[int] = self.processor(text=text, return_tensors=None)["input_ids"][0]
        return ids

    def losses(self, texts: Texts, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """L_LLM and L_seg."""
        device = self.model.device
        ids = texts.input_ids.to(device)
        out = self.model(
            input_ids=ids,
            attention_mask=texts.attention_mask.to(device),
            labels=texts.labels.to(device),
            image_features=features,
            image_index=texts.image.to(device),
            use_cache=False,
        )
        rows, positions = self.model.code_positions(ids)
        states = self.model.code_states(out.last_hidden_state, rows, positions)
        logits = self.model.model.decode_codes(states, features, texts.image.to(device)[rows])
        truth = at_size(texts.masks.to(device), logits.shape[-2:])
        seg = segmentation_loss(logits, truth, bce=self.config.bce, dice=self.config.dice)
        return out.loss, seg


def normalise(images: Tensor, processor: MedSightProcessor) -> Tensor:
    """0..1 to the encoder's range, `(batch, 3, height, width)`."""
    mean, std = (
        torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
        for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    return (images - mean) / std
