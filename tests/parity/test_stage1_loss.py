"""The loss of stage 1 and its gradients against the released ones.

The release matches and scores at the targets' resolution and scores the matched queries only. Ours works at mask
resolution and also teaches "no object" to the rest; both are choices of the caller, so that the test makes the
release's: logits brought to the targets' size, weight 0 for "no object".
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsight_core.model.perceiver import PerceiverOutput, RegionPerceiver
from tests.parity.conftest import Compare
from tests.parity.reference import Reference, perceiver
from training.losses import bce_loss, class_loss, dice_loss, segmentation_loss
from training.matching import match

FIXTURE = "b2_stage1_loss"


def perceive(reference: Reference) -> tuple[RegionPerceiver, PerceiverOutput]:
    """The perceiver and its pass over both images, with gradients."""
    module = perceiver(reference, beginning="state.region_perceiver.")
    return module, module(reference["in.patch_features"].unflatten(1, (5, 5)))


def losses(out: PerceiverOutput, reference: Reference) -> dict[str, Tensor]:
    """The parts of the loss and their sum."""
    size = reference["in.mask_labels0"].shape[-2:]
    logits = F.interpolate(out.mask_logits, size=size, mode="bilinear", align_corners=False)
    wanted = torch.full(out.class_logits.shape[:2], reference.about["num_classes"])
    picked, truth = [], []
    for i in range(2):
        masks, classes = reference[f"in.mask_labels{i}"], reference[f"in.class_labels{i}"]
        queries, found = match(logits[i], out.class_logits[i], masks, classes)
        wanted[i, queries] = classes[found]
        picked.append(logits[i, queries])
        truth.append(masks[found])
    pairs = torch.cat(picked), torch.cat(truth)
    classes = class_loss(out.class_logits.flatten(0, 1), wanted.flatten(), no_object=0.0)
    return {
        "dice": dice_loss(*pairs).mean(),
        "bce": bce_loss(*pairs).mean(),
        "cls": classes,
        "total": segmentation_loss(*pairs) + classes,
    }


def test_losses(shared_parity: Path, compare: Compare) -> None:
    """Dice, BCE and class loss over two images with two and three targets."""
    reference = Reference.read(shared_parity, FIXTURE)
    _, out = perceive(reference)
    compare("mask logits", out.mask_logits, reference["out.seg_logits"])
    compare("class logits", out.class_logits, reference["out.class_logits"])
    for name, value in losses(out, reference).items():
        compare(name, value.reshape(1), reference[f"out.loss.{name}"])


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=["plain", "fused"])
def test_gradients(kernel: SDPBackend, shared_parity: Path, compare: Compare) -> None:
    """Where the loss arrives, also through a fused kernel: some queries have no pixel left in two of the blocks."""
    reference = Reference.read(shared_parity, FIXTURE)
    with sdpa_kernel([kernel, SDPBackend.MATH], set_priority=True):
        perceiver, out = perceive(reference)
        losses(out, reference)["total"].backward()
    parameters = dict(perceiver.named_parameters())
    gradients = reference.below("grad.")
    assert gradients.keys() <= parameters.keys()
    for name, gradient in gradients.items():
        found = parameters[name].grad
        assert found is not None
        compare(f"gradient of {name}", found, gradient)
