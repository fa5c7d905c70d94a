"""Which ways there are to run a model on this machine, what each needs, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from medsight_core.models.footprint import PROGRAM, Footprint, Precision
from medsight_core.models.machine import Gpu, Machine

Place = Literal["GPU", "GPUs", "GPU and memory", "CPU"]
Fits = Literal["yes", "if others let go", "no"]

QUANTIZED: Final = "pip install 'medsight[quantized]'"

BESIDE: Final = PROGRAM + 2**30
"""Bytes of memory that are needed beside a GPU: the program, and scans."""

FIRST_RESERVE: Final = 3 * 2**30
"""Bytes of the first of several GPUs that weights leave free, as `medsight_core.inference.spreading` has it."""

OTHERS_RESERVE: Final = 2**30
"""Bytes of every other GPU."""

EACH: Final = {"fp32": 4, "bf16": 2}
"""Bytes of a value that is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A way to run a model.

    Attributes:
        precision: Of the weights.
        weights: Bytes that they take.
        working: Bytes beside them: a conversation, an image.
        place: Where it runs.
        gpu_bytes: Needed on the GPU, or on all of them together; 0 without one.
        memory_bytes: Needed beside, or instead.
        fits: "if others let go": there is enough, but other programs hold it now.
        arguments: What to add to a command.
        install: What has to be installed first; empty where all is there.
        why: What to know about it; empty where there is nothing.
    """

    precision: Precision
    place: Place
    weights: int
    working: int
    gpu_bytes: int
    memory_bytes: int
    fits: Fits
    arguments: tuple[str, ...]
    install: str = ""
    why: str = ""


def options(model: Footprint, machine: Machine) -> tuple[Option, ...]:
    """All ways, the one to be preferred first: on one GPU as exact as it fits, then on several, then shared with the
    memory, then without a GPU."""
    found = []
    gpus = () if machine.blind else machine.gpus
    if gpus:
        number, best = max(enumerate(gpus), key=lambda item: item[1].free)
        device = ("--device", f"cuda:{number}" if len(gpus) > 1 else "cuda")
        order: tuple[Precision, ...] = ("bf16", "fp32") if best.bfloat16 else ("fp32", "bf16")
        exact = [_on_gpu(model, machine, best, precision, device) for precision in order]
        small = [_on_gpu(model, machine, best, precision, device) for precision in ("int8", "int4")]
        several = [_together(model, machine, gpus)] if len(gpus) > 1 else []
        found = [*exact, *several, *small, _offloaded(model, machine, gpus)]
    cpu: tuple[Precision, ...] = ("fp32", "bf16", "int8", "int4")
    return (*found, *(_on_cpu(model, machine, precision) for precision in cpu))


def choose(found: tuple[Option, ...]) -> Option | None:
    """The first that fits now, else the first that would; None where none does."""
    for wanted in ("yes", "if others let go"):
        for option in found:
            if option.fits == wanted:
                return option
    return None


def _on_gpu(model: Footprint, machine: Machine, gpu: Gpu, precision: Precision, device: tuple[str, str]) -> Option:
    each = EACH.get(precision, 2)
    need = model.total(precision, each=each) + PROGRAM
    slow = precision == "bf16" and not gpu.bfloat16
    return Option(
        precision=precision,
        place="GPU",
        weights=model.weights(precision, each=each),
        working=model.working(each=each),
        gpu_bytes=need,
        memory_bytes=BESIDE,
        fits=_worse(_fits(need, gpu.free, gpu.bytes), _fits(BESIDE, machine.free, machine.memory)),
        arguments=(*device, "--precision", precision),
        install=_install(machine, precision),
        why=f"slow: {gpu.name} does not compute in bfloat16" if slow else "",
    )


def _together(model: Footprint, machine: Machine, gpus: tuple[Gpu, ...]) -> Option:
    weights = model.weights("bf16", each=2)
    free, total = (_room(model, sizes) for sizes in ([gpu.free for gpu in gpus], [gpu.bytes for gpu in gpus]))
    return Option(
        precision="bf16",
        place="GPUs",
        weights=weights,
        working=model.working(each=2),
        gpu_bytes=weights + FIRST_RESERVE + OTHERS_RESERVE * (len(gpus) - 1),
        memory_bytes=BESIDE,
        fits=_worse(_fits(weights, free, total), _fits(BESIDE, machine.free, machine.memory)),
        arguments=("--precision", "bf16", "--device-map", "auto"),
        install="" if machine.offloads else QUANTIZED,
    )


def _offloaded(model: Footprint, machine: Machine, gpus: tuple[Gpu, ...]) -> Option:
    """What does not fit on the GPUs lies in memory, and is brought to them for every token."""
    weights = model.weights("bf16", each=2)
    on_gpus = min(weights, _room(model, [gpu.free for gpu in gpus]))
    rest = weights - on_gpus + BESIDE
    return Option(
        precision="bf16",
        place="GPU and memory",
        weights=weights,
        working=model.working(each=2),
        gpu_bytes=on_gpus + FIRST_RESERVE + OTHERS_RESERVE * (len(gpus) - 1),
        memory_bytes=rest,
        fits=_fits(rest, machine.free, machine.memory) if on_gpus else "no",
        arguments=("--precision", "bf16", "--device-map", "auto"),
        install="" if machine.offloads else QUANTIZED,
        why="slow: layers travel to the GPU for every word",
    )


def _room(model: Footprint, sizes: Sequence[int]) -> int:
    """Bytes of weights that GPUs of these sizes take among them; none where the first cannot hold what is not split."""
    first, *others = sizes
    if first - FIRST_RESERVE < model.whole * 2:
        return 0
    return first - FIRST_RESERVE + sum(max(0, size - OTHERS_RESERVE) for size in others)


def _on_cpu(model: Footprint, machine: Machine, precision: Precision) -> Option:
    each = EACH.get(precision, 4)
    need = model.total(precision, each=each) + PROGRAM
    weights = model.weights(precision, each=each)
    return Option(
        precision=precision,
        place="CPU",
        weights=weights,
        working=model.working(each=each),
        gpu_bytes=0,
        memory_bytes=need,
        fits=_fits(need, machine.free, machine.memory),
        arguments=("--device", "cpu", "--precision", precision),
        install=_install(machine, precision),
        why="slow: every word reads all weights from memory" if weights > 4e9 else "",
    )


def _install(machine: Machine, precision: Precision) -> str:
    """What 8 and 4 bits need."""
    return QUANTIZED if precision in ("int8", "int4") and not (machine.quantises and machine.offloads) else ""


def _fits(need: int, free: int, total: int) -> Fits:
    return "yes" if need <= free else "if others let go" if need <= total else "no"


def _worse(one: Fits, other: Fits) -> Fits:
    order: tuple[Fits, ...] = ("yes", "if others let go", "no")
    return max(one, other, key=order.index)
