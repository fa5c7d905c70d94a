"""Stage 3: region embeddings become codes, codes become words, and words become masks.

First the codebook: W_q, the codes, W_m and the quantised head learn from matched queries of the frozen perceiver
(L_VQ + commitment + L_recon + L_R on quantised masks, and the modality). Codes that nobody uses are given the place of
regions that are badly served. Then every code's embedding, W_m through P_v→t, starts its row of the vocabulary, and
P_t→v and those rows learn to lead from a code's hidden state back to its mask (L_LLM + L_seg).

Source: MedSIGHT, "progressive four-stage training", stage 3.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medsight_core.model import MedSightForConditionalGeneration
from training.grounded import Grounded
from training.losses import at_size, class_loss, codebook_losses, segmentation_loss
from training.matching import match_images
from training.validation import answer_samples
from training.vocabulary import embeddings


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """The codebook.

    Attributes:
        commit: weight of the commitment loss.
        recon, segmentation, ce, modality: weights of the other losses.
        revive_every: steps between looks for dead codes.
        revive_until: share of the run after which codes are left in peace.
        dead: a code is dead when less than this share of an even use fell to it since the last look.
    """

    commit: float = 0.25
    recon: float = 1.0
    segmentation: float = 1.0
    ce: float = 0.5
    modality: float = 1.0
    revive_every: int = 50
    revive_until: float = 0.7
    dead: float = 0.05


class CodebookStage:
    """Trains the quantiser on a frozen perceiver."""

    def __init__(self, *, grounded: Grounded, config: CodebookConfig, steps: int, validation: Grounded) -> None:
        self.model = grounded.model
        self.grounded = grounded
        self.config = config
        self.steps = steps
        self.validation = validation
        shape = self.model.config.num_code_groups, self.model.config.codes_per_group
        self.used = torch.zeros(shape)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def trainable(self, name: str) -> bool:
        """W_q, codes, W_m, their head and the modality predictor."""
        return name.startswith("model.codebook.")

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """L_codebook."""
        grounded, codebook, config = self.grounded, self.model.model.codebook, self.config
        scene = grounded.scene(rng)
        batch, features = scene.batch, scene.features
        queries = self.model.config.num_region_queries
        image, query, target = match_images(features.regions, batch, grounded.classes, queries)
        known = torch.tensor([grounded.groups.get(s.modality, -1) for s in batch.samples], device=self.model.device)
        guess = codebook.modality_predictor(features.vision.summary)
        modality = F.cross_entropy(guess.float(), known, ignore_index=-1)
        if not len(image):
            return modality * config.modality, {"modality": float(modality.detach())}
        regions = features.regions.queries[:, :queries].float()
        quantized = codebook(regions, known.clamp_min(0))
        matched = torch.zeros(regions.shape[:2], dtype=torch.bool, device=regions.device)
        matched[image, query] = True
        parts = codebook_losses(quantized, regions, matched)
        masks, classes = codebook.head(quantized.decoded, features.regions.pixels)
        pairs = list(zip(image.tolist(), target.tolist(), strict=True))
        truth = at_size(torch.stack([batch.masks[i][t] for i, t in pairs]).to(masks.device), masks.shape[-2:])
        names = torch.tensor(
            [grounded.classes[batch.samples[i].targets[t].name] for i, t in pairs], device=masks.device
        )
        seg = segmentation_loss(masks[image, query], truth, bce=grounded.config.bce, dice=grounded.config.dice)
        ce = class_loss(classes[image, query], names, no_object=0.0)
        with torch.no_grad():
            codes = quantized.index[image, query].cpu()
            self.used.index_put_((known[image].cpu(), codes), torch.ones(len(codes)), accumulate=True)
            self.seen.append((quantized.projected[image, query].detach(), known[image]))
            del self.seen[:-50]
        loss = (
            parts["vq"]
            + config.commit * parts["commit"]
            + config.recon * parts["recon"]
            + config.segmentation * seg
            + config.ce * ce
            + config.modality * modality
        )
        figures = {"loss": loss, **parts, "segmentation": seg, "class": ce, "modality": modality}
        return loss, {name: float(value.detach()) for name, value in figures.items()}

    def after_step(self, step: int) -> dict[str, float]:
        """Usage and perplexity of the groups; dead codes are revived."""
        if (step + 1) % self.config.revive_every:
            return {}
        total = self.used.sum(1, keepdim=True)
        share = self.used / total.clamp_min(1)
        perplexity = torch.exp(-(share * share.clamp_min(1e-9).log()).sum(1))[total[:, 0] > 0]
        dead = (share * self.used.shape[1] < self.config.dead) & (total > 0)
        revived = 0
        if step < self.config.revive_until * self.steps and self.seen:
            samples, groups = (torch.cat(part) for part in zip(*self.seen, strict=True))
            revived = self.model.model.codebook.revive(dead.to(samples.device), samples, groups)
        self.used.zero_()
        return {
            "codes_used": float((share > 0).sum() / share.numel()),
            "perplexity": float(perplexity.mean()),
            "revived": float(revived),
        }

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """How well quantised regions keep class and mask on held-out images, and how many get the right modality."""
        grounded, codebook = self.validation, self.model.model.codebook
        right, named, masked, count = 0.0, 0.0, 0.0, 0
        for seed in range(12):
            rng = np.random.default_rng([1, seed])
            scene = grounded.scene(rng)
            batch, features = scene.batch, scene.features
            queries = self.model.config.num_region_queries
            image, query, target = match_images(features.regions, batch, grounded.classes, queries)
            known = torch.tensor([grounded.groups.get(s.modality, 0) for s in batch.samples], device=self.model.device)
            guess = codebook.modality_predictor(features.vision.summary).argmax(-1)
            right += float((guess == known).float().mean()) / 12
            quantized = codebook(features.regions.queries[:, :queries].float(), known)
            masks, classes = codebook.head(quantized.decoded, features.regions.pixels)
            for i, q, t in zip(image.tolist(), query.tolist(), target.tolist(), strict=True):
                truth = at_size(batch.masks[i][t : t + 1], masks.shape[-2:])[0] > 0.5
                guess_mask = masks[i, q].cpu() > 0
                total = int(truth.sum() + guess_mask.sum())
                masked += 2 * int((truth & guess_mask).sum()) / total if total else 1.0
                named += int(classes[i, q].argmax()) == grounded.classes[batch.samples[i].targets[t].name]
                count += 1
        return {"modality": right, "class": named / max(1, count), "dice": masked / max(1, count)}


@torch.no_grad()
def put_codes_into_vocabulary(model: MedSightForConditionalGeneration) -> None:
    """Start the vocabulary's rows of the region codes from the codebook, through P_v→t, at the size of other rows."""
    ids = torch.tensor(list(model.config.code_token_ids), device=model.device)
    rows = model.model.vision_to_text(model.model.codebook.embeddings())
    table = model.get_input_embeddings().weight
    usual = table.norm(dim=1).median()
    table[ids] = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-6) * usual).to(table.dtype)
    if not model.config.tie_word_embeddings:
        model.get_output_embeddings().weight[ids] = table[ids]


