"""The table of released names: at full size, both ways, and what the release's own configuration becomes."""

from __future__ import annotations

import math
import re

import pytest
import torch

from medsight_core.errors import CheckpointError
from medsight_core.model import (
    MedSightConfig,
    MedSightForConditionalGeneration,
    MedSightImageProcessor,
    MedSightProcessor,
)
from medsight_core.model.official import CODES, SPLIT_WORDS, clean, ignored, ours, recipes, release_shapes
from medsight_core.model.official_settings import (
    CHAT_TEMPLATE,
    IMAGE_OPTIONS,
    IMAGE_TOKEN,
    PROCESSOR_OPTIONS,
    release_config,
    release_sizes,
)
from training.tokenizer import build_tokenizer

INSTRUCT = {
    "architectures": ["RegSegForCausalLM"],
    "model_type": "llava_qwen",
    "vocab_size": 152245,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "mm_hidden_size": 1024,
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
    "use_sep_proj": False,
}
"""The fields of the released language model's configuration that matter here."""

TRAINING_GRAPH = 8_618_904_594
"""Parameters that the authors' own run logged: Qwen3-8B as it comes, P_v→t, image encoder and perceiver."""

QWEN_ROWS = 151_936
"""Rows of the vocabulary that Qwen3-8B comes with, padded ones among them."""

SAMPLES = {
    "image_encoder.class_embedding": (1024,),
    "image_encoder.positional_embedding": (577, 1024),
    "image_encoder.proj": (1024, 768),
    "image_encoder.conv1.weight": (1024, 3, 14, 14),
    "image_encoder.ln_pre.weight": (1024,),
    "image_encoder.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
    "image_encoder.transformer.resblocks.23.attn.in_proj_bias": (3072,),
    "image_encoder.transformer.resblocks.0.attn.out_proj.bias": (1024,),
    "image_encoder.transformer.resblocks.7.ln_2.bias": (1024,),
    "image_encoder.transformer.resblocks.7.mlp.c_fc.weight": (4096, 1024),
    "image_encoder.transformer.resblocks.7.mlp.c_proj.weight": (1024, 4096),
    "image_encoder.ln_post.bias": (1024,),
    "region_perceiver.region_queries": (1, 20, 1024),
    "region_perceiver.region_position_embed.weight": (20, 1024),
    "region_perceiver.init_cross_attn.to_q.weight": (512, 1024),
    "region_perceiver.init_cross_attn.to_kv.weight": (1024, 1024),
    "region_perceiver.init_ff.3.weight": (1024, 4096),
    "region_perceiver.conv_adapters.2.conv.weight": (1024, 1024, 3, 3),
    "region_perceiver.bi_blocks.2.image_to_region.norm_latents.bias": (1024,),
    "region_perceiver.bi_blocks.1.ff_region.0.bias": (1024,),
    "region_perceiver.segmentation_cls_head.class_embed.bias": (18,),
    "modality_predictor.weight": (18, 1024),
    "quantizer.codebooks.17.embedding.weight": (32, 64),
    "quantizer.codebooks.0.codebook_used": (131072,),
    "region_perceiver.quantizer.codebooks.3.embedding.weight": (32, 64),
    "region_perceiver.to_code.3.weight": (64, 1024),
    "region_perceiver.code_decoder.from_code.0.weight": (1024, 64),
    "region_perceiver.code_decoder.segmentation_cls_head_quant.proj.bias": (1024,),
    "model.embed_tokens.weight": (152245, 4096),
    "model.layers.35.self_attn.k_proj.weight": (1024, 4096),
    "model.layers.0.self_attn.q_norm.weight": (128,),
    "model.layers.0.mlp.down_proj.weight": (4096, 12288),
    "model.norm.weight": (4096,),
    "model.mm_projector.2.weight": (4096, 4096),
    "model.token_projection.2.weight": (1024, 4096),
    "lm_head.weight": (152245, 4096),
}
"""One of every kind, as they were read from the release's code."""


@pytest.fixture(scope="module")
def settings() -> MedSightConfig:
    return MedSightConfig(use_prompts=False)


@pytest.fixture(scope="module")
def model(settings: MedSightConfig) -> MedSightForConditionalGeneration:
    with torch.device("meta"):
        return MedSightForConditionalGeneration(settings)


def test_full_size(settings: MedSightConfig, model: MedSightForConditionalGeneration) -> None:
    """Each of our tensors has exactly one recipe, and the release's names have the release's shapes."""
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    made = recipes(settings)
    assert [recipe.name for recipe in made] == list(state)
    assert {recipe.name: recipe.shape for recipe in made} == state
    shapes = release_shapes(settings)
    assert {name: shapes.get(name) for name in SAMPLES} == SAMPLES
    sources = {source for recipe in made for source in recipe.sources}
    assert sources | {name for name in shapes if ignored(name)} == shapes.keys()
    assert not any(ignored(source) for source in sources)


def test_parameters_of_the_training_graph(settings: MedSightConfig, model: MedSightForConditionalGeneration) -> None:
    """What our full-size model has more and less than the graph that the authors trained in stage 3."""
    count = sum(parameter.numel() for parameter in model.parameters())
    hidden = settings.text_config.hidden_size
    more = {
        "codebook, not in the language model's graph": sum(p.numel() for p in model.model.codebook.parameters()),
        "P_t→v, added in stage 4": sum(p.numel() for p in model.model.text_to_vision.parameters()),
        "rows for region codes, added in stage 4": 2 * (settings.text_config.vocab_size - QWEN_ROWS) * hidden,
    }
    shapes = release_shapes(settings)
    never_used = ("image_encoder.proj", "region_perceiver.region_position_embed.weight")
    less = {name: math.prod(shapes[name]) for name in never_used}
    assert count - sum(more.values()) + sum(less.values()) == TRAINING_GRAPH


