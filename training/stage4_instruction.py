"""Stage 4: unified grounded instruction tuning.

The language model, the vocabulary with its region codes and both projectors learn together on all kinds of turns:
L_final = L_LLM + L_seg. Encoder, perceiver and prompt encoder stay as they are. With adapters, the language model does
too, and what is trained stands beside it (`training.lora`).

Source: MedSIGHT, "progressive four-stage training", stage 4.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from training.grounded import Grounded
from training.lora import is_adapter
from training.stage3_codebook import grounded_loss
from training.validation import answer_samples


class InstructionStage:
    """Trains language model, embeddings and projectors."""

    def __init__(self, *, grounded: Grounded, validation: Grounded, adapted: bool = False) -> None:
        self.model = grounded.model
        self.grounded = grounded
        self.validation = validation
        self.adapted = adapted

    def trainable(self, name: str) -> bool:
        """All of the speaking half, or its adapters."""
        if self.adapted:
            return is_adapter(name)
        return name.startswith(("model.language_model.", "lm_head.", "model.vision_to_text.", "model.text_to_vision."))

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """L_final."""
        return grounded_loss(self.grounded, rng)

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Losses and Dice on held-out samples."""
        return answer_samples(self.validation, folder, step)

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing to keep up."""
        return {}
