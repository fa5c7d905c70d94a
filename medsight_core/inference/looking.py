"""The first pass over a volume: every slice is perceived once, without words, and what is needed later is kept.

Of a slice stays what a code can be drawn on and read from: the finest features in half precision, the patch grid, the
region queries and what they take themselves for. So the language model can read any slice, and any code can be drawn
on any slice, without a second look; where memory does not suffice, the slice is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsight_core.imaging.planes import Plane, Reformatted
from medsight_core.imaging.volume import Volume
from medsight_core.inference.features import SliceFeatures
from medsight_core.inference.memory import size_of
from medsight_core.model import ImageFeatures, MedSightForConditionalGeneration
from medsight_core.model.vision import VisionFeatures

SlicePresence = NDArray[np.float32]


@dataclass(slots=True, kw_only=True, eq=False)
class Looked:
    """What is known of the slices of a volume in one plane.

    Attributes:
        cut: The scan in that plane.
        presence: Of each slice that was looked at, how likely it shows each class, and last anything at all
            ``(classes + 1,)``.
        features: Of those that are kept.
        bytes: What is kept.
    """

    cut: Reformatted
    presence: dict[int, SlicePresence] = field(default_factory=dict)
    features: dict[int, ImageFeatures] = field(default_factory=dict)
    bytes: int = 0

    def is_of(self, volume: Volume, plane: Plane) -> bool:
        """Whether it is about this scan in this plane."""
        return self.cut.original is volume and self.cut.plane == plane

    def let_go(self) -> None:
        """Lets go of the features; where they are needed after all, the slices are looked at again."""
        self.features.clear()
        self.bytes = 0

    def make_room(self, slices: range, budget: int) -> None:
        """Lets go of the features of other slices where, with those of ``slices``, they would exceed the budget."""
        if not self.features:
            return
        one = self.bytes / len(self.features)
        for k in [k for k in self.features if k not in slices]:
            new = sum(n not in self.features for n in slices)
            if self.bytes + new * one <= budget:
                break
            self.bytes -= size_of(self.features.pop(k))

    def profile(self, slices: range) -> NDArray[np.float32]:
        """Presence of every class, and of anything, along slices ``(slices, classes + 1)``."""
        return np.stack([self.presence[k] for k in slices])


class Looker:
    """Looks at slices with one model.

    Slices are perceived one at a time, so that what is seen of one cannot depend on the others.

    Args:
        model: The model, on its device.
        features: Its encoder's memory; slices of a whole volume go through it without crowding out what is there.
    """

    def __init__(self, *, model: MedSightForConditionalGeneration, features: SliceFeatures) -> None:
        self._model = model
        self._features = features
        self.together = features.together
        """Slices that are best looked at in one call."""

    @torch.inference_mode()
    def look(self, volume: Volume, indices: Sequence[int]) -> list[ImageFeatures]:
        """Perceives slices without prompts."""
        seen = self._features.get(volume, indices, keep=False)
        return [self._model.model.perceive(vision) for vision in seen]

    def take(self, looked: Looked, k: int, features: ImageFeatures, *, budget: int) -> None:
        """Notes what was seen of a slice; its features too, as far as they fit."""
        looked.presence[k] = presence(features)
        if k not in looked.features:
            slim = self.slim(features)
            size = size_of(slim)
            if looked.bytes + size <= budget:
                looked.features[k] = slim
                looked.bytes += size

    def features(self, looked: Looked, k: int) -> ImageFeatures:
        """Features of a slice: those that were kept, else those of another look, which are the same."""
        kept = looked.features.get(k)
        return kept if kept is not None else self.slim(self.look(looked.cut.volume, [k])[0])

    @torch.inference_mode()
    def slim(self, features: ImageFeatures) -> ImageFeatures:
        """Only what reading and drawing need, the large parts in half precision.

        Their values come out of a layer norm, so that half precision moves a logit by some thousandths.
        """
        draws_twice = self._model.config.mask_decoder == "perceiver"
        regions, vision = features.regions, features.vision
        details = tuple(map(half, features.details)) if draws_twice else ()
        return ImageFeatures(
            vision=VisionFeatures(grid=vision.grid, details=(), summary=vision.summary),
            details=details,
            regions=replace(
                regions,
                pixels=half(regions.pixels),
                mask_logits=regions.mask_logits[:, :0].clone(),  # a view would keep them all
                stage_mask_logits=(),
                stage_class_logits=(),
            ),
            prompt=None,
            prompt_present=None,
        )


def half(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in 16 bits, in memory of its own."""
    return tensor.half() if tensor.dtype == torch.float32 else tensor.clone()


@torch.inference_mode()
def presence(features: ImageFeatures) -> SlicePresence:
    """How likely an image shows each class, and last anything: by its surest query that cuts out at least a pixel.

    Args:
        features: Of one image.

    Returns:
        ``(classes + 1,)`` in 0..1.
    """
    classes = features.regions.class_logits[0].float().softmax(-1)
    drawn = (features.regions.mask_logits[0].flatten(1) > 0).any(1)
    sure = torch.cat((classes[:, :-1], 1 - classes[:, -1:]), dim=1) * drawn[:, None]
    found: SlicePresence = sure.amax(0).cpu().numpy()
    return found
