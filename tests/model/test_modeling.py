"""Seeing, reading and drawing, and what must not depend on what else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medsight_core.model import ImageFeatures, MedSightConfig, MedSightForConditionalGeneration
from tests.model.small import (
    CODES,
    IMAGE,
    PROMPT,
    SIDE,
    build,
    click,
    conversation,
    convolutional,
    pictures,
    raster,
    transformer,
    visual_tokens,
)

Config = Callable[..., MedSightConfig]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def states(count: int, hidden: int = 24, seed: int = 3) -> Tensor:
    """Hidden states of codes."""
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed))


def select(features: ImageFeatures, model: MedSightForConditionalGeneration, image: int) -> ImageFeatures:
    """The same image looked at alone."""
    return model.model.encode_image(pictures(3)[image : image + 1])


# -- seeing -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_shapes(model: MedSightForConditionalGeneration) -> None:
    """Grid, details, masks and visual tokens of a batch."""
    config = model.config
    features = model.model.encode_image(pictures())
    dim, queries = config.region_dim, config.num_region_queries
    assert features.vision.grid.shape == (2, 4, 4, dim)
    sides = [8, 16, 32] if config.detail_from_pixels else []
    assert [tuple(d.shape) for d in features.details] == [(2, side, side, dim) for side in sides]
    assert features.regions.mask_logits.shape == (2, queries, SIDE // 2, SIDE // 2)
    assert features.regions.class_logits.shape == (2, queries, 4)
    assert features.regions.pixels.shape == (2, SIDE // 2, SIDE // 2, dim)
    assert len(features.regions.stage_mask_logits) == config.perceiver_stages
    assert features.prompt is None and features.prompt_present is None
    assert features.vision.summary.shape == (2, model.model.vision.summary_width)
    assert model.model.visual_tokens(features).shape == (2, visual_tokens(config), 24)


@torch.no_grad()
@pytest.mark.parametrize("image", [0, 1, 2])
def test_images_of_a_batch_are_strangers(model: MedSightForConditionalGeneration, image: int) -> None:
    together = model.model.encode_image(pictures(3))
    alone = select(together, model, image)
    torch.testing.assert_close(together.regions.mask_logits[image], alone.regions.mask_logits[0], **CLOSE)
    torch.testing.assert_close(model.model.visual_tokens(together)[image], model.model.visual_tokens(alone)[0], **CLOSE)


@torch.no_grad()
def test_other_shapes_than_square(convolutional_model: MedSightForConditionalGeneration) -> None:
    """A convolutional encoder takes any multiple of its stride."""
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    features = convolutional_model.model.encode_image(pixels)
    assert features.vision.grid.shape[1:3] == (4, 6)
    assert features.regions.mask_logits.shape[-2:] == (32, 48)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 16 + 4),
        ({"visual_token_pooling": 2}, 4 + 4),
        ({"use_region_tokens": False}, 16),
        ({"use_region_tokens": False, "visual_token_pooling": 4}, 1),
    ],
)
@torch.no_grad()
def test_number_of_visual_tokens(changes: dict[str, object], count: int) -> None:
    model = build(transformer(**changes))
    tokens = model.model.visual_tokens(model.model.encode_image(pictures()))
    assert tokens.shape[1] == count == visual_tokens(model.config)
    listed = model.get_image_features(pictures()).pooler_output
    assert len(listed) == 2 and torch.equal(torch.stack(listed), tokens)


@torch.no_grad()
def test_region_tokens_follow_the_patches(model: MedSightForConditionalGeneration) -> None:
    """[I; Q_r]: patches row by row, then regions."""
    features = model.model.encode_image(pictures())
    tokens = model.model.visual_tokens(features)
    regions = model.model.vision_to_text(model.model.region_tokens(features))
    corner = model.model.vision_to_text(features.vision.grid[:, 1, 2])
    torch.testing.assert_close(tokens[:, -regions.shape[1] :], regions, **CLOSE)
    torch.testing.assert_close(tokens[:, 4 * 1 + 2], corner, **CLOSE)


# -- reading ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_stand_in_for_pixels(model: MedSightForConditionalGeneration) -> None:
    """A second question on an image needs no second look."""
    ids = conversation(model.config, 13).repeat(2, 1)
    looked = model(input_ids=ids, pixel_values=pictures())
    again = model(input_ids=ids, image_features=looked.image_features)
    assert torch.equal(looked.logits, again.logits)
    assert again.image_features is looked.image_features
    embeds = model.model.embed(ids, looked.image_features)
    assert torch.equal(model(inputs_embeds=embeds).logits, looked.logits)


@torch.no_grad()
def test_image_index_says_which_image_a_text_is_about(model: MedSightForConditionalGeneration) -> None:
    features = model.model.encode_image(pictures(3))
    ids = conversation(model.config, 13).repeat(4, 1)
    index = torch.tensor([2, 0, 2, 1])
    out = model(input_ids=ids, image_features=features, image_index=index)
    each = model(input_ids=ids[:3], image_features=features)
    torch.testing.assert_close(out.logits, each.logits[index], **CLOSE)
    assert not torch.allclose(each.logits[0], each.logits[1], atol=1e-2)


def test_wrong_number_of_placeholders(model: MedSightForConditionalGeneration) -> None:
    """Named before the language model starts, with both numbers."""
    short = conversation(model.config)[:, 2:]
    expected = visual_tokens(model.config)
    with pytest.raises(ValueError, match=rf"\[{expected - 1}\], visual tokens per image: {expected}; use MedSightPro"):
        model(input_ids=short, pixel_values=pictures(1))


def test_one_kind_of_input(model: MedSightForConditionalGeneration) -> None:
    ids = conversation(model.config)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(input_ids=ids, inputs_embeds=torch.zeros(1, 3, 24))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(pixel_values=pictures(1))


@torch.no_grad()
def test_loss_scores_the_next_word(model: MedSightForConditionalGeneration) -> None:
    """Cross-entropy of each labelled word given what stands before it; -100 is not scored."""
    ids = conversation(model.config, CODES[1], 13, 2)
    labels = ids.clone()
    labels[:, :-3] = -100
    out = model(input_ids=ids, pixel_values=pictures(1), labels=labels)
    likely = out.logits[0].log_softmax(-1)
    expected = -sum(likely[t - 1, ids[0, t]] for t in range(ids.shape[1] - 3, ids.shape[1])) / 3
    torch.testing.assert_close(out.loss, expected, **CLOSE)


@torch.no_grad()
def test_prompt_token_replaces_its_placeholder(model: MedSightForConditionalGeneration) -> None:
    """Where the text has a placeholder, the refined prompt stands; everywhere else nothing changes."""
    ids = conversation(model.config, prompted=True)
    features = model.model.encode_image(pictures(1), raster([click(40, 12)]))
    embeds = model.model.embed(ids, features)
    place = ids[0] == PROMPT
    assert place.sum() == 1
    torch.testing.assert_close(embeds[0, place], model.model.vision_to_text(features.prompt)[0], **CLOSE)
    plain = model.model.embed(ids, model.model.encode_image(pictures(1)))
    words = (ids[0] != PROMPT) & (ids[0] != IMAGE)
    assert torch.equal(embeds[0, words], plain[0, words])
    assert torch.equal(plain[0, place], model.get_input_embeddings()(torch.tensor([PROMPT])))


# -- generating -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("prompted", [False, True])
def test_generate(model: MedSightForConditionalGeneration, prompted: bool) -> None:
    """The library's loop with its cache writes what one full pass per word would."""
    drawn = raster([click(40, 12)]) if prompted else None
    prompt = conversation(model.config, prompted=prompted)
    ids = prompt
    for _ in range(6):
        logits = model(input_ids=ids, pixel_values=pictures(1), prompt_raster=drawn, use_cache=False).logits
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    inputs = {"pixel_values": pictures(1)} | ({"prompt_raster": drawn} if drawn is not None else {})
    written = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **inputs, **options)
    assert torch.equal(written, ids)
    features = model.model.encode_image(pictures(1), drawn)
    again = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), image_features=features, **options)
    assert torch.equal(again, ids)
    embeds = model.model.embed(prompt, features)
    new = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(new, ids[:, prompt.shape[1] :])


