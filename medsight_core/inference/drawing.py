"""Structures while they are drawn slice by slice, and what comes of them: regions throughout the volume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsight_core.geometry import Frame
from medsight_core.imaging.planes import Reformatted
from medsight_core.inference.composing import key_of
from medsight_core.inference.decoding import WrittenCode
from medsight_core.inference.grounding import Placed
from medsight_core.inference.joining import ISLAND, join
from medsight_core.inference.reply import Reading
from medsight_core.inference.transcript import Mention
from medsight_core.naming import is_lesion
from medsight_core.regions import Span, VolumeRegion

SURE: Final = 0.6
"""On a slice that was not read a structure is drawn only where its pixels are, on average, at least this probable."""


@dataclass(slots=True, kw_only=True, eq=False)
class Structure:
    """One structure of a volume while it is drawn.

    Attributes:
        label: What it is.
        written: The codes for it on each slice that was read.
        denied: Slices on which the model said that there is none.
        drawn: By slice of the plane, its mask as `numpy.packbits` gives it: many structures of a large scan fit so.
    """

    label: str
    written: dict[int, list[tuple[WrittenCode, Mention]]] = field(default_factory=dict)
    denied: frozenset[int] = frozenset()
    drawn: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    _sure: float = 0.0
    _pixels: int = 0

    @property
    def probability(self) -> float:
        """How likely the model held its codes, on average over the slices where it wrote them."""
        best = [max(code.probability for code, _ in codes) for codes in self.written.values()]
        return sum(best) / len(best) if best else 0.0

    @property
    def code(self) -> str:
        """The code that the model was surest of."""
        codes = [pair for k in sorted(self.written) for pair in self.written[k]]
        return max(codes, key=lambda pair: pair[0].probability)[1].code

    def codes_for(self, k: int, *, backwards: bool = False) -> list[WrittenCode]:
        """The codes that are drawn on a slice: of the nearest slice that was read and has them, the first of two.

        Args:
            k: The slice.
            backwards: See `Reformatted.backwards`.
        """
        nearest = min(self.written, key=lambda read: (abs(read - k), -read if backwards else read))
        return [code for code, _ in self.written[nearest]]

    def add(self, k: int, placed: Placed) -> None:
        """Puts a mask on a slice; several on one slice are joined."""
        packed = np.packbits(placed.mask)
        self.drawn[k] = self.drawn[k] | packed if k in self.drawn else packed
        pixels = int(np.count_nonzero(placed.mask))
        self._sure += placed.certainty * pixels
        self._pixels += pixels

    def region(
        self, cut: Reformatted, frame: Frame, *, code: str, probability: float, keys: Iterable[int], joined: bool
    ) -> tuple[VolumeRegion | None, tuple[str, ...]]:
        """The structure on the scan's own grid, and what was changed when its slices were joined.

        Args:
            cut: The plane it was drawn in.
            frame: Of the scan.
            code: Its name.
            probability: Of its code.
            keys: Slices of the plane that it rests on, where it is on them.
            joined: Whether islands go and holes are filled.
        """
        if not self.drawn:
            return None, ()
        assert cut.volume.frame is not None
        steps: tuple[str, ...] = ()
        mask = np.zeros(cut.volume.array.shape[:3], dtype=bool)
        for k, packed in self.drawn.items():
            mask[k] = np.unpackbits(packed, count=mask[k].size).reshape(mask.shape[1:])
        if joined:
            done = join(mask, cut.volume.frame, label=self.label, island=0.0 if is_lesion(self.label) else ISLAND)
            mask, steps = done.mask, done.steps
        score = min(1.0, probability * self._sure / self._pixels)
        whole = np.ascontiguousarray(cut.back(mask))
        region = VolumeRegion(
            code=code,
            label=self.label,
            span=Span(0, 0),
            score=score,
            mask=whole,
            frame=frame,
            key_slices=acquired(cut, whole, [k for k in keys if k in self.drawn]),
        )
        return region, steps


def acquired(cut: Reformatted, mask: NDArray[np.bool_], keys: Iterable[int]) -> tuple[int, ...]:
    """Slices of the scan that stand for slices of a plane.

    In another plane than the scan's own a slice crosses all of the scan's; the one that has most of the mask in common
    with it stands for it.
    """
    found = []
    for k in keys:
        index = cut.index(k)
        if cut.axis:
            areas = np.take(mask, index, axis=cut.axis).sum(axis=1)
            if not areas.any():
                continue
            index = int(areas.argmax())
        found.append(index)
    return tuple(sorted(set(found)))


def structures(readings: Mapping[int, Reading], denied: Mapping[int, Sequence[str]]) -> dict[str, Structure]:
    """What the model pointed at on any of the slices that it read, by `key_of` its label, in the order of slices.

    Args:
        readings: By slice.
        denied: By slice, the keys of structures that it said are not there.
    """
    found: dict[str, Structure] = {}
    for k in sorted(readings):
        reading = readings[k]
        for code, mention in zip(reading.codes, reading.mentions, strict=True):
            structure = found.setdefault(key_of(mention.label), Structure(label=mention.label))
            structure.written.setdefault(k, []).append((code, mention))
    for key, structure in found.items():
        structure.denied = frozenset(k for k, keys in denied.items() if key in keys and k not in structure.written)
    return found
