"""Every tensor of a released checkpoint, at its full size, has a place of the same shape in our model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration
from tests.parity.reference import clip_state, codebook_state, perceiver_state


def expand(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Named tensors without memory, `{0..23}` counted out."""
    found = {}
    for row in rows:
        numbers = re.search(r"\{(\d+)\.\.(\d+)\}", row["key"])
        if not isinstance(row["shape"], list):
            continue
        first, last = (int(n) for n in numbers.groups()) if numbers else (0, 0)
        for n in range(first, last + 1):
            name = row["key"].replace(numbers[0], str(n)) if numbers else row["key"]
            found[name] = torch.empty(row["shape"], device="meta")
    return found


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def official(shared_parity: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared_parity / "official_keys_fullsize.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def model() -> MedSightForConditionalGeneration:
    with torch.device("meta"):
        return MedSightForConditionalGeneration(MedSightConfig())


def assert_same_places(module: nn.Module, official: dict[str, Tensor]) -> None:
    ours = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    assert {name: tuple(t.shape) for name, t in official.items()} == ours


def test_perceiver_and_image_encoder(model: MedSightForConditionalGeneration, official: dict[str, Any]) -> None:
    tensors = expand(official["regtok_no_quantizer_as_used_by_LLM"])
    assert_same_places(model.model.perceiver, perceiver_state(below(tensors, "region_perceiver.")))
    assert_same_places(model.model.vision.backbone, clip_state(below(tensors, "image_encoder.")))
    assert sum(t.numel() for t in tensors.values()) == official["totals"]["regtok_no_quantizer"]


def test_codebook(model: MedSightForConditionalGeneration, official: dict[str, Any]) -> None:
    assert_same_places(model.model.codebook, codebook_state(expand(official["regtok_with_quantizer_stage2"])))


def test_projectors_and_words(model: MedSightForConditionalGeneration, official: dict[str, Any]) -> None:
    tensors = expand(official["llm"])
    assert_same_places(model.model.vision_to_text, below(tensors, "model.mm_projector."))
    assert_same_places(model.model.text_to_vision, below(tensors, "model.token_projection."))
    assert model.get_input_embeddings().weight.shape == tensors["model.embed_tokens.weight"].shape
    assert model.lm_head.weight.shape == tensors["lm_head.weight"].shape
    assert model.model.language_model.norm.weight.shape == tensors["model.norm.weight"].shape
