"""The image encoder and the perceiver on it against the released vision tower (open_clip's CLIP, raw block outputs)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medsight_core.model import MedSightModel
from tests.parity.conftest import Compare
from tests.parity.reference import Reference, config, part, state

FIXTURE = "c_vision_tower"


def build(reference: Reference, layer: int) -> MedSightModel:
    settings = config(reference.about, vision_feature_layer=layer)
    model = MedSightModel(settings).eval()
    tensors = state(reference.below("state."), settings)
    model.vision.load_state_dict(part(tensors, "model.vision."))
    model.perceiver.load_state_dict(part(tensors, "model.perceiver."))
    return model


def plain_visual_tokens(model: MedSightModel, image: Tensor) -> Tensor:
    """[I; Q_r] as it is handed to P_v→t."""
    taken: list[Tensor] = []
    hook = model.vision_to_text.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    model.visual_tokens(model.encode_image(image))
    hook.remove()
    return taken[0]


@pytest.mark.parametrize("layer", [-1, -2])
def test_vision_tower(layer: int, shared_parity: Path, compare: Compare) -> None:
    """`vision_feature_layer` counts raw outputs of blocks from the end; -1 is the last, without its final norm."""
    reference = Reference.read(shared_parity, FIXTURE)
    model = build(reference, layer)
    prefix = f"out.sel{layer}."
    with torch.no_grad():
        features = model.encode_image(reference["in.image"])
        tokens = plain_visual_tokens(model, reference["in.image"])
    blocks = reference.about["clip"]["layers"]
    raw = reference[f"mid.clip_block{blocks + layer}"]
    compare("summary", features.vision.summary, raw[:, 0])
    compare("patch features", features.vision.grid.flatten(1, 2), raw[:, 1:])
    compare("patch features, recorded", features.vision.grid.flatten(1, 2), reference[f"{prefix}patch_features"])
    compare("region tokens", model.region_tokens(features), reference[f"{prefix}region_queries"])
    compare("mask logits", features.regions.mask_logits, reference[f"{prefix}seg_logits"])
    compare("class logits", features.regions.class_logits, reference[f"{prefix}class_logits"])
    compare("visual tokens", tokens, reference[f"{prefix}visual_tokens"])


def test_all_blocks(shared_parity: Path, compare: Compare) -> None:
    """The tower itself, block by block, and the norm behind it that the features do without."""
    reference = Reference.read(shared_parity, FIXTURE)
    backbone = build(reference, -1).vision.backbone
    with torch.no_grad():
        out = backbone(reference["in.image"], output_hidden_states=True)
    for block, found in enumerate(out.hidden_states[1:]):
        compare(f"block {block}", found, reference[f"mid.clip_block{block}"])
    projected = out.pooler_output @ reference["state.image_encoder.proj"]
    compare("projected class token", projected, reference["mid.image_features_proj"])
