"""From region codes to regions: masks on the model's grid, brought back to the slice they belong to.

A mask comes back as logits through the exact inverse of the transform that made the model's input, and only then
becomes pixels, so that its edge is as smooth as the model drew it. What a letterbox added around the picture is never
read, and what a crop cut off is never inside a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsight_core.geometry import Frame, GridTransform
from medsight_core.inference.transcript import Mention
from medsight_core.model import ImageFeatures, MedSightForConditionalGeneration
from medsight_core.regions import Region

UNSEEN = -30.0
"""Logit of pixels that the model did not see: a probability of 1e-13."""


@torch.inference_mode()
def decode_masks(
    model: MedSightForConditionalGeneration, states: list[Tensor], features: ImageFeatures
) -> list[NDArray[np.float32]]:
    """Mask logits of the codes of one answer about one image.

    With `mask_decoder="perceiver"` and `joint_decoding` the masks of the codes given together depend on each other.

    Args:
        model: Who wrote the codes.
        states: One vector per code `(hidden,)`.
        features: Of that image alone.

    Returns:
        Logits `(height, width)` on the model's mask grid, one array per code.
    """
    if not states:
        return []
    stacked = torch.stack(states)
    image = torch.zeros(len(states), dtype=torch.long, device=stacked.device)
    logits = model.model.decode_codes(stacked, features, image)
    return list(logits.float().cpu().numpy())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """A mask on its slice's own grid.

    Attributes:
        mask: `(rows, columns)` bool, not empty.
        certainty: Mean probability of the pixels inside.
    """

    mask: NDArray[np.bool_]
    certainty: float


def place(logits: NDArray[np.float32], transform: GridTransform) -> Placed | None:
    """Brings mask logits back to the slice they belong to; None where no pixel is inside.

    Args:
        logits: On the model's mask grid `(height, width)`, whatever its resolution.
        transform: From the slice's grid to the model's input grid.
    """
    on_slice = transform.back(np.nan_to_num(logits, nan=UNSEEN, posinf=-UNSEEN, neginf=UNSEEN), fill=UNSEEN)
    mask = on_slice > 0
    if not mask.any():
        return None
    inside = np.clip(on_slice[mask].astype(np.float64), None, -UNSEEN)
    return Placed(mask=mask, certainty=float((1 / (1 + np.exp(-inside))).mean()))


def ground(
    logits: NDArray[np.float32],
    *,
    mention: Mention,
    probability: float,
    transform: GridTransform,
    slice_index: int,
    frame: Frame,
) -> Region | None:
    """A region code's mask in its place.

    The score is the probability of the code, times the mean probability of the pixels inside the mask: how sure the
    model was to name something, and how sure of where it is. It is not calibrated.

    Args:
        logits: On the model's mask grid `(height, width)`, whatever its resolution.
        mention: The code and its words.
        probability: Of the code's token.
        transform: From the slice's grid to the model's input grid.
        slice_index: The slice.
        frame: Where that slice lies.

    Returns:
        The region; None where no pixel is inside.
    """
    placed = place(logits, transform)
    if placed is None:
        return None
    return Region(
        code=mention.code,
        label=mention.label,
        span=mention.span,
        score=min(1.0, probability * placed.certainty),
        slice_index=slice_index,
        mask=placed.mask,
        frame=frame,
    )
