"""The region perceiver against the released one: every stage, every output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsight_core.model.perceiver import inside_masks, sine_position
from tests.parity.conftest import Compare
from tests.parity.reference import Reference, perceiver

CASES = (
    "a1_perceiver",
    "a2_perceiver_given_queries",
    "a3_perceiver_all_masked",
    "a4_perceiver_nonsquare",
    "a5_perceiver_selfattn_stacks",
)


@pytest.mark.parametrize("name", CASES)
def test_perceiver(name: str, shared_parity: Path, compare: Compare) -> None:
    """Learned and given queries, partly and wholly masked ones, other sizes, the switches the release leaves off."""
    reference = Reference.read(shared_parity, name)
    with torch.no_grad():
        out = perceiver(reference)(reference["in.image_features"], reference.tensors.get("in.region_queries"))
    compare("queries", out.queries, reference["out.region_queries"])
    compare("mask logits", out.mask_logits, reference["out.seg_logits"])
    compare("class logits", out.class_logits, reference["out.class_logits"])
    compare("pixels", out.pixels, reference["out.final_image_features"])
    blocks = reference.about["num_stages"] * reference.about["num_stacks"]
    steps = ["init", *(f"block{i}" for i in range(blocks - 1))]
    assert len(out.stage_mask_logits) == len(out.stage_class_logits) == len(steps)
    for step, masks, classes in zip(steps, out.stage_mask_logits, out.stage_class_logits, strict=True):
        compare(f"{step} mask logits", masks, reference[f"mid.{step}_seg_logits"])
        compare(f"{step} class logits", classes, reference[f"mid.{step}_class_logits"])


@pytest.mark.parametrize("name", CASES)
def test_blocked_pixels_are_the_same(name: str, shared_parity: Path) -> None:
    """The mask that the first block attends through, bit for bit."""
    reference = Reference.read(shared_parity, name)
    rough = reference["mid.init_seg_logits"]
    size = (2 * rough.shape[-2], 2 * rough.shape[-1])
    blocked = ~inside_masks(rough, size)[:, 0]
    assert torch.equal(blocked, reference["mid.attn_mask_for_block0"].bool())


@pytest.mark.parametrize("name", CASES)
def test_position_encoding(name: str, shared_parity: Path, compare: Compare) -> None:
    """Rows before columns, normalised to the grid, on square and other grids."""
    reference = Reference.read(shared_parity, name)
    for scale in (0, 1):
        theirs = reference[f"mid.pos_enc_scale{scale}"]
        compare(f"scale {scale}", sine_position(*theirs.shape[1:]), theirs)
