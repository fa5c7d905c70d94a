"""Prompts change what they should, and nothing when there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsight_core.model import MedSightForConditionalGeneration
from medsight_core.model.perceiver import sine_position
from medsight_core.model.prompt_encoder import PromptEncoder
from medsight_core.prompt_raster import CHANNELS, Mark
from tests.model.small import SIDE, build, click, convolutional, pictures, raster

BOX = Mark(kind="box", xy=np.array([[8.0, 12.0], [30.0, 44.0]]))
SCRIBBLE = Mark(kind="scribble", xy=np.array([[8.0, 12.0], [30.0, 44.0], [50.0, 20.0]]))
DRAWN_MASK = Mark(kind="mask", mask=np.pad(np.ones((16, 16), bool), 24).astype(np.float32))


@torch.no_grad()
def test_empty_raster_changes_nothing(model: MedSightForConditionalGeneration) -> None:
    """Bit for bit: regions, pixels, masks and visual tokens."""
    plain = model.model.encode_image(pictures())
    empty = model.model.encode_image(pictures(), raster([], []))
    assert not empty.prompt_present.any()
    assert torch.equal(model.model.region_tokens(plain), model.model.region_tokens(empty))
    assert torch.equal(model.model.visual_tokens(plain), model.model.visual_tokens(empty))
    queries = model.config.num_region_queries
    assert torch.equal(plain.regions.pixels, empty.regions.pixels)
    assert torch.equal(plain.regions.mask_logits, empty.regions.mask_logits[:, :queries])
    assert torch.equal(plain.regions.class_logits, empty.regions.class_logits[:, :queries])


@torch.no_grad()
def test_a_prompt_on_one_image_leaves_the_other_alone(model: MedSightForConditionalGeneration) -> None:
    plain = model.model.encode_image(pictures())
    mixed = model.model.encode_image(pictures(), raster([click(20, 40)], []))
    assert mixed.prompt_present.tolist() == [True, False]
    torch.testing.assert_close(mixed.regions.pixels[1], plain.regions.pixels[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed.regions.pixels[0], plain.regions.pixels[0], atol=1e-2)
    tokens = model.model.region_tokens(mixed)
    torch.testing.assert_close(tokens[1], model.model.region_tokens(plain)[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "other",
    [click(50, 40), click(20, 40, positive=False), BOX, SCRIBBLE, DRAWN_MASK],
    ids=["another place", "not here", "box", "scribble", "mask"],
)
def test_prompts_are_told_apart(model: MedSightForConditionalGeneration, other: Mark) -> None:
    """Place and kind both reach the prompt token and its mask."""
    one = model.model.encode_image(pictures(1), raster([click(20, 40)]))
    two = model.model.encode_image(pictures(1), raster([other]))
    assert (one.prompt - two.prompt).abs().max() > 1e-2
    assert (one.regions.mask_logits[:, -1] - two.regions.mask_logits[:, -1]).abs().max() > 1e-2


@torch.no_grad()
def test_a_further_click_needs_no_second_look(model: MedSightForConditionalGeneration) -> None:
    """`perceive` on kept features is `encode_image`."""
    marks = raster([click(20, 40), BOX])
    kept = model.model.perceive(model.model.encode_image(pictures(1)).vision, marks)
    fresh = model.model.encode_image(pictures(1), marks)
    assert torch.equal(kept.regions.mask_logits, fresh.regions.mask_logits)
    assert torch.equal(kept.prompt, fresh.prompt)


@torch.no_grad()
def test_raster_may_have_mask_resolution(model: MedSightForConditionalGeneration) -> None:
    """Training draws at half the input's side, inference at the whole: a box there is a box here."""
    fine = raster([Mark(kind="box", xy=np.array([[8.0, 16.0], [31.0, 47.0]]))])
    coarse = torch.nn.functional.avg_pool2d(fine, 2)
    a = model.model.encode_image(pictures(1), fine)
    b = model.model.encode_image(pictures(1), coarse)
    torch.testing.assert_close(a.regions.mask_logits, b.regions.mask_logits, atol=1e-4, rtol=1e-4)


def test_hints_have_the_scales_of_the_stages() -> None:
    encoder = PromptEncoder(dim=16, num_stages=3)
    out = encoder(torch.rand(2, len(CHANNELS), SIDE, SIDE), torch.randn(2, 4, 4, 16))
    assert out.token.shape == (2, 1, 16)
    assert [tuple(hint.shape) for hint in out.hints] == [(2, 8, 8, 16), (2, 16, 16, 16), (2, 32, 32, 16)]


@torch.no_grad()
def test_hint_stands_at_the_click() -> None:
    """A click lights the pixels around itself in every scale and no others: columns and rows are not swapped."""
    encoder = PromptEncoder(dim=16, num_stages=3)
    for hint in encoder.hints:
        hint.weight.fill_(1.0)
    out = encoder(raster([click(50, 10)]), torch.randn(1, 4, 4, 16))
    for hint in out.hints:
        side = hint.shape[1]
        strength = hint[0].sum(-1)
        row, column = divmod(int(strength.argmax()), side)
        assert abs((row + 0.5) / side - 10.5 / SIDE) <= 1.5 / side
        assert abs((column + 0.5) / side - 50.5 / SIDE) <= 1.5 / side
        assert strength[side // 2 :, : side // 2].abs().max() < 1e-3


@torch.no_grad()
def test_here_and_not_here_are_described_apart() -> None:
    """Features and place under what was pointed at, and features under what was excluded."""
    encoder = PromptEncoder(dim=16, num_stages=1)
    grid = torch.randn(1, 4, 4, 16)
    described: list[torch.Tensor] = []
    encoder.token.register_forward_pre_hook(lambda _, inputs: described.append(inputs[0]))
    encoder(raster([click(24, 8), click(56, 40, positive=False)]), grid)
    here, place, excluded = described[0][0].split(16)
    torch.testing.assert_close(here, grid[0, 0, 1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(place, sine_position(4, 4, 16)[0, 0, 1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(excluded, grid[0, 2, 3], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_token_reads_the_features_under_the_drawing() -> None:
    """Changing features elsewhere leaves the prompt token alone."""
    torch.manual_seed(0)
    encoder = PromptEncoder(dim=16, num_stages=1)
    grid = torch.randn(1, 4, 4, 16)
    marks = raster([Mark(kind="box", xy=np.array([[0.0, 0.0], [15.0, 15.0]]))])
    token = encoder(marks, grid).token
    elsewhere, under = grid.clone(), grid.clone()
    elsewhere[:, 2:] += 1
    under[:, 0, 0] += torch.randn(16)
    assert torch.equal(encoder(marks, elsewhere).token, token)
    assert not torch.allclose(encoder(marks, under).token, token, atol=1e-3)


def test_model_without_prompts_ignores_them() -> None:
    model = build(convolutional(use_prompts=False))
    with torch.no_grad():
        plain = model.model.encode_image(pictures(1))
        drawn = model.model.encode_image(pictures(1), raster([click(20, 40)]))
    assert drawn.prompt is None
    assert torch.equal(plain.regions.mask_logits, drawn.regions.mask_logits)
