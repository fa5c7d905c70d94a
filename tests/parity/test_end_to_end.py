"""The whole model against the released one: image and text in, words, code states and masks out.

Two switches of ours are the release's two behaviours: `code_state="at"` is what it trains with, `code_state="before"`
what its own inference does. Texts about two images at once are left out: ours speaks about one image per text.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medsight_core.model import MedSightForConditionalGeneration
from tests.parity.conftest import Compare
from tests.parity.reference import Reference, clip_state, config, perceiver_state
from training.losses import bce_loss, dice_loss

IMAGE_TOKEN = 63
"""A word that the recorded texts do not use stands for the visual tokens; the release writes -200 once."""


@pytest.fixture(scope="module")
def reference(shared_parity: Path) -> Reference:
    return Reference.read(shared_parity, "d_llm_end_to_end")


@pytest.fixture
def model(reference: Reference) -> MedSightForConditionalGeneration:
    about = reference.about
    codes = list(range(about["code_ids"][0], about["code_ids"][1] + 1))
    assert codes == reference["in.code_token_ids"].tolist()
    model = MedSightForConditionalGeneration(
        config(
            about["vision"],
            vision_feature_layer=about["vision"]["select_layer"],
            code_token_ids=codes,
            image_token_id=IMAGE_TOKEN,
        )
    ).eval()
    state = reference.below("state.")
    tower = "model.vision_tower.vision_tower."
    parts = {
        model.model.vision.backbone: clip_state(reference.below(f"state.{tower}image_encoder.")),
        model.model.perceiver: perceiver_state(reference.below(f"state.{tower}region_perceiver.")),
        model.model.vision_to_text: reference.below("state.model.mm_projector."),
        model.model.text_to_vision: reference.below("state.model.token_projection."),
        model.model.language_model: {
            name.removeprefix("model."): tensor
            for name, tensor in state.items()
            if name.startswith(("model.embed_tokens.", "model.layers.", "model.norm."))
        },
        model.lm_head: reference.below("state.lm_head."),
    }
    for part, values in parts.items():
        part.load_state_dict(values)
    return model


def expand(ids: Tensor, tokens: int, *, fill: int = IMAGE_TOKEN) -> Tensor:
    """One placeholder (-200) becomes one for each visual token."""
    place = int((ids[0] == -200).nonzero()) if (ids == -200).any() else None
    assert place is not None, "the recorded text has no image"
    return torch.cat((ids[:, :place], ids.new_full((1, tokens), fill), ids[:, place + 1 :]), dim=1)


def expand_labels(labels: Tensor, ids: Tensor, tokens: int) -> Tensor:
    """Labels beside `expand`ed ids; visual tokens are not scored."""
    place = int((ids[0] == -200).nonzero())
    return torch.cat((labels[:, :place], labels.new_full((1, tokens), -100), labels[:, place + 1 :]), dim=1)


def mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The release's Dice and BCE over codes: soft targets by bilinear resizing, a code without a target counts zero."""
    targets = torch.zeros_like(logits)
    soft = F.interpolate(masks, size=logits.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    targets[: len(soft)] = soft
    real = targets.flatten(1).sum(1) > 0
    dice = torch.where(real, dice_loss(logits, targets, smooth=1e-6), 0.0).sum() / len(logits)
    bce = torch.where(real, bce_loss(logits, targets), 0.0).sum() / len(logits)
    return dice, bce


def test_training_pass(model: MedSightForConditionalGeneration, reference: Reference, compare: Compare) -> None:
    """One conversation with three codes: embeddings, logits, code states, masks, all losses, gradients."""
    count = reference.about["visual_tokens"]
    ids = expand(reference["in.input_ids"], count)
    labels = expand_labels(reference["in.labels"], reference["in.input_ids"], count)
    assert torch.equal(labels, reference["mid.labels_expanded"])
    features = model.model.encode_image(reference["in.image"])
    compare("visual tokens", model.model.visual_tokens(features), reference["mid.visual_tokens"])
    compare("embeddings", model.model.embed(ids, features), reference["mid.inputs_embeds"])

    out = model(input_ids=ids, image_features=features, labels=labels, attention_mask=torch.ones_like(ids))
    compare("logits", out.logits, reference["out.train.logits"])
    compare("last hidden state", out.last_hidden_state, reference["out.train.last_hidden_state"])
    compare("cross-entropy", out.loss.reshape(1), reference["out.train.ce_loss"])

    rows, positions = model.code_positions(ids)
    states = model.code_states(out.last_hidden_state, rows, positions)
    compare("code states", states, reference["out.train.code_states"])
    compare("P_t→v", model.model.text_to_vision(states), reference["out.train.region_codes"])
    masks = model.model.decode_codes(states, features, rows)
    compare("mask logits", masks[None], reference["out.train.mask_logits"])
    again = model.model.perceiver(features.vision.grid, model.model.text_to_vision(states)[None])
    compare("class logits", again.class_logits, reference["out.train.class_logits"])

    dice, bce = mask_losses(masks, reference["in.mask_labels"][0])
    compare("dice", dice.reshape(1), reference["out.train.dice_loss"])
    compare("bce", bce.reshape(1), reference["out.train.bce_loss"])
    compare("mask loss", (dice + bce).reshape(1), reference["out.train.mask_loss"])
    total = out.loss + dice + bce
    compare("loss", total.reshape(1), reference["out.train.loss"])


def test_gradients(model: MedSightForConditionalGeneration, reference: Reference, compare: Compare) -> None:
    """What both projectors learn from words and masks together."""
    count = reference.about["visual_tokens"]
    ids = expand(reference["in.input_ids"], count)
    labels = expand_labels(reference["in.labels"], reference["in.input_ids"], count)
    out = model(input_ids=ids, pixel_values=reference["in.image"], labels=labels)
    rows, positions = model.code_positions(ids)
    states = model.code_states(out.last_hidden_state, rows, positions)
    masks = model.model.decode_codes(states, out.image_features, rows)
    (out.loss + sum(mask_losses(masks, reference["in.mask_labels"][0]))).backward()
    drawn, read = model.model.text_to_vision[2].weight.grad, model.model.vision_to_text[0].weight.grad
    compare("gradient of P_t→v", drawn, reference["grad.model.token_projection.2.weight"])
    compare("gradient of P_v→t", read, reference["grad.model.mm_projector.0.weight"])


def test_text_without_codes(model: MedSightForConditionalGeneration, reference: Reference, compare: Compare) -> None:
    """No code: no mask and no mask loss (the release decodes the first state and drops its loss)."""
    count = reference.about["visual_tokens"]
    ids = expand(reference["in.nocode.input_ids"], count)
    labels = expand_labels(reference["in.nocode.labels"], reference["in.nocode.input_ids"], count)
    out = model(input_ids=ids, pixel_values=reference["in.image"], labels=labels)
    compare("cross-entropy", out.loss.reshape(1), reference["out.nocode.ce_loss"])
    rows, positions = model.code_positions(ids)
    states = model.code_states(out.last_hidden_state, rows, positions)
    masks = model.model.decode_codes(states, out.image_features, rows)
    assert masks.shape == (0, *reference["out.train.mask_logits"].shape[-2:])
    assert reference["out.nocode.mask_loss"].item() == 0


@pytest.mark.parametrize("penalty", [1.0, 1.2], ids=["greedy", "greedy with repetition penalty"])
@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`:UserWarning")  # the release does the same
@torch.no_grad()
def test_generation(
    model: MedSightForConditionalGeneration, reference: Reference, penalty: float, compare: Compare
) -> None:
    """`generate` writes the recorded words; their predecessor states decode to the recorded masks."""
    model.config.code_state = "before"
    theirs = reference.below(f"out.gen_rp{penalty:g}.")
    prompt = expand(reference["in.gen.input_ids"], reference.about["visual_tokens"])
    features = model.model.encode_image(reference["in.image"])
    embeds = model.model.embed(prompt, features)
    length = theirs["sequences"].shape[1]
    written = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=length,
        do_sample=False,
        repetition_penalty=penalty,
    )
    assert torch.equal(written, theirs["sequences"])

    ids = torch.cat((prompt, written), dim=1)
    out = model(input_ids=ids, image_features=features)
    steps = slice(prompt.shape[1] - 1, -1)
    compare("step states", out.last_hidden_state[:, steps], theirs["step_states"])
    compare("step logits", out.logits[:, steps], theirs["raw_logits"])
    rows, positions = model.code_positions(ids)
    states = model.code_states(out.last_hidden_state, rows, positions)
    compare("code states", states[None], theirs["code_states_predecessor"])
    compare("P_t→v", model.model.text_to_vision(states)[None], theirs["region_codes"])
    compare("mask logits", model.model.decode_codes(states, features, rows)[None], theirs["mask_logits"])
