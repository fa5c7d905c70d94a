"""What can go wrong while a model works, and what that means: for one request, or for the device."""

from __future__ import annotations

import logging
import traceback
from typing import Final

import torch

from medsight_core.errors import MedSightError
from medsight_core.events import Failed

_log = logging.getLogger(__name__)

_STICKY: Final = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc error",
    "cuda error: unknown error",
    "hip error: unknown error",
    "context is destroyed",
    "device lost",
)
"""After these a device computes nothing more in this process."""

_NO_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, on the device or off it; with less to do it may go well."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def is_sticky(error: BaseException) -> bool:
    """Whether the device is lost to this process, so that everything asked of it from now on fails as well."""
    return (
        isinstance(error, RuntimeError)
        and not is_out_of_memory(error)
        and any(words in str(error).lower() for words in _STICKY)
    )


def failed_device() -> MedSightError:
    """What a request is told once the device is lost."""
    return MedSightError(
        "device_failed",
        "The device that the model runs on has failed and computes nothing more.",
        "Start MedSIGHT again; if it fails again, the driver or the device needs attention.",
    )


def failure(error: BaseException) -> Failed:
    """An exception as the end of a stream; what only a programmer understands goes to the log, without its words.

    The message of an exception may hold what a person typed, so it is neither sent nor logged.
    """
    if isinstance(error, MedSightError):
        return Failed(error.code, error.sentence, error.remedy)
    if is_out_of_memory(error):
        return Failed(
            "out_of_memory",
            "There is not enough memory for this, even with nothing else beside it.",
            "Ask about fewer slices at once, or later, when less is being asked.",
        )
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    _log.error(
        "a request failed with %s at %s",
        type(error).__name__,
        " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames)),  # no paths: they may name a person
    )
    return Failed(
        "failed",
        f"Something unexpected went wrong with this request ({type(error).__name__}).",
        "Ask again; if it fails again, please report it.",
    )
