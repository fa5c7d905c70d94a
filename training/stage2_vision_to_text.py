"""Stage 2: the projector P_v→t learns to say patches and region tokens in words.

Answers carry no region codes yet. Language model, encoder and perceiver are frozen; a language model that starts from
nothing (mini) learns its language along.

Source: MedSIGHT, "progressive four-stage training", stage 2.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from training.grounded import Grounded
from training.validation import answer_samples


@dataclass(frozen=True, kw_only=True)
class VisionToTextConfig:
    """Stage 2.

    Attributes:
        train_language_model: True for a language model without pre-trained weights.
    """

    train_language_model: bool = False


class VisionToTextStage:
    """Trains P_v→t (and, for mini, the language model) on answers without codes."""

    def __init__(self, *, grounded: Grounded, config: VisionToTextConfig, validation: Grounded) -> None:
        self.model = grounded.model
        self.grounded = grounded
        self.config = config
        self.validation = validation

    def trainable(self, name: str) -> bool:
        """P_v→t; the language model where it starts from nothing."""
        language = ("model.language_model.", "lm_head.") if self.config.train_language_model else ()
        return name.startswith(("model.vision_to_text.", *language))

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """L_LLM over turns without codes."""
        scene = self.grounded.scene(rng)
        texts = self.grounded.texts(scene.batch, self.grounded.turns(scene, rng), lambda image, target: "")
        language, _ = self.grounded.losses(texts, scene.features)
        return language, {"language": float(language.detach())}

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Loss on held-out samples."""
        return answer_samples(self.validation, folder, step, codes=False)

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing to keep up."""
        return {}
