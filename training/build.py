"""From a recipe to a model: an untrained one of its own sizes, or one that an earlier stage left."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from medsight_core.errors import InputError
from medsight_core.inference.loading import quiet_loading
from medsight_core.model import (
    MedSightConfig,
    MedSightForConditionalGeneration,
    MedSightImageProcessor,
    MedSightProcessor,
)
from medsight_core.model.perceiver import SegmentationHead
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
    with quiet():
        model = MedSightForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32)
    return model, processor


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library's bars and its report of tensors that are left over (a CLIP's text side) from the terminal."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with quiet_loading():
            yield
    finally:
        transformers_logging.set_verbosity(level)


def name_classes(
    model: MedSightForConditionalGeneration, names: list[str], shown: dict[str, list[str]], *, seed: int
) -> None:
    """Give an untrained model the classes of the data: new heads that tell them apart, and their names.

    Args:
        model: as `medsight init` wrote it.
        names: of the classes.
        shown: modalities in which the data show each.
        seed: of the new weights.
    """
    torch.manual_seed(seed)
    model.config.class_names, model.config.class_modalities = names, shown
    model.config.num_classes = len(names)
    for head in model.modules():
        if isinstance(head, SegmentationHead):
            head.class_embed = nn.Linear(head.class_embed.in_features, len(names) + 1)
            model._init_weights(head.class_embed)


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """How a large language model is held while it is trained or trained on; the recipe's group `language_model`.

    Attributes:
        dtype: of its layers, "float32" or "bfloat16"; the tables of words stay float32. 16 bits do for layers that
            are not trained themselves (stages 1 to 3, and stage 4 with adapters).
        checkpointing: compute a layer's activations again in the backward pass rather than keep them.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False


def hold_language_model(model: MedSightForConditionalGeneration, config: LanguageConfig) -> None:
    """Apply the settings to a model, in place.

    Raises:
        InputError: bad_recipe.
    """
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(
            "bad_recipe", f"language_model.dtype is {config.dtype!r}.", "Expected float32 or bfloat16."
        )
    language = model.model.language_model
    if config.dtype == "bfloat16":
        for name, module in language.named_children():
            if name != "embed_tokens":
                module.to(torch.bfloat16)
    if config.checkpointing:
        # The library's name for it changed within version 5.
        older = "gradient_checkpointing_enable"
        enable = getattr(language, "activation_checkpointing_enable", None) or getattr(language, older)
        enable({"use_reentrant": False})
