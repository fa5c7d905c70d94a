"""Slices that were looked at: the encoder's features of a scan's slices, kept within a memory budget.

A click, a further question and a whole volume look at the same slices again and again; the encoder does it once. What
is seen of a slice never depends on which slices went through the encoder with it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import torch

from medsight_core.imaging.volume import Volume
from medsight_core.inference.inputs import slice_pixels
from medsight_core.inference.memory import VolumeMemory
from medsight_core.model import MedSightForConditionalGeneration, MedSightProcessor
from medsight_core.model.vision import VisionFeatures

BUDGET: Final = 1 << 30
"""Bytes of features that are kept, unless the caller says otherwise."""

TOGETHER_ON_GPU: Final = 16
"""Slices per pass of the encoder on a GPU; a smaller group is filled up, so that every pass does the same sums."""


class SliceFeatures:
    """Encodes slices and remembers those that were used last. Safe to share between threads.

    On a CPU slices go through one by one, which is as fast, and bit for bit the same whatever else is asked for; on a
    GPU in passes of one fixed size.

    Args:
        model: The model, on its device.
        processor: Of the same checkpoint.
        device: Where the model runs.
        budget: Bytes that are kept; the slice that was used last always is.
    """

    def __init__(
        self,
        *,
        model: MedSightForConditionalGeneration,
        processor: MedSightProcessor,
        device: torch.device,
        budget: int = BUDGET,
    ) -> None:
        self.encoded = 0
        """Slices encoded so far."""
        self._model = model
        self._processor = processor
        self._device = device
        self.together = TOGETHER_ON_GPU if device.type == "cuda" else 1
        """Slices of one pass."""
        self._memory: VolumeMemory[VisionFeatures] = VolumeMemory(budget=budget)
        self._lock = threading.Lock()

    @property
    def budget(self) -> int:
        """Bytes that are kept at most."""
        return self._memory.budget

    @budget.setter
    def budget(self, budget: int) -> None:
        self._memory.budget = budget

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return self._memory.bytes

    def get(self, volume: Volume, indices: Sequence[int], *, keep: bool = True) -> list[VisionFeatures]:
        """Features of slices, in the order of ``indices``, each as a batch of one.

        Args:
            volume: The scan.
            indices: Slices, from 0; they may repeat.
            keep: Remember them; a pass over a whole volume would crowd out what somebody works on.

        Raises:
            InputError: slice_out_of_range.
        """
        here: dict[int, VisionFeatures] = {}
        for k in indices:
            if (kept := self._memory.get(volume, k)) is not None:
                here[k] = kept
        missing = [k for k in dict.fromkeys(indices) if k not in here]
        for start in range(0, len(missing), self.together):
            part = missing[start : start + self.together]
            here.update(zip(part, self._encode([(volume, k) for k in part]), strict=True))
        if keep:
            for k in indices:
                self._memory.put(volume, k, here[k])
        return [here[k] for k in indices]

    def look_ahead(self, slices: Sequence[tuple[Volume, int]]) -> None:
        """Encodes slices of several scans that are about to be asked for, where that is less work than one by one."""
        missing = [(volume, k) for volume, k in slices if self._memory.get(volume, k) is None]
        for start in range(0, len(missing) if self.together > 1 else 0, self.together):
            part = missing[start : start + self.together]
            for (volume, k), features in zip(part, self._encode(part), strict=True):
                self._memory.put(volume, k, features)

    def forget(self, volume: Volume) -> None:
        """Lets go of all that is kept of a volume."""
        self._memory.forget(volume)

    def clear(self) -> None:
        """Lets go of everything."""
        self._memory.clear()

    @torch.inference_mode()
    def _encode(self, slices: Sequence[tuple[Volume, int]]) -> list[VisionFeatures]:
        pixels = [slice_pixels(self._processor, volume, k) for volume, k in slices]
        pixels += [pixels[-1]] * (self.together - len(pixels))
        batch = torch.stack(pixels).to(device=self._device, dtype=self._model.dtype)
        seen = self._model.model.vision(batch)
        with self._lock:
            self.encoded += len(slices)
        if self.together == 1:
            return [seen]
        # Copies: a view would keep the features of the whole pass.
        return [
            VisionFeatures(
                grid=seen.grid[n : n + 1].clone(),
                details=tuple(detail[n : n + 1].clone() for detail in seen.details),
                summary=seen.summary[n : n + 1].clone(),
            )
            for n in range(len(slices))
        ]
