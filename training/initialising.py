"""An untrained MedSIGHT model on a language model and an image encoder that others trained.

Their weights are taken over bit by bit, in the type they are stored in; what is new (perceiver, codebook, prompt
encoder, projectors) starts as it does for a model that starts from nothing. The four stages start from the outcome.
"""

import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from medsight_core.errors import InputError
from medsight_core.inference.loading import one_line
from medsight_core.model import (
    MedSightConfig,
    MedSightForConditionalGeneration,
    MedSightImageProcessor,
    MedSightProcessor,
)
from medsight_core.model.processing import IMAGE_TOKEN, PROMPT_TOKEN
from medsight_core.model.vision import VisionEncoder
from training.bases import LanguageBase, VisionBase, open_language, open_vision
from training.build import quiet
from training.vocabulary import Widened, grow, widen

MODALITIES = ("CT", "MRI", "X-ray", "Ultrasound", "Endoscopy", "Dermoscopy", "Fundus", "Pathology")
SHARD = "5GB"

SETTLED = {
    "vision_config",
    "text_config",
    "region_dim",
    "class_names",
    "class_modalities",
    "num_classes",
    "modality_names",
    "num_code_groups",
    "codes_per_group",
    "image_token_id",
    "prompt_token_id",
    "code_token_ids",
    "tie_word_embeddings",
}
"""Settings of `MedSightConfig` that follow from the bases and the other arguments, or that stage 1 finds out."""


