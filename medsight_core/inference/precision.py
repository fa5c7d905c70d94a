"""How precisely a model computes: one type for everything, or a language model with weights of 8 or 4 bits.

Only the language model is quantised, by bitsandbytes through transformers: masks are decoded from few numbers, and what
is not the language model is a small part of the whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_flash_attn_2_available

from medsight_core.errors import InputError
from medsight_core.inference.running import Running

LANGUAGE_MODEL: Final = "model.language_model"

PRECISE_PARTS: Final = (
    "model.vision",
    "model.perceiver",
    "model.prompt_encoder",
    "model.codebook",
    "model.vision_to_text",
    "model.text_to_vision",
    "lm_head",
)
"""Parts of `MedSightForConditionalGeneration` that are never quantised and never leave the first device."""

_BLOCKS: Final = (32, 64)
"""Rows and columns that bitsandbytes packs together on the CPU."""

_TYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(running: Running, device: torch.device) -> torch.dtype:
    """What sums are done in."""
    return _TYPES.get(running.precision, torch.bfloat16 if device.type == "cuda" else torch.float32)


def quantization(running: Running, device: torch.device) -> BitsAndBytesConfig | None:
    """How the language model's weights are made smaller; None where they are not.

    8 bits: LLM.int8() (Dettmers et al., 2022). 4 bits: NormalFloat with its scales quantised again (QLoRA, 2023).

    Raises:
        InputError: The device cannot do it.
    """
    if running.quantized is None:
        return None
    if device.type not in ("cuda", "cpu"):
        raise InputError(
            "bad_precision",
            f"{running.quantized} runs on CUDA and on the CPU, not on {device.type}.",
            "Choose --precision fp32, bf16 or fp16.",
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its notices are not for the person who asks
    if running.quantized == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(PRECISE_PARTS))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(running, device),
        llm_int8_skip_modules=list(PRECISE_PARTS),
    )


def require_packable(running: Running, device: torch.device, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Makes sure that weights of 4 bits can be packed for this device: on the CPU only matrices of whole blocks.

    Args:
        running: How the model is to run.
        device: Where.
        shapes: Of all tensors of the model, by name.

    Raises:
        InputError: bad_precision.
    """
    if running.quantized != "int4" or device.type != "cpu":
        return
    rows, columns = _BLOCKS
    for name, shape in shapes.items():
        inside = name.startswith(LANGUAGE_MODEL + ".") and "embed" not in name and len(shape) == 2
        if inside and (shape[0] % rows or shape[1] % columns):
            raise InputError(
                "bad_precision",
                f"int4 on the CPU takes matrices whose rows are a multiple of {rows} and whose columns are one of "
                f"{columns}; {name} is {shape[0]} x {shape[1]}.",
                "Choose --precision int8 or bf16.",
            )


def attention(running: Running, device: torch.device) -> dict[str, str]:
    """How the language model attends, as `attn_implementation`; empty leaves it to the library, which takes SDPA.

    Flash attention where it is installed; a compiled step reads key/values of fixed length with a mask, which it
    cannot.
    """
    half = compute_dtype(running, device) in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and half and not running.compiled and is_flash_attn_2_available():
        return {"text_config": "flash_attention_2"}
    return {}
