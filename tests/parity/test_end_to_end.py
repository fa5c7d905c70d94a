"""The whole model against the released one: image and text in, words, code states and masks out.

Two switches of ours are the release's two behaviours: `code_state="at"` is what it trains with, `code_state="before"`
what its own inference does. Of a text about two images only what is read of it is compared: ours speaks about one.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration
from medsight_core.model.conversion import unread
from tests.parity.conftest import Compare
from tests.parity.reference import Reference, expand, language_config, state
from training.losses import bce_loss, dice_loss

FIXTURE = "d_llm_end_to_end"


@pytest.fixture(scope="module")
def reference(shared_parity: Path) -> Reference:
    return Reference.read(shared_parity, FIXTURE)


@pytest.fixture(scope="module")
def settings(reference: Reference) -> MedSightConfig:
    """Our configuration of the recorded model."""
    return language_config(reference)


@pytest.fixture(scope="module")
def folder(reference: Reference, settings: MedSightConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded model as a folder: our configuration, and tensors under the release's own names."""
    folder = tmp_path_factory.mktemp("release")
    settings.save_pretrained(folder)
    save_file(reference.below("state."), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def model(folder: Path) -> MedSightForConditionalGeneration:
    return MedSightForConditionalGeneration.from_pretrained(folder).eval()


def test_names(folder: Path, reference: Reference, settings: MedSightConfig, tmp_path: Path) -> None:
    """`from_pretrained` reads the released names and gives every tensor; `save_pretrained` writes ours."""
    assert "model.vision_tower.vision_tower.image_encoder.conv1.weight" in load_file(folder / "model.safetensors")
    model, told = MedSightForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    assert {name for name in told["unexpected_keys"] if not any(re.fullmatch(p, name) for p in unread())} == set()
    expected = state(reference.below("state."), settings)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == expected.keys()


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


@torch.no_grad()
def test_two_images(model: MedSightForConditionalGeneration, reference: Reference, compare: Compare) -> None:
    """What the language model reads of a text about two images: the visual tokens of each, in their order."""
    ids, count = reference["in.twoimg.input_ids"], reference.about["visual_tokens"]
    visual = model.model.visual_tokens(model.model.encode_image(reference["in.twoimg.image"]))
    assert visual.shape[:2] == (2, count)
    spliced = ids[0].repeat_interleave(torch.where(ids[0] == -200, count, 1))
    words = model.get_input_embeddings()(spliced.clamp_min(0))
    embeds = words.masked_scatter((spliced == -200)[:, None], visual.flatten(0, 1))
    compare("embeddings", embeds[None], reference["mid.twoimg.inputs_embeds"])
