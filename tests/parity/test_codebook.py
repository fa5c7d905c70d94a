"""The modality-grouped codebook against the released quantiser.

What is the same: W_q, the nearest code within the modality's group, W_m, the head on decoded embeddings, the predicted
modality, the matching, and L_R on both heads. What is different on purpose:

- the release compares codes of length one with projections of any length in its VQ and commitment losses; ours compares
  both on the unit sphere, where the code was chosen, and over matched regions only;
- the release counts the reconstruction loss twice and folds the modality loss into it; ours counts each once;
- the release returns twice the code while its soft assignment warms up, and no gradient reaches W_q through the code
  afterwards; ours has neither a warm-up nor that gap (straight-through), so training values and gradients of the
  release's warm-up are no reference for ours.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medsight_core.model import MedSightModel
from medsight_core.model.codebook import Quantized
from medsight_core.model.modeling import ImageFeatures
from tests.parity.conftest import Compare
from tests.parity.reference import Reference, config, part, state
from training.losses import bce_loss, class_loss, codebook_losses, dice_loss
from training.matching import match

FIXTURE = "b_quantizer"

GIVEN = torch.tensor([2, 0])
"""Modality of the two recorded images, where it was given."""


@pytest.fixture(scope="module")
def reference(shared_parity: Path) -> Reference:
    return Reference.read(shared_parity, FIXTURE)


@pytest.fixture(scope="module")
def model(reference: Reference) -> MedSightModel:
    about = reference.about
    settings = config(
        about,
        use_codebook=True,
        num_code_groups=about["num_modalities"],
        codes_per_group=about["codebook_size"],
        code_dim=about["code_dim"],
    )
    model = MedSightModel(settings).eval()
    tensors = state(reference.below("state."), settings)
    for name in ("vision", "perceiver", "codebook"):
        model.get_submodule(name).load_state_dict(part(tensors, f"model.{name}."))
    return model


@torch.no_grad()
def quantise(
    model: MedSightModel, reference: Reference, group: Tensor | None
) -> tuple[ImageFeatures, Quantized, Tensor]:
    """The image's features, its quantised regions, and the modality logits; the modality is predicted where None."""
    features = model.encode_image(reference["in.image"])
    modality = model.codebook.modality_predictor(features.vision.summary)
    chosen = modality.argmax(-1) if group is None else group
    return features, model.codebook(model.region_tokens(features), chosen), modality


def targets(reference: Reference) -> list[tuple[Tensor, Tensor]]:
    """Masks and classes of both images."""
    return [(reference[f"in.mask_labels{i}"], reference[f"in.class_labels{i}"]) for i in range(2)]


def matches(features: ImageFeatures, reference: Reference) -> list[tuple[Tensor, Tensor]]:
    """Our matching of the un-quantised masks."""
    regions = features.regions
    return [
        match(regions.mask_logits[i], regions.class_logits[i], masks, classes)
        for i, (masks, classes) in enumerate(targets(reference))
    ]


CASES = pytest.mark.parametrize(
    ("tag", "group"), [("eval_given_modality", GIVEN), ("eval_predicted_modality", None)], ids=["given", "predicted"]
)


@CASES
def test_codes(model: MedSightModel, reference: Reference, tag: str, group: Tensor | None, compare: Compare) -> None:
    """From the pixels to codes and back to masks, with the modality given and predicted."""
    features, quantized, modality = quantise(model, reference, group)
    compare("modality logits", modality, reference[f"out.{tag}.modality_logits"])
    assert torch.equal(modality.argmax(-1), reference[f"out.{tag}.modality_pred"])
    compare("projected", quantized.projected, reference[f"out.{tag}.z"])
    assert torch.equal(quantized.index, reference[f"out.{tag}.indices"])
    compare("code", quantized.code, reference[f"out.{tag}.z_q"])
    compare("decoded", quantized.decoded, reference[f"out.{tag}.decoded"])
    masks, classes = model.codebook.head(quantized.decoded, features.regions.pixels)
    compare("mask logits", features.regions.mask_logits, reference[f"out.{tag}.seg_logits"])
    compare("class logits", features.regions.class_logits, reference[f"out.{tag}.class_logits"])
    compare("mask logits of codes", masks, reference[f"out.{tag}.seg_logits_quant"])
    compare("class logits of codes", classes, reference[f"out.{tag}.class_logits_quant"])