def test_names_both_ways(settings: MedSightConfig) -> None:
    """Renaming a source gives the tensor it becomes, or the place where it is split or joined."""
    for recipe in recipes(settings):
        for source in recipe.sources:
            found = ours(source)
            if recipe.rule == "third":
                assert re.sub(r"in_proj_", f"{'qkv'[recipe.index]}_proj.", found) == recipe.name
            elif recipe.rule == "stack":
                assert re.fullmatch(r"model\.codebook\.codebooks\.\d+\.embedding\.weight", found)
                assert recipe.name == CODES
            else:
                assert found == recipe.name
        assert ours(clean(recipe.name)) == recipe.name, "our own names stay"


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("module.visual.conv1.weight", "image_encoder.conv1.weight"),
        ("visual.transformer.resblocks.3.ln_1.bias", "image_encoder.transformer.resblocks.3.ln_1.bias"),
        ("model.vision_tower.vision_tower.region_perceiver.region_queries", "region_perceiver.region_queries"),
        ("base_model.model.model.mm_projector.0.weight", "model.mm_projector.0.weight"),
        ("mm_projector.0.weight", "model.mm_projector.0.weight"),
        ("base_model.model.lm_head.weight", "lm_head.weight"),
        ("module.text_encoder.layer.0.weight", "text_encoder.layer.0.weight"),
    ],
)
def test_wrappers(stored: str, name: str) -> None:
    """What training and saving put before names comes off."""
    assert clean(stored) == name


def test_known_and_unknown_leftovers() -> None:
    """A name is needless for a stated reason, or it is not needless."""
    assert "statistic" in str(ignored("quantizer.codebooks.12.step"))
    assert ignored("text_encoder.embeddings.weight") and ignored("logit_scale")
    assert ignored("region_perceiver.quantizer.codebooks.0.embedding.weight")
    for name in ("quantizer.codebooks.0.embedding.weight", "region_perceiver.query_adapters.0.to_gamma.weight"):
        assert ignored(name) is None


def test_split_words(settings: MedSightConfig) -> None:
    """A stage-4 checkpoint keeps the codes' rows apart."""
    (words,) = [recipe for recipe in recipes(settings, split_embedding=True) if recipe.rule == "rows"]
    assert (words.name, words.sources) == ("model.language_model.embed_tokens.weight", SPLIT_WORDS)
    shapes = release_shapes(settings, split_embedding=True)
    assert [shapes[name] for name in SPLIT_WORDS] == [(152245, 4096), (576, 4096)]


def test_parts_that_the_release_has_not() -> None:
    """A configuration with a prompt encoder cannot be filled from the release."""
    with pytest.raises(CheckpointError, match=r"prompt_encoder") as caught:
        recipes(MedSightConfig())
    assert caught.value.code == "not_in_release"


def test_configuration(settings: MedSightConfig) -> None:
    """From the released language model's configuration and the shapes of the tensors to ours, every switch set."""
    made = release_config(INSTRUCT, **release_sizes(release_shapes(settings)))
    assert release_shapes(made) == release_shapes(settings)
    written = made.to_dict()
    assert {name: written[name] for name in ("code_state", "mask_decoder", "joint_decoding", "use_prompts")} == {
        "code_state": "at",
        "mask_decoder": "perceiver",
        "joint_decoding": True,
        "use_prompts": False,
    }
    assert (made.vision_feature_layer, made.image_token_id) == (-2, 151655)
    assert made.vision_config.hidden_act == "quick_gelu"
    assert (made.code_token_ids[0], made.code_token_ids[-1], len(made.code_token_ids)) == (151669, 152244, 576)
    assert made.text_config.rope_parameters["rope_theta"] == 1e6
    assert made.text_config.eos_token_id == 151645
    changed = release_config(INSTRUCT | {"mm_vision_select_layer": -1}, code_state="before", joint_decoding=False)
    assert (changed.vision_feature_layer, changed.code_state, changed.joint_decoding) == (-1, "before", False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llava_llama"}, "llava_llama"),
        ({"use_sep_proj": True}, "use_sep_proj"),
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
    ],
)
def test_other_releases(changes: dict[str, object], named: str) -> None:
    """A configuration that means something else is refused by name, and so are missing sizes."""
    given = {name: value for name, value in (INSTRUCT | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=named):
        release_config(given)
    with pytest.raises(CheckpointError, match="conv1"):
        release_sizes({})


def test_conversations() -> None:
    """ChatML with the release's system text, without thinking, ending behind the user's turn."""
    tokenizer = build_tokenizer(["What is it? A lung."] * 5, vocab_size=300, groups=1, codes=2)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.chat_template = CHAT_TEMPLATE
    images = MedSightImageProcessor(**IMAGE_OPTIONS)
    processor = MedSightProcessor(images, tokenizer, num_visual_tokens=3, **PROCESSOR_OPTIONS)
    begin = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|image_pad|>\nWhat is it?"
    assert processor.chat("What is it?") == f"{begin}<|im_end|>\n"
    assert processor.chat("And now?", history=[("What is it?", "A lung.")]) == (
        f"{begin}<|im_end|>\n<|im_start|>assistant\nA lung.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
    )
    ids = processor(text=processor.chat("What is it?"))["input_ids"][0].tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == 3