def initialise(
    *,
    llm: Path,
    vision: Path,
    out: Path,
    modalities: Sequence[str] = MODALITIES,
    codes_per_group: int = 32,
    activation: str | None = None,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
) -> MedSightConfig:
    """Write an untrained model into a new folder.

    Args:
        llm: folder of a causal language model.
        vision: image encoder, see `open_vision`.
        out: folder to write; must not exist, or be empty.
        modalities: groups of the codebook, K; samples of the training data are told apart by these names.
        codes_per_group: M.
        activation: of an open_clip file that does not say it.
        settings: further fields of `MedSightConfig`, such as num_region_queries or mask_decoder.
        seed: of what is new.

    Returns:
        The configuration of the model.

    Raises:
        InputError: out_exists, bad_modalities, bad_setting, no_space, and what `open_language` and `open_vision` raise.
        CheckpointError: see there.
    """
    settings = settings or {}
    check(out, modalities, codes_per_group, settings)
    image = open_vision(vision, activation)
    language = open_language(llm)
    widened = widen(language.tokenizer, groups=len(modalities), codes=codes_per_group)
    grow(language.model, widened, size=len(language.tokenizer), seed=seed)
    processor = make_processor(language, image, settings)
    config = configure(language, image, processor, modalities, codes_per_group, settings)
    grid = check_grid(config, image)
    regions = config.num_region_queries if config.use_region_tokens else 0
    processor.num_visual_tokens = (grid // config.visual_token_pooling) ** 2 + regions
    model = assemble(config, language, image, seed=seed)
    model.generation_config = generation(language, widened)
    write(model, processor, out, f"{language.name} and {image.name}")
    return config


def check(out: Path, modalities: Sequence[str], codes: int, settings: dict[str, Any]) -> None:
    """Everything that can be seen before a file is read.

    Raises:
        InputError: out_exists, bad_modalities, bad_setting.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("out_exists", f"{out} is there already and not empty.", "Name a new folder with --out.")
    if not modalities or codes < 1 or len(set(modalities)) < len(modalities) or not all(map(str.strip, modalities)):
        raise InputError(
            "bad_modalities",
            f"A codebook has one or more groups of one or more codes, each group with a name of its own; got "
            f"{codes} codes for {', '.join(modalities) or 'no modality'}.",
            "Say for instance --modalities CT,MRI.",
        )
    known = {field.name for field in fields(MedSightConfig) if field.name in MedSightConfig.__annotations__} - SETTLED
    if unknown := sorted(set(settings) - known):
        raise InputError(
            "bad_setting",
            f"The model has no setting {', '.join(unknown)}, or it follows from the bases.",
            f"It has {', '.join(sorted(known))}.",
        )


def make_processor(language: LanguageBase, image: VisionBase, settings: dict[str, Any]) -> MedSightProcessor:
    """Pictures are letterboxed to the encoder's own size: nothing of a scan is thrown away."""
    pictures = MedSightImageProcessor(
        size=image.config.image_size, image_mean=image.mean, image_std=image.std, patch_size=image.config.patch_size
    )
    return MedSightProcessor(pictures, language.tokenizer)


def configure(
    language: LanguageBase,
    image: VisionBase,
    processor: MedSightProcessor,
    modalities: Sequence[str],
    codes_per_group: int,
    settings: dict[str, Any],
) -> MedSightConfig:
    """The perceiver is as wide as the encoder, so that nothing new stands between them.

    Raises:
        InputError: bad_setting.
    """
    tokenizer = processor.tokenizer
    words = language.config.to_dict() | {
        "vocab_size": language.head.out_features,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": language.tied,
    }
    try:
        return MedSightConfig(
            **settings,
            vision_config=image.config.to_dict(),
            text_config=words,
            region_dim=image.config.hidden_size,
            modality_names=list(modalities),
            codes_per_group=codes_per_group,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            prompt_token_id=tokenizer.convert_tokens_to_ids(PROMPT_TOKEN),
            code_token_ids=[processor.codes.token_id(code) for code in processor.codes],
            tie_word_embeddings=language.tied,
        )
    except Exception as error:  # the library's own, over values of the wrong type
        sentence = f"The settings make no model ({one_line(error)})."
        raise InputError("bad_setting", sentence, "See MedSightConfig.") from error


def check_grid(config: MedSightConfig, image: VisionBase) -> int:
    """Patches per side, from a pass without values.

    Raises:
        InputError: unsupported_base, the encoder's states are no grid of patches; bad_setting.
    """
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    side = size // patch if isinstance(size, int) and isinstance(patch, int) else 0
    try:
        with torch.device("meta"):
            encoder = VisionEncoder(config)
            seen = tuple(encoder(torch.zeros(1, 3, size, size)).grid.shape)
    except Exception:  # whatever a foreign encoder raises over its own shapes
        seen = ()
    if not side or seen != (1, side, side, config.region_dim):
        raise InputError(
            "unsupported_base",
            f"{image.name} does not yield a square grid of patches at layer {config.vision_feature_layer}.",
            "Give a CLIP, or another vision_feature_layer.",
        )
    if side % config.visual_token_pooling:
        raise InputError(
            "bad_setting",
            f"visual_token_pooling is {config.visual_token_pooling}, which does not divide {side} patches.",
            "Say 1, or a divisor.",
        )
    return side


def assemble(
    config: MedSightConfig, language: LanguageBase, image: VisionBase, *, seed: int
) -> MedSightForConditionalGeneration:
    """The bases in their places, as they are and without a copy, and the rest with new weights."""
    with torch.device("meta"):
        model = MedSightForConditionalGeneration(config)
    given: dict[str, nn.Module] = {
        "model.vision.backbone": image.model,
        "model.language_model": language.decoder,
        "lm_head": language.head,
    }
    for name, module in given.items():
        model.set_submodule(name, module)
    theirs = {id(module) for one in given.values() for module in one.modules()}
    for module in model.modules():
        # The library's mark of what needs no new weights.
        module._is_hf_initialized = id(module) in theirs
        if id(module) not in theirs:
            module.to_empty(device="cpu", recurse=False)
    torch.manual_seed(seed)
    model.initialize_weights()
    return model.eval()


def generation(language: LanguageBase, widened: Widened) -> GenerationConfig:
    """Greedy, and ends where the conversation's form ends an answer or the language model ended its texts."""
    theirs = language.model.generation_config.eos_token_id
    theirs = [theirs] if isinstance(theirs, int) else theirs or []
    stops = list(dict.fromkeys([*widened.stops, *theirs]))
    return GenerationConfig(eos_token_id=stops, pad_token_id=language.tokenizer.pad_token_id, do_sample=False)


def write(model: MedSightForConditionalGeneration, processor: MedSightProcessor, out: Path, bases: str) -> None:
    """Write a model in shards, whole or not at all.

    Raises:
        InputError: no_space.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(out.parent).free
    if free < size * 1.02:
        raise InputError(
            "no_space",
            f"The model needs {size / 1e9:.1f} GB, and {out.parent} has {free / 1e9:.1f} GB free.",
            "Make room, or name another place with --out.",
        )
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with quiet():
        model.save_pretrained(part, max_shard_size=SHARD)
    processor.save_pretrained(part)
    text = (
        f"# {out.name}\n\nAn untrained MedSIGHT model, made by `medsight init` of {bases}: their weights as they were, "
        "everything else random. Its answers mean nothing before the four stages of `medsight train`.\n"
    )
    (part / "README.md").write_text(text, encoding="utf-8")
    if out.exists():
        out.rmdir()
    part.replace(out)
