"""What is kept of volumes between questions, within a budget of bytes.

Volumes are told apart by what they are, not by what they hold: a volume that is gone takes what is kept of it along.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

import torch

from medsight_core.imaging.volume import Volume

Kept = TypeVar("Kept")


class VolumeMemory(Generic[Kept]):
    """Remembers values that were made of a volume; those that were used last stay. Safe to share between threads.

    Args:
        budget: Bytes that are kept; the value that was used last always is.
    """

    def __init__(self, *, budget: int) -> None:
        self.budget = budget
        self._kept: OrderedDict[tuple[int, Hashable], tuple[Kept, int]] = OrderedDict()
        self._bytes = 0
        # Volumes by their id, which another one may get once they are gone.
        self._volumes: dict[int, weakref.ref[Volume]] = {}
        self._lock = threading.RLock()  # a volume may be collected, and forgotten, in the middle of our own work

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return self._bytes

    def get(self, volume: Volume, key: Hashable) -> Kept | None:
        """What is kept of a volume under a key."""
        with self._lock:
            self._recognise(volume)
            name = (id(volume), key)
            if name not in self._kept:
                return None
            self._kept.move_to_end(name)
            return self._kept[name][0]

    def put(self, volume: Volume, key: Hashable, value: Kept) -> None:
        """Keeps a value, and lets go of those that were not used for longest where the budget is exceeded."""
        with self._lock:
            self._recognise(volume)
            name = (id(volume), key)
            self._drop(name)
            size = size_of(value)
            self._kept[name] = (value, size)
            self._bytes += size
            while self._bytes > self.budget and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))

    def forget(self, volume: Volume) -> None:
        """Lets go of all that is kept of a volume."""
        self._forget(id(volume))

    def clear(self) -> None:
        """Lets go of everything."""
        with self._lock:
            for name in list(self._volumes):
                self._forget(name)

    def _recognise(self, volume: Volume) -> None:
        name = id(volume)
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
                self._drop(key)

    def _drop(self, name: tuple[int, Hashable]) -> None:
        if name in self._kept:
            self._bytes -= self._kept.pop(name)[1]


def size_of(value: Any) -> int:
    """Bytes of the tensors in a value: a tensor, a dataclass or a tuple of such."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if is_dataclass(value):
        return sum(size_of(getattr(value, field.name)) for field in fields(value))
    return sum(map(size_of, value)) if isinstance(value, tuple) else 0