class TextToVisionStage:
    """Trains P_t→v and the rows of the new tokens; everything else is frozen."""

    def __init__(self, *, grounded: Grounded, validation: Grounded) -> None:
        self.model = grounded.model
        self.grounded = grounded
        self.validation = validation
        ids = torch.tensor(list(self.model.config.code_token_ids))
        self.frozen_rows = torch.ones(self.model.config.text_config.vocab_size, dtype=torch.bool)
        self.frozen_rows[ids] = False
        for table in embeddings(self.model):
            table.register_hook(
                lambda gradient: gradient.masked_fill(self.frozen_rows.to(gradient.device)[:, None], 0.0)
            )

    def trainable(self, name: str) -> bool:
        """P_t→v and the tables of words, of which only the codes' rows get a gradient."""
        return name.startswith("model.text_to_vision.") or name in (
            "model.language_model.embed_tokens.weight",
            "lm_head.weight",
        )

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """L_LLM + L_seg."""
        return grounded_loss(self.grounded, rng)

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Losses and Dice on held-out samples."""
        return answer_samples(self.validation, folder, step)

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing to keep up."""
        return {}


def grounded_loss(grounded: Grounded, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    """L_LLM + L_seg of one batch of conversations with codes."""
    scene = grounded.scene(rng)
    codes = grounded.codes(scene)
    texts = grounded.texts(scene.batch, grounded.turns(scene, rng), lambda image, target: codes[image][target])
    language, seg = grounded.losses(texts, scene.features)
    figures = {"language": float(language.detach()), "segmentation": float(seg.detach())}
    return language + seg, figures
