"""Tiny language models and image encoders as others publish them, for tests that build on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.training import toy

TEXTS = [
    "There is a square in the abdomen. The disc is a lesion of the skin. Is there a lesion?",
    "Where is the liver? No disease is seen. The square disease. Segment the disc in this image.",
]

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""The form of Llama 3's conversations, without its system text."""

THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: an empty block for thoughts before the last answer, and only there."""

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else 'user' }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": False, "spare": 8, "template": THINKING_TEMPLATE},
    "llama": {"tie_word_embeddings": False, "template": LLAMA_TEMPLATE},
    "mistral": {"tie_word_embeddings": False, "template": None},
    "gemma3_text": {"tie_word_embeddings": True, "template": GEMMA_TEMPLATE, "sliding_window": 64},
    "phi3": {"tie_word_embeddings": False, "template": None, "pad_token_id": 0},
}

SPECIAL = {
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": ["<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    "gemma3_text": ["<eos>", "<bos>", "<end_of_turn>", "<start_of_turn>", "<pad>"],
}


def byte_level(special: list[str]) -> Tokenizer:
    """As Qwen's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def like_sentencepiece(special: list[str]) -> Tokenizer:
    """As Llama 2's and Mistral's: spaces are letters, unknown letters are bytes, a word stands before every text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=[*special, *letters], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[1]} $A", special_tokens=[(special[1], 1)]
    )
    return tokenizer


def write_tokenizer(folder: Path, family: str) -> int:
    """A tokenizer of the family's kind, with its special words; returns how many it has."""
    special = SPECIAL.get(family, ["</s>", "<s>"])
    tokenizer = like_sentencepiece(special) if family == "mistral" else byte_level(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[2] if family in ("qwen3", "llama") else special[0],
        bos_token=None if family == "qwen3" else special[1],
        pad_token="<pad>" if "<pad>" in special else None,
    )
    fast.chat_template = FAMILIES.get(family, {}).get("template")
    fast.save_pretrained(folder)
    return len(fast)


def write_language_model(
    folder: Path, family: str, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A random language model of a family, saved as its makers save theirs."""
    options = dict(FAMILIES.get(family, {}))
    options.pop("template", None)
    words = write_tokenizer(folder, family) + options.pop("spare", 0)
    torch.manual_seed(7)
    ids = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None}
    config = AutoConfig.for_model(family, **({"vocab_size": words} | SMALL | ids | options | changes))
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB")  # several shards, as large models have
    return folder


def write_encoder(
    folder: Path, kind: str = "clip", *, side: int = 56, patch: int = 14, dtype: torch.dtype = torch.float32
) -> Path:
    """A random image encoder: "clip" with its text side, or a type of the library's encoders.

    As with CLIP ViT-L/14-336, masks (four patches, eight times finer) are larger than half the picture.
    """
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": patch,
    }
    torch.manual_seed(8)
    if kind == "clip":
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text |= {"vocab_size": 32, "eos_token_id": 2, "bos_token_id": 1}
        config = AutoConfig.for_model("clip", vision_config=vision, text_config=text, projection_dim=8)
    else:
        config = AutoConfig.for_model(kind, **vision)
    model = AutoModel.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # away from the zeros and ones that biases and norms begin with
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    write_normalisation(folder)
    return folder


def write_normalisation(folder: Path) -> None:
    """How the encoder's pictures are normalised."""
    picture = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture))


SETTINGS = {
    "num_region_queries": 4,
    "perceiver_heads": 2,
    "perceiver_head_dim": 8,
    "perceiver_ff_mult": 2,
    "code_dim": 8,
}
"""Of a MedSIGHT model as small as they are."""


def tuning(data: Path, base: Path) -> dict[str, Any]:
    """A recipe that starts from a base and takes seconds."""
    recipe = toy.toy_recipe(data)
    loop = {"steps": 2, "learning_rate": 1e-3}
    small = {"images": 2, "turns": 2}
    return {
        "seed": 0,
        "data": recipe["data"] | {"size": 56},
        "base": str(base),
        "loop": recipe["loop"],
        "conversations": small,
        "stages": {
            1: {"loop": loop, "stage": {"batch": 2, "train_encoder": False}},
            2: {"loop": loop},
            3: {"codebook": {"loop": loop}, "align": {"loop": loop}},
            4: {"loop": loop},
        },
    }
