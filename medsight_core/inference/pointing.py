"""What a prompt points at: one pass of the perceiver, and no language model.

What a person drew becomes a prompt token among the region queries (`model.prompt_encoder`); refined there, it is cut
into a mask and put into a class by the same heads as they are. Among the classes "no object" says that there is nothing
at this place, or that the structure of a neighbouring slice has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from medsight_core.geometry import Frame, GridTransform
from medsight_core.inference.grounding import ground
from medsight_core.inference.nearest import nearest_code
from medsight_core.inference.transcript import UNNAMED, Mention
from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from medsight_core.model.vision import VisionFeatures
from medsight_core.regions import Region, Span

NOTHING_MARGIN: Final = 0.3
"""There is no region where "no object" is likelier than the likeliest class by at least this probability.

Of the held-out clicks in docs/volumes.md ("Clicks") it refuses 84 % of those on nothing, 6 % of those on a structure.
"""

MASK_LEVEL: Final = -0.75
"""Logit at the edge of what a prompt yields: masks cut at even odds come out too small (docs/volumes.md, "Clicks")."""

INSISTED_DEPTH: Final = 1.0
"""Logits below the highest that belong to a region which a person insists on and the model would not draw."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pointed:
    """What the model makes of one prompt on one image.

    Attributes:
        logits: Mask logits `(height, width)` on the model's mask grid, less `MASK_LEVEL`: above 0 is inside.
        nothing: Probability of "no object".
        something: Probability of the likeliest class.
        label: That class in words.
        code: The nearest entry of the codebook, such as ``"[C2_16]"``; empty where the model has no codebook.
        agreement: Where several prompts asked for one thing, the part of all their masks together that all of them
            share; 1 where it was one prompt.
    """

    logits: NDArray[np.float32]
    nothing: float
    something: float
    label: str
    code: str
    agreement: float = 1.0

    @property
    def is_nothing(self) -> bool:
        """Whether there is no region here, by `NOTHING_MARGIN`."""
        return self.nothing - self.something >= NOTHING_MARGIN

    def region(
        self, *, transform: GridTransform, slice_index: int, frame: Frame, insisted: bool = False
    ) -> Region | None:
        """The region in its place on the slice.

        Its score is the probability that there is something, times the mean probability of the pixels inside.

        Args:
            transform: From the slice's grid to the model's input grid.
            slice_index: The slice.
            frame: Where that slice lies.
            insisted: A person has said clearly enough that there is something: the region is drawn whatever the model
                thinks of it, if need be from the likeliest pixels.

        Returns:
            None where there is nothing.
        """
        if self.is_nothing and not insisted:
            return None
        mention = Mention(code=self.code, label=self.label, span=Span(0, 0))
        place = {"mention": mention, "transform": transform, "slice_index": slice_index, "frame": frame}
        region = ground(self.logits, probability=1.0 - self.nothing, **place)
        if region is None and insisted:
            peak = float(self.logits.max())
            sure = 1.0 / (1.0 + np.exp(-min(peak, 0.0)))
            region = ground(
                self.logits - (peak - INSISTED_DEPTH), probability=float((1.0 - self.nothing) * sure), **place
            )
        return region


class Pointer:
    """Decodes prompts with one model.

    Args:
        model: With a prompt encoder.
        processor: Of the same checkpoint.

    Attributes:
        passes: How many images the perceiver has passed over.
    """

    def __init__(self, *, model: MedSightForConditionalGeneration, processor: MedSightProcessor) -> None:
        self._model = model
        self._processor = processor
        self.passes = 0

    @torch.inference_mode()
    def point(self, vision: VisionFeatures, *rasters: NDArray[np.float32], modality: str) -> Pointed:
        """One pass over one image for each prompt.

        Args:
            vision: The encoded image, batch of one.
            rasters: What was drawn `(channels, height, width)`, not empty. Where there are several, they ask for the
                same thing in different ways, and their mean is what is told; the first one gives the code.
            modality: Of the scan; where it says nothing the model guesses the codebook's group from the image.
        """
        core, names = self._model.model, self._model.config.class_names
        seen = [core.perceive(vision, torch.from_numpy(raster)[None].to(vision.grid.device)) for raster in rasters]
        self.passes += len(seen)
        logits = np.stack([one.regions.mask_logits[0, -1].float().cpu().numpy() for one in seen]) - MASK_LEVEL
        classes = (
            torch.stack([one.regions.class_logits[0, -1].float().softmax(-1) for one in seen]).mean(0).cpu().numpy()
        )
        best = int(classes[:-1].argmax())
        return Pointed(
            logits=logits.mean(0),
            nothing=float(classes[-1]),
            something=float(classes[best]),
            label=names[best] if names else UNNAMED,
            code=nearest_code(self._model, self._processor, seen[0].regions.queries[0, -1], vision, modality=modality),
            agreement=shared(logits > 0),
        )


def shared(masks: NDArray[np.bool_]) -> float:
    """The part of what any of the masks ``(masks, height, width)`` covers that all of them cover; 1 for empty ones."""
    covered = int(np.count_nonzero(masks.any(0)))
    return int(np.count_nonzero(masks.all(0))) / covered if covered else 1.0
