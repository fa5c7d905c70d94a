"""The region code that a refined query stands for, where no language model wrote one."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from medsight_core.model.vision import VisionFeatures

GROUP_OF_MODALITY: Final = (("MR", "MRI"),)
"""Modalities of scans and how the groups of a codebook call them, where they differ."""


@torch.inference_mode()
def nearest_code(
    model: MedSightForConditionalGeneration,
    processor: MedSightProcessor,
    query: Tensor,
    vision: VisionFeatures,
    *,
    modality: str,
) -> str:
    """The entry of the codebook nearest to a query, as ours (``"[C2_16]"``); "" without a codebook.

    Args:
        model: The model.
        processor: Of the same checkpoint.
        query: Refined by the perceiver `(dim,)`.
        vision: The encoded image, batch of one.
        modality: Of the scan; where it says nothing the model guesses the codebook's group from the image.
    """
    codebook, config = model.model.codebook, model.config
    if codebook is None:
        return ""
    name = dict(GROUP_OF_MODALITY).get(modality, modality)
    if name in config.modality_names:
        group = list(config.modality_names).index(name)
    else:
        group = int(codebook.modality_predictor(vision.summary)[0].argmax())
    index = codebook(query[None, None], torch.tensor([group], device=query.device)).index
    codes = list(processor.codes)
    return str(codes[group * config.codes_per_group + int(index[0, 0])])
