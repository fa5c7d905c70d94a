"""The beginning of a conversation, read once: key/values of prompts that are remembered.

A prompt is read in fixed pieces: the image with what stands before it, then one turn after the other. Every piece is
read by a pass of its own, whether what stands before it was just read or is remembered, so that a remembered beginning
gives bit for bit what a fresh one gives. A second question on the same slice reads its own words alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from medsight_core.inference.decoding import Prefilled, prefill
from medsight_core.inference.inputs import Inputs
from medsight_core.inference.memory import VolumeMemory
from medsight_core.model import MedSightForConditionalGeneration

BUDGET: Final = 1 << 29
"""Bytes of key/values that are kept, unless the caller says otherwise."""


class Prefixes:
    """Reads prompts, and remembers their pieces within a memory budget. Safe to share between threads.

    Args:
        model: The model, on its device.
        budget: Bytes that are kept.
    """

    def __init__(self, *, model: MedSightForConditionalGeneration, budget: int = BUDGET) -> None:
        self.memory: VolumeMemory[Prefilled] = VolumeMemory(budget=budget)
        self.read = 0
        """Tokens that were read so far; those that were remembered are none."""
        self._model = model

    def prefill(self, made: Inputs, embeds: Tensor, *, remember: bool = True) -> Generator[None, None, Prefilled]:
        """Reads a prompt, a piece at each step.

        Args:
            made: The question made ready.
            embeds: Its prompt `(1, length, hidden)`.
            remember: Keep the pieces; what is read by the hundred would crowd out what somebody works on.

        Returns:
            The prompt, read up to where the model goes on.
        """
        volume = made.question.volume
        pieces: list[Prefilled] = []
        name = hashlib.sha256(made.looks_at)
        for start, stop in pairwise((0, *made.cuts, len(made.input_ids))):
            name.update(made.input_ids[start:stop].numpy().tobytes() + b"|")
            piece = self.memory.get(volume, name.digest())
            if piece is None:
                read = prefill(self._model, embeds[:, start:stop], _joined(pieces) if pieces else None)
                piece = _behind(read, start)
                self.read += stop - start
                if remember:
                    self.memory.put(volume, name.digest(), piece)
                yield
            pieces.append(piece)
        return _joined(pieces)


@torch.inference_mode()
def _joined(pieces: Sequence[Prefilled]) -> Prefilled:
    """Pieces behind each other."""
    layers = zip(*(piece.layers for piece in pieces), strict=True)
    return Prefilled(
        layers=tuple(
            (torch.cat([k for k, _ in one], dim=-2), torch.cat([v for _, v in one], dim=-2)) for one in layers
        ),
        hidden=pieces[-1].hidden,
    )


@torch.inference_mode()
def _behind(read: Prefilled, start: int) -> Prefilled:
    """The part from a token on, in memory of its own."""
    layers = tuple((keys[:, :, start:].clone(), values[:, :, start:].clone()) for keys, values in read.layers)
    return Prefilled(layers=layers, hidden=read.hidden)