@torch.no_grad()
def test_generate_looks_once(convolutional_model: MedSightForConditionalGeneration) -> None:
    """Later steps read words only."""
    looks = []
    hook = convolutional_model.model.vision.register_forward_pre_hook(lambda *_: looks.append(1))
    prompt = conversation(convolutional_model.config)
    convolutional_model.generate(
        input_ids=prompt, pixel_values=pictures(1), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    hook.remove()
    assert len(looks) == 1


@torch.no_grad()
def test_generate_for_texts_of_different_length(model: MedSightForConditionalGeneration) -> None:
    """Left padding: each text goes on as it would alone."""
    long, short = conversation(model.config, 13, 14, 15), conversation(model.config, 16)
    padding = long.shape[1] - short.shape[1]
    batch = torch.cat((long, torch.nn.functional.pad(short, (padding, 0))))
    mask = (torch.arange(long.shape[1]) >= torch.tensor([[0], [padding]])).long()
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    together = model.generate(input_ids=batch, attention_mask=mask, pixel_values=pictures(2), **options)
    for row, (text, image) in enumerate(zip((long, short), pictures(2), strict=True)):
        alone = model.generate(
            input_ids=text, attention_mask=torch.ones_like(text), pixel_values=image[None], **options
        )
        assert torch.equal(together[row, batch.shape[1] :], alone[0, text.shape[1] :])


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_code_states_at_and_before() -> None:
    """Reading order, and one position back where the configuration says so."""
    model = build(transformer())
    ids = torch.tensor([[CODES[0], 5, CODES[3], 6], [7, 8, 9, 10], [11, 12, CODES[-1], CODES[-1]]])
    hidden = torch.arange(12.0).view(3, 4, 1)
    rows, positions = model.code_positions(ids)
    assert rows.tolist() == [0, 0, 2, 2] and positions.tolist() == [0, 2, 2, 3]
    assert model.code_states(hidden, rows, positions).flatten().tolist() == [0, 2, 10, 11]
    model.config.code_state = "before"
    assert model.code_states(hidden, rows, positions).flatten().tolist() == [0, 1, 9, 10]


DECODERS = pytest.mark.parametrize("decoder", ["perceiver", "head"])
KINDS = pytest.mark.parametrize("config", [convolutional, transformer], ids=["convolutional", "transformer"])


@DECODERS
@KINDS
@torch.no_grad()
def test_no_code_no_mask(config: Config, decoder: str) -> None:
    model = build(config(mask_decoder=decoder))
    features = model.model.encode_image(pictures())
    masks = model.model.decode_codes(states(0), features, torch.zeros(0, dtype=torch.long))
    assert masks.shape == (0, SIDE // 2, SIDE // 2)


@DECODERS
@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
@KINDS
@torch.no_grad()
def test_decoded_shapes(config: Config, decoder: str, joint: bool) -> None:
    model = build(config(mask_decoder=decoder, joint_decoding=joint))
    features = model.model.encode_image(pictures(3))
    masks = model.model.decode_codes(states(4), features, torch.tensor([0, 0, 0, 2]))
    assert masks.shape == (4, SIDE // 2, SIDE // 2) and masks.isfinite().all()
    assert masks[0].ne(masks[1]).any()


@KINDS
@torch.no_grad()
def test_head_decoder_is_the_shared_head(config: Config) -> None:
    """A projected code against the finest features of its own image."""
    model = build(config(mask_decoder="head"))
    features = model.model.encode_image(pictures(2))
    index = torch.tensor([0, 1, 1])
    masks = model.model.decode_codes(states(3), features, index)
    queries = model.model.perceiver.segmentation_cls_head.proj(model.model.text_to_vision(states(3)))
    expected = torch.einsum("nd,nhwd->nhw", queries, features.regions.pixels[index])
    torch.testing.assert_close(masks, expected, **CLOSE)


@KINDS
@torch.no_grad()
def test_separate_decoding_is_one_by_one(config: Config) -> None:
    """Different numbers of codes per image, none on one: every code as if it were alone."""
    model = build(config(joint_decoding=False))
    features = model.model.encode_image(pictures(3))
    index = torch.tensor([0, 2, 2, 2])
    together = model.model.decode_codes(states(4), features, index)
    for code in range(4):
        alone = model.model.decode_codes(states(4)[code : code + 1], features, index[code : code + 1])
        torch.testing.assert_close(together[code], alone[0], **CLOSE)


@KINDS
@torch.no_grad()
def test_joint_decoding_is_image_by_image(config: Config) -> None:
    """Different numbers of codes per image: padding for the shorter answers changes nothing."""
    model = build(config(joint_decoding=True))
    index = torch.tensor([0, 0, 0, 2])
    features = model.model.encode_image(pictures(3))
    together = model.model.decode_codes(states(4), features, index)
    for image in (0, 2):
        own = index == image
        alone = model.model.decode_codes(
            states(4)[own], select(features, model, image), torch.zeros(int(own.sum()), dtype=torch.long)
        )
        torch.testing.assert_close(together[own], alone, **CLOSE)


@KINDS
@torch.no_grad()
def test_joint_and_separate_decoding(config: Config) -> None:
    """A single code is the same either way; two on one image see each other only when decoded together."""
    joint, separate = build(config(joint_decoding=True)), build(config(joint_decoding=False))
    features = joint.model.encode_image(pictures(2))
    single = torch.tensor([0, 1])
    torch.testing.assert_close(
        joint.model.decode_codes(states(2), features, single),
        separate.model.decode_codes(states(2), features, single),
        **CLOSE,
    )
    shared = torch.tensor([0, 0])
    a = joint.model.decode_codes(states(2), features, shared)
    b = separate.model.decode_codes(states(2), features, shared)
    assert (a - b).abs().max() > 1e-2


@KINDS
@torch.no_grad()
def test_decoding_sees_the_prompt(config: Config) -> None:
    """What a person drew is in the pixels that codes are decoded from."""
    model = build(config())
    index = torch.tensor([0])
    plain = model.model.decode_codes(states(1), model.model.encode_image(pictures(1)), index)
    drawn = model.model.decode_codes(states(1), model.model.encode_image(pictures(1), raster([click(40, 12)])), index)
    assert (plain - drawn).abs().max() > 1e-2


@KINDS
@pytest.mark.parametrize("joint", [True, False])
def test_codes_are_decoded_without_a_second_look(config: Config, joint: bool) -> None:
    """k codes of an image: no pass of the encoder, no convolution of the first stage, and all in one pass if joint."""
    core = build(config(mask_decoder="perceiver", joint_decoding=joint)).model
    index = torch.tensor([0, 0, 1])
    with torch.no_grad():
        features = core.encode_image(pictures(2), raster([click(40, 12)], []))
        fresh = core.decode_codes(states(3), replace(features, start=None), index)
        work: list[str] = []
        core.vision.register_forward_hook(lambda *_: work.append("vision"))
        for number, adapter in enumerate(core.perceiver.conv_adapters):
            adapter.register_forward_hook(lambda *_, number=number: work.append(f"stage {number}"))
        masks = core.decode_codes(states(3), features, index)
        core.decode_codes(states(3), features, index)
    torch.testing.assert_close(masks, fresh, **CLOSE)
    assert work == ["stage 1", "stage 2"] * (2 if joint else 6)


@KINDS
def test_a_start_is_kept_only_where_it_serves(config: Config) -> None:
    """Not for the head, which has no second pass, and not with gradients, which must reach all layers of both."""
    model = build(config(mask_decoder="perceiver"))
    drawn = model.model.encode_image(pictures(1))
    assert drawn.start is None
    model.model.decode_codes(states(2), drawn, torch.tensor([0, 0])).sum().backward()
    assert model.model.perceiver.conv_adapters[0].conv.weight.grad.any()
    with torch.no_grad():
        assert model.model.encode_image(pictures(1)).start is not None
        assert build(config(mask_decoder="head")).model.encode_image(pictures(1)).start is None
