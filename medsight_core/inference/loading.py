"""Builds model and processor of a checkpoint whose files are whole, and makes sure that they belong together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from medsight_core.errors import CheckpointError, InputError
from medsight_core.inference.checkpoint import COPY_AGAIN, Checkpoint, require_tensors
from medsight_core.inference.precision import attention, compute_dtype, quantization, require_packable
from medsight_core.inference.running import Running
from medsight_core.inference.spreading import memory_here, spread
from medsight_core.model import MedSightConfig, MedSightForConditionalGeneration, MedSightProcessor


def load(
    checkpoint: Checkpoint, running: Running | None = None
) -> tuple[MedSightForConditionalGeneration, MedSightProcessor]:
    """Model and processor of a checkpoint.

    Weights go from their files, which are mapped into memory and not read into it, to where they are used, one tensor
    after the other.

    Args:
        checkpoint: As `open_checkpoint` gives it.
        running: Where and how precisely; None for the CPU in fp32.

    Raises:
        CheckpointError: Configuration, weights and tokenizer do not belong together.
        InputError: The device is not there, or cannot do what is wanted.
        MedSightError: does_not_fit; missing_package.
    """
    running = running or Running(device="cpu")
    device = choose_device(running.device)
    config = read_config(checkpoint)
    shapes = expected_shapes(config)
    require_tensors(checkpoint, shapes)
    require_packable(running, device, shapes)
    processor = read_processor(checkpoint, config)
    options = placing(config, running, device)
    with quiet_loading():
        model = MedSightForConditionalGeneration.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=compute_dtype(running, device),
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
    return (model if "device_map" in options else model.to(device)), processor


def placing(config: MedSightConfig, running: Running, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told about devices, weights of few bits, and attention.

    Raises:
        InputError: The device cannot do what is wanted.
        MedSightError: does_not_fit; missing_package.
    """
    running.require_packages()
    options: dict[str, Any] = {}
    if attends := attention(running, device):
        options["attn_implementation"] = attends
    small = quantization(running, device)
    if small is not None:
        options["quantization_config"] = small
    if running.device_map is not None:
        memory = memory_here(device)
        options["device_map"] = spread(
            config, memory, dtype=compute_dtype(running, device), quantized=running.quantized
        )
    elif small is not None or (device.type != "cpu" and find_spec("accelerate") is not None):
        options["device_map"] = {"": device}
    return options


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        InputError: There is none of that name here.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if present[kind]))
    try:
        device = torch.device(name)
        known = present.get(device.type, False) and (
            device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
        )
    except RuntimeError:
        known = False
    if not known:
        here = ", ".join(kind for kind, is_here in present.items() if is_here)
        raise InputError("bad_device", f'There is no device "{name}" here; present: {here}.', "Choose one, or auto.")
    return device


def share_device(name: str, number: int) -> str:
    """The device for one of several processes: where there are several GPUs and none is named, each gets its turn.

    Args:
        name: As `choose_device` takes it.
        number: Of the process, from 0.
    """
    count = torch.cuda.device_count() if name in ("auto", "cuda") else 0
    return f"cuda:{number % count}" if count > 1 else name


def read_config(checkpoint: Checkpoint) -> MedSightConfig:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: bad_config.
    """
    try:
        return MedSightConfig.from_dict(copy.deepcopy(dict(checkpoint.config)))
    except Exception as error:  # whatever the library raises over values that strangers wrote
        raise CheckpointError(
            "bad_config",
            f"{checkpoint.folder / 'config.json'} does not describe a model ({one_line(error)}).",
            COPY_AGAIN,
        ) from error


def expected_shapes(config: MedSightConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint of this configuration must store.

    Raises:
        CheckpointError: bad_config.
    """
    try:
        with torch.device("meta"):
            model = MedSightForConditionalGeneration(config)
    except Exception as error:
        raise CheckpointError(
            "bad_config",
            f"No model can be built from config.json ({one_line(error)}).",
            COPY_AGAIN,
        ) from error
    tied = set(model.all_tied_weights_keys)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def read_processor(checkpoint: Checkpoint, config: MedSightConfig) -> MedSightProcessor:
    """Tokenizer and image processor of a checkpoint, and whether they belong to its configuration.

    Raises:
        CheckpointError: bad_processor, bad_vocabulary.
    """
    try:
        processor = MedSightProcessor.from_pretrained(checkpoint.folder, local_files_only=True)
        processor(text=processor.chat("?"))
        size = len(processor.tokenizer)
    except Exception as error:
        raise CheckpointError(
            "bad_processor",
            f"The tokenizer or image processor in {checkpoint.folder} cannot be used ({one_line(error)}).",
            COPY_AGAIN,
        ) from error
    ids = set(processor.codes.token_ids.values())
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if (
        size > config.text_config.vocab_size
        or image != config.image_token_id
        or (config.code_token_ids and set(config.code_token_ids) != ids)
    ):
        raise CheckpointError(
            "bad_vocabulary",
            f"The tokenizer in {checkpoint.folder} and config.json number the tokens differently.",
            "Copy both from the same checkpoint.",
        )
    return processor


def one_line(error: BaseException) -> str:
    """An error of a library in a few words."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps the library's own progress bar from the terminal, which is the command's."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
