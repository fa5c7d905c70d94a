"""Slices that were looked at: the encoder's features of a scan's slices, kept within a memory budget.

A click, a further question and a whole volume look at the same slices again and again; the encoder does it once. What
is seen of a slice never depends on which slices went through the encoder with it.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

import torch

from medsight_core.imaging.volume import Volume
from medsight_core.inference.inputs import slice_pixels
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
        self.budget = budget
        self.encoded = 0
        """Slices encoded so far."""
        self._model = model
        self._processor = processor
        self._device = device
        self.together = TOGETHER_ON_GPU if device.type == "cuda" else 1
        """Slices of one pass."""
        self._kept: OrderedDict[tuple[int, int], VisionFeatures] = OrderedDict()
        self._bytes = 0
        # Volumes by their id, which another one may get once they are gone; their features go with them.
        self._volumes: dict[int, weakref.ref[Volume]] = {}
        self._lock = threading.RLock()  # a volume may be collected, and forgotten, in the middle of our own work

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return self._bytes

    def get(self, volume: Volume, indices: Sequence[int], *, keep: bool = True) -> list[VisionFeatures]:
        """Features of slices, in the order of ``indices``, each as a batch of one.

        Args:
            volume: The scan.
            indices: Slices, from 0; they may repeat.
            keep: Remember them; a pass over a whole volume would crowd out what somebody works on.

        Raises:
            InputError: slice_out_of_range.
        """
        self._remember(volume)
        here: dict[int, VisionFeatures] = {}
        with self._lock:
            for k in indices:
                if (id(volume), k) in self._kept:
                    here[k] = self._kept[(id(volume), k)]
        missing = [k for k in dict.fromkeys(indices) if k not in here]
        for start in range(0, len(missing), self.together):
            part = missing[start : start + self.together]
            here.update(zip(part, self._encode(volume, part), strict=True))
        if keep:
            with self._lock:
                for k in indices:
                    self._keep((id(volume), k), here[k])
        return [here[k] for k in indices]

    def forget(self, volume: Volume) -> None:
        """Lets go of all that is kept of a volume."""
        self._forget(id(volume))

    @torch.inference_mode()
    def _encode(self, volume: Volume, indices: Sequence[int]) -> list[VisionFeatures]:
        pixels = [slice_pixels(self._processor, volume, k) for k in indices]
        pixels += [pixels[-1]] * (self.together - len(pixels))
        batch = torch.stack(pixels).to(device=self._device, dtype=self._model.dtype)
        seen = self._model.model.vision(batch)
        with self._lock:
            self.encoded += len(indices)
        if self.together == 1:
            return [seen]
        # Copies: a view would keep the features of the whole pass.
        return [
            VisionFeatures(
                grid=seen.grid[n : n + 1].clone(),
                details=tuple(detail[n : n + 1].clone() for detail in seen.details),
                summary=seen.summary[n : n + 1].clone(),
            )
            for n in range(len(indices))
        ]

    def _remember(self, volume: Volume) -> None:
        name = id(volume)
        with self._lock:
            known = self._volumes.get(name)
            if known is None or known() is not volume:
                self._forget(name)
                self._volumes[name] = weakref.ref(volume, lambda gone: self._collected(name, gone))

    def _collected(self, name: int, gone: weakref.ref[Volume]) -> None:
        with self._lock:
            if self._volumes.get(name) is gone:
                self._forget(name)

    def _forget(self, name: int) -> None:
        with self._lock:
            self._volumes.pop(name, None)
            for key in [key for key in self._kept if key[0] == name]:
                self._bytes -= size_of(self._kept.pop(key))

    def _keep(self, key: tuple[int, int], features: VisionFeatures) -> None:
        if key not in self._kept:
            self._kept[key] = features
            self._bytes += size_of(features)
        self._kept.move_to_end(key)
        while self._bytes > self.budget and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= size_of(oldest)


def size_of(value: Any) -> int:
    """Bytes of the tensors in a value: a tensor, a dataclass or a tuple of such."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if is_dataclass(value):
        return sum(size_of(getattr(value, field.name)) for field in fields(value))
    return sum(map(size_of, value)) if isinstance(value, tuple) else 0
