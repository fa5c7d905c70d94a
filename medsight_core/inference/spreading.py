"""A language model that is larger than one GPU: over all of them, and the rest in this machine's memory.

Everything else stays whole on the first GPU: it is small, every question needs all of it, and the perceiver is asked in
more ways than a hook on a module's forward sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from medsight_core.errors import MedSightError
from medsight_core.inference.precision import LANGUAGE_MODEL, PRECISE_PARTS
from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration

RESERVE: Final = 3 * 2**30
"""Bytes of the first GPU that weights leave free, for features of images and for key/values."""

RESERVE_OTHERS: Final = 2**30
"""Bytes of every other GPU that weights leave free, for key/values."""

Memory = dict[int | str, int]


def memory_here(device: torch.device) -> Memory:
    """Free bytes by device: GPUs by number, and "cpu"; without GPUs where ``device`` is none."""
    from accelerate.utils import get_max_memory

    free: Memory = get_max_memory()
    return free if device.type == "cuda" else {"cpu": free["cpu"]}


def spread(
    config: MedSightConfig, memory: Mapping[int | str, int], *, dtype: torch.dtype, quantized: str | None = None
) -> dict[str, int | str]:
    """Which part of the model goes where.

    Args:
        config: Of the model.
        memory: Free bytes by device, the first one first; from `memory_here`.
        dtype: Of the weights.
        quantized: "int8" or "int4" where the language model's are smaller.

    Returns:
        A device map as `from_pretrained` takes it.

    Raises:
        MedSightError: does_not_fit.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, compute_module_sizes

    with torch.device("meta"):
        model = MedSightForConditionalGeneration(config)
    sizes = compute_module_sizes(model, dtype=dtype)
    precise = sum(sizes.get(part, 0) for part in PRECISE_PARTS)
    core = model.model.language_model
    first = next(iter(memory))
    left = {
        place: max(0, size - (0 if place == "cpu" else RESERVE if place == first else RESERVE_OTHERS))
        for place, size in memory.items()
    }
    left[first] -= precise
    small = {"int8": torch.int8, "int4": CustomDtype.INT4}.get(quantized or "", dtype)
    words = {f"{name}.weight": dtype for name, module in core.named_modules() if isinstance(module, torch.nn.Embedding)}
    places: dict[str, int | str] = {"": "disk"}
    if left[first] >= 0:
        places = infer_auto_device_map(
            core,
            max_memory=left,
            no_split_module_classes=core._no_split_modules,
            dtype=small,
            special_dtypes=words,
        )
    gpus_only = quantized is not None and len(memory) > 1  # bitsandbytes does not split weights of few bits otherwise
    if "disk" in places.values() or (gpus_only and "cpu" in places.values()):
        need = precise + compute_module_sizes(core, dtype=small, special_dtypes=words)[""]
        have = sum(size for place, size in memory.items() if not (gpus_only and place == "cpu"))
        where = f"the GPUs, where weights in {quantized} must be:" if gpus_only else "this machine:"
        raise MedSightError(
            "does_not_fit",
            f"The weights take {need / 2**30:.1f} GiB and do not fit into {where} {have / 2**30:.1f} GiB are free in "
            "all, some of which answers need.",
            "Choose a smaller --precision, or see: medsight model plan.",
        )
    inner = {f"{LANGUAGE_MODEL}.{name}" if name else LANGUAGE_MODEL: place for name, place in places.items()}
    return {part: first for part in PRECISE_PARTS if part in sizes} | inner
