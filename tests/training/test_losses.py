"""Losses against their definitions, written out pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medsight_core.model.codebook import ModalityGroupedCodebook, Quantized
from training.losses import at_size, bce_loss, class_loss, codebook_losses, dice_loss, segmentation_loss


def case(seed: int, masks: int = 3, soft: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(masks, 4, 5, generator=generator)
    return 4 * torch.randn(masks, 4, 5, generator=generator), targets if soft else targets.round()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(seed=st.integers(0, 10_000), soft=st.booleans(), smooth=st.sampled_from([1.0, 1e-6, 5.0]))
@settings(max_examples=25, deadline=None)
def test_dice_by_hand(seed: int, soft: bool, smooth: float) -> None:
    logits, targets = case(seed, soft=soft)
    expected = []
    for mask, truth in zip(logits.tolist(), targets.tolist(), strict=True):
        pairs = [(sigmoid(x), t) for xs, ts in zip(mask, truth, strict=True) for x, t in zip(xs, ts, strict=True)]
        both, total = sum(p * t for p, t in pairs), sum(p + t for p, t in pairs)
        expected.append(1 - (2 * both + smooth) / (total + smooth))
    torch.testing.assert_close(dice_loss(logits, targets, smooth=smooth), torch.tensor(expected), atol=1e-5, rtol=1e-4)


@given(seed=st.integers(0, 10_000), soft=st.booleans())
@settings(max_examples=25, deadline=None)
def test_bce_by_hand(seed: int, soft: bool) -> None:
    logits, targets = case(seed, soft=soft)
    expected = []
    for mask, truth in zip(logits.flatten(1).tolist(), targets.flatten(1).tolist(), strict=True):
        terms = [
            -t * math.log(sigmoid(x)) - (1 - t) * math.log(1 - sigmoid(x)) for x, t in zip(mask, truth, strict=True)
        ]
        expected.append(sum(terms) / len(terms))
    torch.testing.assert_close(bce_loss(logits, targets), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_perfect_and_opposite_masks() -> None:
    truth = torch.zeros(1, 6, 6)
    truth[:, 1:4, 2:5] = 1
    sure = 40 * (2 * truth - 1)
    assert dice_loss(sure, truth) < 1e-6 and bce_loss(sure, truth) < 1e-6
    assert dice_loss(-sure, truth) > 0.95 and bce_loss(-sure, truth) > 30


def test_empty_targets_ask_for_empty_masks() -> None:
    empty = torch.zeros(1, 6, 6)
    assert dice_loss(torch.full((1, 6, 6), -40.0), empty) < 1e-6
    full = torch.zeros(1, 6, 6, requires_grad=True)
    dice_loss(full, empty).sum().backward()
    assert full.grad is not None and (full.grad > 0).all(), "descending must lower every pixel"


def test_losses_are_full_precision_for_half_logits() -> None:
    logits, targets = case(0)
    half = logits.to(torch.bfloat16)
    for loss in (dice_loss, bce_loss):
        assert loss(half, targets).dtype == torch.float32
        torch.testing.assert_close(loss(half, targets), loss(half.float(), targets))


def test_segmentation_loss_weighs_and_averages() -> None:
    logits, targets = case(1)
    expected = (2 * bce_loss(logits, targets) + 0.5 * dice_loss(logits, targets)).mean()
    torch.testing.assert_close(segmentation_loss(logits, targets, bce=2.0, dice=0.5), expected)


def test_no_masks_no_loss_but_a_gradient_path() -> None:
    """Zero, and every parameter behind it still gets a gradient (distributed training waits for all of them)."""
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.zeros(0, 4, 4))
    assert loss == 0 and loss.requires_grad
    loss.backward()
    assert logits.grad is not None


@given(seed=st.integers(0, 10_000), weight=st.floats(0.05, 1.0))
@settings(max_examples=25, deadline=None)
def test_class_loss_by_hand(seed: int, weight: float) -> None:
    """Weighted mean over all queries; "no object" is the last class and has its own weight."""
    generator = torch.Generator().manual_seed(seed)
    logits, classes = torch.randn(9, 5, generator=generator), torch.randint(0, 5, (9,), generator=generator)
    total = weights = 0.0
    for row, wanted in zip(logits.tolist(), classes.tolist(), strict=True):
        w = weight if wanted == 4 else 1.0
        total += w * (math.log(sum(math.exp(x) for x in row)) - row[wanted])
        weights += w
    assert float(class_loss(logits, classes, no_object=weight)) == pytest.approx(total / weights, rel=1e-4)


def test_class_loss_without_no_object_is_over_the_matched_alone() -> None:
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([4, 0, 4, 2, 4, 4, 3, 4, 4])
    matched = classes != 4
    expected = F.cross_entropy(logits[matched], classes[matched])
    torch.testing.assert_close(class_loss(logits, classes, no_object=0.0), expected)


def test_at_size_keeps_the_area() -> None:
    """Coarser masks are averages: soft at the border, equal in total."""
    targets = (torch.rand(2, 8, 12, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    coarse = at_size(targets, torch.Size((4, 3)))
    assert coarse.shape == (2, 4, 3)
    torch.testing.assert_close(coarse[1, 2, 1], targets[1, 4:6, 4:8].mean())
    torch.testing.assert_close(coarse.mean((1, 2)), targets.mean((1, 2)))
    assert at_size(targets, torch.Size((8, 12))) is targets
    assert at_size(torch.zeros(0, 8, 12), torch.Size((4, 3))).shape == (0, 4, 3)


@pytest.fixture
def quantised() -> tuple[Quantized, Tensor, Tensor, ModalityGroupedCodebook]:
    """Regions of two images, what the codebook made of them, and which are matched."""
    torch.manual_seed(0)
    book = ModalityGroupedCodebook(dim=8, code_dim=4, num_groups=2, codes_per_group=5, num_classes=3, summary_dim=4)
    torch.nn.init.normal_(book.codes)
    regions = torch.randn(2, 6, 8)
    matched = torch.rand(2, 6) > 0.5
    return book(regions, torch.tensor([1, 0])), regions, matched, book


def test_codebook_losses_by_hand(quantised: tuple[Quantized, Tensor, Tensor, ModalityGroupedCodebook]) -> None:
    """Squared distance on the unit sphere, and mean squared error of what comes back; matched regions only."""
    found, regions, matched, book = quantised
    distances, errors = [], []
    for image, n in matched.nonzero().tolist():
        projected = found.projected[image, n].detach()
        code = book.codes[1 - image, found.index[image, n]].detach()
        distances.append(float((projected / projected.norm() - code / code.norm()).square().sum()))
        errors.append(float((book.from_code(code / code.norm()) - regions[image, n]).square().mean().detach()))
    losses = codebook_losses(found, regions, matched)
    assert losses.keys() == {"vq", "commit", "recon"}
    assert losses["vq"].item() == pytest.approx(sum(distances) / len(distances), rel=1e-4)
    assert losses["commit"].item() == pytest.approx(sum(distances) / len(distances), rel=1e-4)
    assert losses["recon"].item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "moves_codes", "moves_regions"), [("vq", True, False), ("commit", False, True), ("recon", False, True)]
)
def test_who_learns_from_which_codebook_loss(
    quantised: tuple[Quantized, Tensor, Tensor, ModalityGroupedCodebook],
    name: str,
    moves_codes: bool,
    moves_regions: bool,
) -> None:
    """VQ moves codes to regions, commitment and reconstruction (straight-through) move regions; each counted once."""
    found, regions, matched, book = quantised
    codebook_losses(found, regions, matched)[name].backward()

    def moved(*parameters: Tensor) -> bool:
        return any(p.grad is not None and bool(p.grad.abs().max() > 1e-7) for p in parameters)

    assert moved(book.codes) == moves_codes
    assert moved(*book.to_code.parameters()) == moves_regions
    assert moved(*book.from_code.parameters()) == (name == "recon")


def test_vq_loss_descends_to_the_regions(quantised: tuple[Quantized, Tensor, Tensor, ModalityGroupedCodebook]) -> None:
    found, regions, matched, book = quantised
    loss = codebook_losses(found, regions, matched)["vq"]
    loss.backward()
    with torch.no_grad():
        book.codes -= 0.05 * book.codes.grad
    again = codebook_losses(book(regions, torch.tensor([1, 0])), regions, matched)["vq"]
    assert again < loss


def test_codebook_losses_without_a_match(quantised: tuple[Quantized, Tensor, Tensor, ModalityGroupedCodebook]) -> None:
    found, regions, matched, _ = quantised
    losses = codebook_losses(found, regions, torch.zeros_like(matched))
    for value in losses.values():
        assert value == 0 and value.requires_grad
