"""What the released model's own settings say, in ours: sizes, switches of behaviour, the form of a conversation.

`medsight_core.model.official` has the names of its tensors; ``docs/released_model.md`` explains each switch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from medsight_core.errors import CheckpointError
from medsight_core.model.configuration import MedSightConfig
from medsight_core.model.official import GROUP

IMAGE_TOKEN: Final = "<|image_pad|>"
"""Stands for the image in texts. The release writes -200 there, which is no token; its vocabulary has no free row left,
and this one is Qwen3's own name for the purpose, never used in its texts."""

IMAGE_TOKEN_ID: Final = 151655

SYSTEM: Final = "You are a helpful assistant."

CHAT_TEMPLATE: Final = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The form of a conversation that the release was trained on: ChatML with its system text, no thinking block."""

IMAGE_OPTIONS: Final[Mapping[str, Any]] = {"fit": "centre_crop", "resample": "bicubic"}
"""For `MedSightImageProcessor`: open_clip's evaluation transform, with which all stages of the release were trained."""

PROCESSOR_OPTIONS: Final[Mapping[str, Any]] = {"generation_header": False, "image_token": IMAGE_TOKEN}
"""For `MedSightProcessor`: a prompt ends with the user's turn, the model opens its own."""

GENERATION: Final[Mapping[str, Any]] = {"do_sample": False, "repetition_penalty": 1.2, "max_new_tokens": 512}
"""For the generation configuration: what the authors' own inference uses where masks are wanted."""


_LANGUAGE: Final = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
"""Fields of the language model that the release's configuration spells as the library does."""

_TELLING: Final = (
    "image_encoder.conv1.weight",
    "image_encoder.positional_embedding",
    "image_encoder.transformer.resblocks.0.mlp.c_fc.weight",
    "region_perceiver.region_queries",
    "region_perceiver.init_cross_attn.to_q.weight",
    "region_perceiver.init_ff.1.weight",
    "region_perceiver.segmentation_cls_head.class_embed.weight",
)


def release_config(instruct: Mapping[str, Any], **changes: Any) -> MedSightConfig:
    """Our configuration of a released model, every switch of behaviour written out.

    Args:
        instruct: ``config.json`` of the sharded folder (``model_type`` "llava_qwen"). It tells of the language model
            and of the feature layer; everything else is the release's unless ``changes`` say otherwise.
        changes: Fields of `MedSightConfig`; `release_sizes` tells those that the tensors' shapes determine.

    Raises:
        CheckpointError: unsupported_release.
    """
    problems = [
        f"{name} is {instruct[name]!r}, expected {expected!r}"
        for name, expected in (
            ("model_type", "llava_qwen"),
            ("mm_projector_type", "mlp2x_gelu"),
            ("use_sep_proj", False),
            ("mm_use_im_start_end", False),
            ("tie_word_embeddings", False),
            ("hidden_act", "silu"),
            ("attention_bias", False),
            ("use_sliding_window", False),
            ("rope_scaling", None),
        )
        if instruct.get(name, expected) != expected
    ]
    problems += [f"{name} is missing" for name in ("vocab_size", *_LANGUAGE) if name not in instruct]
    if problems:
        raise CheckpointError(
            "unsupported_release",
            f"The released language model's configuration is of a kind that is not known here: {'; '.join(problems)}.",
            "Give the folder of the final stage, as it was released.",
        )
    words = instruct["vocab_size"]
    language = {name: instruct[name] for name in _LANGUAGE} | {
        "model_type": "qwen3",
        "vocab_size": words,
        "rope_parameters": instruct.get("rope_parameters")
        or {"rope_type": "default", "rope_theta": float(instruct.get("rope_theta", 1e6))},
        "tie_word_embeddings": False,
        "bos_token_id": instruct.get("bos_token_id"),
        "eos_token_id": instruct.get("eos_token_id"),
        "pad_token_id": instruct.get("pad_token_id"),
    }
    options: dict[str, Any] = {
        "text_config": language,
        "vision_feature_layer": instruct.get("mm_vision_select_layer", -2),
        "use_codebook": True,
        "use_prompts": False,
        "use_region_tokens": True,
        "visual_token_pooling": 1,
        "code_state": "at",
        "mask_decoder": "perceiver",
        "joint_decoding": True,
        "image_token_id": IMAGE_TOKEN_ID,
        "tie_word_embeddings": False,
    }
    options |= changes
    if "code_token_ids" not in options:
        groups = options.get("num_code_groups", MedSightConfig.num_code_groups)
        codes = groups * options.get("codes_per_group", MedSightConfig.codes_per_group)
        options["code_token_ids"] = list(range(words - codes, words))
    return MedSightConfig(**options)


def release_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What the shapes of released tensors say of the sizes of a model, for `release_config`.

    Args:
        shapes: By name, as `clean` leaves them. Heads are 64 wide in the release, which no shape tells; a width that 64
            does not divide is one head.

    Raises:
        CheckpointError: unsupported_release, a tensor that tells a size is missing.
    """
    absent = [name for name in _TELLING if name not in shapes]
    if absent:
        raise CheckpointError(
            "unsupported_release",
            f"The release lacks {', '.join(absent)}, which tell how large its parts are.",
            "Give all files of the release.",
        )

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in shapes)

    def heads(inner: int) -> int:
        return inner // 64 if inner % 64 == 0 else 1

    width, _, patch, _ = shapes["image_encoder.conv1.weight"]
    side = round((shapes["image_encoder.positional_embedding"][0] - 1) ** 0.5) * patch
    inner, dim = shapes["region_perceiver.init_cross_attn.to_q.weight"]
    stages = count(r"region_perceiver\.conv_adapters\.\d+\.conv\.weight")
    blocks = count(r"region_perceiver\.bi_blocks\.\d+\.ff_region\.1\.weight")
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": shapes["image_encoder.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": count(r"image_encoder\.transformer\.resblocks\.\d+\.attn\.in_proj_weight"),
        "num_attention_heads": heads(width),
        "image_size": side,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": shapes.get("image_encoder.proj", (width, 768))[1],
    }
    sizes: dict[str, Any] = {
        "vision_config": vision,
        "region_dim": dim,
        "num_region_queries": shapes["region_perceiver.region_queries"][1],
        "perceiver_stages": stages,
        "perceiver_stacks": blocks // max(stages, 1),
        "perceiver_heads": heads(inner),
        "perceiver_head_dim": inner // heads(inner),
        "perceiver_ff_mult": shapes["region_perceiver.init_ff.1.weight"][0] // dim,
        "perceiver_self_attention": "region_perceiver.bi_blocks.0.region_self_attn_norm.weight" in shapes,
        "num_classes": shapes["region_perceiver.segmentation_cls_head.class_embed.weight"][0] - 1,
    }
    groups = count(GROUP.replace(".", r"\.").replace("#", r"\d+"))
    if groups:
        sizes["num_code_groups"] = groups
        sizes["codes_per_group"], sizes["code_dim"] = shapes[GROUP.replace("#", "0")]
    return sizes
