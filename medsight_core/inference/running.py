"""How a model is to run on this machine, as a person chooses it; without torch, so that it is checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from medsight_core.errors import InputError, MedSightError

PRECISIONS: Final = ("auto", "fp32", "bf16", "fp16", "int8", "int4")
QUANTIZED: Final = ("int8", "int4")
"""Precisions of the language model alone: image encoder, perceiver, projectors and word head stay as they are."""

DEVICE_MAPS: Final = ("auto",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where and how precisely a model computes.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: One of `PRECISIONS`; "auto" is bf16 on CUDA and fp32 elsewhere. How the weights are stored does not
            matter.
        device_map: "auto" spreads the language model over all GPUs and, where they do not suffice, this machine's
            memory; None keeps everything on `device`.
        compiled: Compile the decode loop for fixed shapes (CUDA): each answer is written faster, after a wait at the
            first.
    """

    device: str = "auto"
    precision: str = "auto"
    device_map: str | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                "bad_precision",
                f'There is no precision "{self.precision}".',
                f"Choose one of {', '.join(PRECISIONS)}; int8 and int4 are of the language model alone.",
            )
        if self.device_map is not None and self.device_map not in DEVICE_MAPS:
            raise InputError(
                "bad_device_map",
                f'There is no device map "{self.device_map}"; auto spreads the language model over GPUs and memory.',
                "Say --device-map auto, or leave it out and name one device with --device.",
            )
        if self.device_map is not None and self.compiled:
            raise InputError(
                "bad_device_map",
                "A decode loop cannot be compiled for a model that is spread over devices.",
                "Leave out --compile or --device-map.",
            )
        if self.quantized and self.compiled:
            raise InputError(
                "bad_precision",
                f"A decode loop cannot be compiled over weights in {self.quantized}.",
                "Leave out --compile, or choose --precision bf16.",
            )

    def require_packages(self) -> None:
        """Makes sure that what is chosen is installed, before anything large is read.

        Raises:
            MedSightError: missing_package.
        """
        what = f"--precision {self.precision}" if self.quantized else "--device-map auto"
        needed = ("bitsandbytes", "accelerate") if self.quantized else ("accelerate",) if self.device_map else ()
        for package in needed:
            if find_spec(package) is None:
                raise MedSightError(
                    "missing_package",
                    f"{what} needs {package}, which is not installed.",
                    "Install it with: pip install 'medsight[quantized]'; or leave the option out.",
                )

    @property
    def quantized(self) -> str | None:
        """The precision of the language model's weights where it is not that of the rest."""
        return self.precision if self.precision in QUANTIZED else None
