"""From a recipe to a model: an untrained one of its own sizes, or one that an earlier stage left."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from medsight_core.errors import InputError
from medsight_core.model import (
    MedSightConfig,
    MedSightForConditionalGeneration,
    MedSightImageProcessor,
    MedSightProcessor,
)
from medsight_core.model.processing import IMAGE_TOKEN, PROMPT_TOKEN
from training.tokenizer import build_tokenizer


def sub_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """A transformers configuration from `model_type` and its fields."""
    fields = dict(fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def new_processor(recipe: dict[str, Any], config: dict[str, Any], texts: Iterable[str]) -> MedSightProcessor:
    """Image processor and tokenizer for a model that starts from nothing.

    Args:
        recipe: `size`, `patch_size`, `mean`, `std` of the input.
        config: fields of `MedSightConfig`, for the numbers of codes and visual tokens.
        texts: what the tokenizer is trained on.
    """
    images = MedSightImageProcessor(
        size=recipe["size"],
        image_mean=[recipe["mean"]] * 3,
        image_std=[recipe["std"]] * 3,
        patch_size=recipe["patch_size"],
    )
    tokenizer = build_tokenizer(
        texts,
        vocab_size=config["text_config"]["vocab_size"],
        groups=len(config["modality_names"]),
        codes=config["codes_per_group"],
    )
    side = recipe["size"] // recipe["patch_size"] // config.get("visual_token_pooling", 1)
    regions = config["num_region_queries"] if config.get("use_region_tokens", True) else 0
    return MedSightProcessor(images, tokenizer, num_visual_tokens=side * side + regions)


def new_model(config: dict[str, Any], processor: MedSightProcessor, *, seed: int) -> MedSightForConditionalGeneration:
    """A model with random weights that fits the processor.

    Args:
        config: fields of `MedSightConfig`; `vision_config` and `text_config` name their `model_type`.
        processor: gives the ids of placeholders and codes.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    fields = config | {
        "vision_config": sub_config(config["vision_config"]),
        "text_config": sub_config(
            config["text_config"]
            | {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        ),
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "prompt_token_id": tokenizer.convert_tokens_to_ids(PROMPT_TOKEN),
        "code_token_ids": [processor.codes.token_id(code) for code in processor.codes],
    }
    return MedSightForConditionalGeneration(MedSightConfig(**fields))


def open_model(
    folder: Path, switches: dict[str, Any] | None = None
) -> tuple[MedSightForConditionalGeneration, MedSightProcessor]:
    """Model (fp32) and processor of an earlier stage.

    Args:
        folder: where they were saved.
        switches: settings of `MedSightConfig` to change that leave the weights as they are, such as
            `use_region_tokens` or `mask_decoder`; the processor follows.

    Raises:
        InputError: when there is no such setting.
    """
    config = MedSightConfig.from_pretrained(folder)
    processor = MedSightProcessor.from_pretrained(folder)
    regions = config.num_region_queries
    patches = processor.num_visual_tokens - regions * config.use_region_tokens
    for name, value in (switches or {}).items():
        if not hasattr(config, name):
            raise InputError("bad_switch", f"The model has no setting '{name}'.", "See MedSightConfig.")
        setattr(config, name, value)
    processor.num_visual_tokens = patches + regions * config.use_region_tokens
    model = MedSightForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32)
    return model, processor
