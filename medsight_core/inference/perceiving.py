"""Slices as the perceiver saw them, with what was drawn on them, kept within a memory budget.

A further question about a slice, and the answer that draws on it, need nothing else of it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Final

import torch

from medsight_core.inference.features import SliceFeatures
from medsight_core.inference.inputs import Inputs
from medsight_core.inference.memory import VolumeMemory
from medsight_core.model import ImageFeatures, MedSightForConditionalGeneration
from medsight_core.model.vision import VisionFeatures

BUDGET: Final = 1 << 29
"""Bytes that are kept, unless the caller says otherwise."""


class Perceived:
    """Perceives slices, each for itself, so that what is seen cannot depend on others. Safe to share between threads.

    Args:
        model: The model, on its device.
        features: Its encoder's memory.
        budget: Bytes that are kept beside that.
    """

    def __init__(
        self, *, model: MedSightForConditionalGeneration, features: SliceFeatures, budget: int = BUDGET
    ) -> None:
        self.memory: VolumeMemory[ImageFeatures] = VolumeMemory(budget=budget)
        self.passes = 0
        """Passes of the perceiver so far."""
        self._model = model
        self._features = features

    def see(self, made: Inputs) -> Generator[None, None, ImageFeatures]:
        """What the model sees of the slice that is asked about, with what was drawn on it; a pass at each step."""
        volume, k = made.question.volume, made.question.slice_index
        kept = self.memory.get(volume, made.looks_at)
        if kept is None:
            (vision,) = self._features.get(volume, [k])
            yield
            kept = self._perceive(vision, made)
            self.memory.put(volume, made.looks_at, kept)
            yield
        return kept

    @torch.inference_mode()
    def _perceive(self, vision: VisionFeatures, made: Inputs) -> ImageFeatures:
        self.passes += 1
        raster = None if made.raster is None else torch.from_numpy(made.raster)[None].to(vision.grid.device)
        seen = self._model.model.perceive(vision, raster)
        if self._model.config.mask_decoder == "head":
            return seen
        # The perceiver draws from the coarse grid on; its finest pixels are most of what there is to keep.
        return replace(seen, regions=replace(seen.regions, pixels=seen.regions.pixels[:, :0].clone()))