@CASES
def test_matching(model: MedSightModel, reference: Reference, tag: str, group: Tensor | None) -> None:
    """One to one, at mask resolution, which is the targets' here."""
    features, _, _ = quantise(model, reference, group)
    for i, (queries, found) in enumerate(matches(features, reference)):
        assert torch.equal(queries, reference[f"out.{tag}.match_pred{i}"])
        assert torch.equal(found, reference[f"out.{tag}.match_gt{i}"])


@CASES
def test_region_losses(
    model: MedSightModel, reference: Reference, tag: str, group: Tensor | None, compare: Compare
) -> None:
    """L_R of regions and of their codes; the release scores matched queries only, ours does at no-object weight 0."""
    features, quantized, _ = quantise(model, reference, group)
    with torch.no_grad():
        coded_masks, coded_classes = model.codebook.head(quantized.decoded, features.regions.pixels)
    heads = {
        "normal": (features.regions.mask_logits, features.regions.class_logits),
        "quant": (coded_masks, coded_classes),
    }
    found = matches(features, reference)
    nothing = reference.about["num_classes"]
    for name, (masks, classes) in heads.items():
        picked = torch.cat([masks[i, queries] for i, (queries, _) in enumerate(found)])
        truth = torch.cat([targets(reference)[i][0][order] for i, (_, order) in enumerate(found)])
        wanted = torch.full(classes.shape[:2], nothing)
        for i, (queries, order) in enumerate(found):
            wanted[i, queries] = targets(reference)[i][1][order]
        figures = {
            "dice": dice_loss(picked, truth).mean(),
            "cls": class_loss(classes.flatten(0, 1), wanted.flatten(), no_object=0.0),
            "bce": bce_loss(picked, truth).mean(),
        }
        where = {"dice": f"out.{tag}.loss.dice_{name}", "cls": f"out.{tag}.loss.cls_{name}"}
        where["bce"] = f"out.{tag}.loss.bce_quant" if name == "quant" else "out.stage1.loss.bce"
        for loss, value in figures.items():
            compare(f"{loss} {name}", value.reshape(1), reference[where[loss]])


@CASES
def test_codebook_losses(
    model: MedSightModel, reference: Reference, tag: str, group: Tensor | None, compare: Compare
) -> None:
    """The release's formulas on our tensors give its figures; our losses are the same maths on the unit sphere."""
    features, quantized, _ = quantise(model, reference, group)
    regions = model.region_tokens(features)
    theirs = (quantized.code - quantized.projected).square().mean()
    compare("vq, their form", theirs.reshape(1), reference[f"out.{tag}.loss.vq"])
    beta = reference.about["beta"]
    compare("commit, their form", (beta * theirs).reshape(1), reference[f"out.{tag}.loss.commit"])

    everything = torch.ones(regions.shape[:2], dtype=torch.bool)
    ours = codebook_losses(quantized, regions, everything)
    compare("recon over all regions", ours["recon"].reshape(1), reference[f"out.{tag}.loss.recon"])
    cosine = F.cosine_similarity(quantized.projected, quantized.code, dim=-1)
    expected = (2 - 2 * cosine).mean()
    assert ours["vq"] == pytest.approx(float(expected), abs=1e-5)
    assert ours["commit"] == pytest.approx(float(expected), abs=1e-5)

    total = (
        theirs + reference.about["coef"]["commit"] * beta * theirs + reference.about["coef"]["recon"] * ours["recon"]
    )
    compare("total, their form", total.reshape(1), reference[f"out.{tag}.loss.total_quantization"])
    matched = torch.zeros_like(everything)
    for i, (queries, _) in enumerate(matches(features, reference)):
        matched[i, queries] = True
    fewer = codebook_losses(quantized, regions, matched)
    assert fewer["vq"] == pytest.approx(float((2 - 2 * cosine)[matched].mean()), abs=1e-5)


def test_training_mode_changes_nothing(model: MedSightModel, reference: Reference, compare: Compare) -> None:
    """The release returns twice the code in training; ours returns the code itself, which is half of that."""
    model.train()
    try:
        _, quantized, _ = quantise(model, reference, GIVEN)
    finally:
        model.eval()
    assert torch.equal(quantized.index, reference["out.train_given_modality.indices"])
    compare("code", quantized.code, reference["out.train_given_modality.z_q"] / 2)
