"""The released model in bf16 and fp16 against its recorded runs in fp32.

What no mask decides over stays within a few percent. Masks do not: a pixel whose logit is near zero falls on the other
side of a query's mask when it is rounded, and the next block then reads other pixels. The recorded weights are random,
so that far more pixels lie near zero than in a trained model; the bounds say what was measured on these.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsight_core.model import MedSightForConditionalGeneration
from tests.parity.conftest import CompareHalf
from tests.parity.reference import IMAGE_TOKEN, Reference, expand, language_config, perceiver, state

FIXTURE = "d_llm_end_to_end"

BOUNDS = {torch.bfloat16: {"plain": 0.03, "queries": 0.1, "masks": 0.3}} | {
    torch.float16: {"plain": 0.005, "queries": 0.015, "masks": 0.03}
}
"""Largest root mean square of the differences, relative to that of the values."""

AGREEMENT = {torch.bfloat16: 0.93, torch.float16: 0.99}
"""Smallest share of pixels that are on the same side of a mask's border."""

HALVES = pytest.mark.parametrize("dtype", list(BOUNDS), ids=lambda dtype: str(dtype).removeprefix("torch."))


@HALVES
@pytest.mark.parametrize(
    "name",
    [
        "a1_perceiver",
        "a2_perceiver_given_queries",
        "a3_perceiver_all_masked",
        "a4_perceiver_nonsquare",
        "a5_perceiver_selfattn_stacks",
    ],
)
@torch.no_grad()
def test_perceiver(name: str, dtype: torch.dtype, shared_parity: Path, compare_half: CompareHalf) -> None:
    """The perceiver alone; the second case has given queries."""
    reference, bounds = Reference.read(shared_parity, name), BOUNDS[dtype]
    queries = reference.tensors.get("in.region_queries")
    out = perceiver(reference).to(dtype)(
        reference["in.image_features"].to(dtype), None if queries is None else queries.to(dtype)
    )
    compare_half("queries", out.queries, reference["out.region_queries"], bound=bounds["queries"])
    compare_half("mask logits", out.mask_logits, reference["out.seg_logits"], bound=bounds["masks"])
    same = (out.mask_logits > 0) == (reference["out.seg_logits"] > 0)
    assert same.float().mean() >= AGREEMENT[dtype]


@HALVES
@torch.no_grad()
def test_end_to_end(dtype: torch.dtype, shared_parity: Path, compare_half: CompareHalf) -> None:
    """From the pixels to words and masks of code states."""
    reference, bounds = Reference.read(shared_parity, FIXTURE), BOUNDS[dtype]
    settings = language_config(reference)
    model = MedSightForConditionalGeneration(settings).eval()
    model.load_state_dict(state(reference.below("state."), settings))
    model.to(dtype)
    ids = expand(reference["in.input_ids"], reference.about["visual_tokens"])
    assert IMAGE_TOKEN in ids
    features = model.model.encode_image(reference["in.image"].to(dtype))
    out = model(input_ids=ids, image_features=features)
    rows, positions = model.code_positions(ids)
    states = model.code_states(out.last_hidden_state, rows, positions)
    masks = model.model.decode_codes(states, features, rows)[None]
    figures = {
        "visual tokens": (model.model.visual_tokens(features), "mid.visual_tokens", "plain"),
        "logits": (out.logits, "out.train.logits", "plain"),
        "code states": (states, "out.train.code_states", "plain"),
        "mask logits": (masks, "out.train.mask_logits", "masks"),
    }
    for name, (ours, theirs, kind) in figures.items():
        compare_half(name, ours, reference[theirs], bound=bounds[kind])
    assert ((masks > 0) == (reference["out.train.mask_logits"] > 0)).float().mean() >= AGREEMENT[dtype]
