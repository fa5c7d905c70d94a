"""A backend without a model: it finds what is bright, so that the place of a mask is known exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from scipy import ndimage

from medsight_core.backend import PROTOCOL, Handle, Info, SegmentRequest, Whole
from medsight_core.errors import InputError
from medsight_core.events import Done, Event, Progress, RegionFound, TextDelta
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Answer, Provenance, Question, Region, Span, VolumeRegion

BRIGHT: Final = 1000
"""Values that are found."""


class Brightness:
    """Finds the bright structure at a click or by name; asked in words, all that is bright on the slice."""

    def info(self) -> Info:
        return Info(
            version="0",
            protocol=PROTOCOL,
            model="brightness",
            digest="d" * 64,
            device="cpu",
            dtype="float32",
            classes=("small one", "nothing", "large one"),
            capabilities=frozenset({"ask", "segment", "volumes", "prompts"}),
        )

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        volume = request.volume
        numbered, count = ndimage.label(volume.array >= BRIGHT)
        mask = np.zeros(volume.array.shape, dtype=bool)
        if request.text:
            sizes = {n: int((numbered == n).sum()) for n in range(1, count + 1)}
            wanted = {"small one": min(sizes, key=sizes.__getitem__), "large one": max(sizes, key=sizes.__getitem__)}
            if request.text in wanted:
                mask = numbered == wanted[request.text]
        for stroke in request.strokes:
            frame = volume.slice_frame(stroke.slice_index)
            _, rows, columns = frame.to_index(stroke.prompt.points).T
            if stroke.prompt.kind == "box":
                inside = mask[stroke.slice_index][
                    round(rows.min()) : round(rows.max()) + 1, round(columns.min()) : round(columns.max()) + 1
                ]
                inside[:] = True
                continue
            at = stroke.slice_index, round(rows[0]), round(columns[0])
            if not (0 <= at[1] < mask.shape[1] and 0 <= at[2] < mask.shape[2]):
                raise InputError("prompt_outside", "The point lies outside the slice.")
            found = numbered == numbered[at] if numbered[at] else np.zeros_like(mask)
            mask = mask | found if stroke.prompt.positive else mask & ~found
        regions: dict[str, Any] = {"regions": ()}
        common = {"code": "[C0_0]", "label": "bright", "span": Span(0, 0), "score": 0.9}
        if request.whole:
            found_there = VolumeRegion(**common, mask=mask, frame=volume.require_frame())
            regions["volume_regions"] = (found_there,)
        else:
            k = request.slice_index
            found_there = Region(**common, slice_index=k, mask=mask[k], frame=volume.slice_frame(k))
            regions["regions"] = (found_there,)
        yield RegionFound(found_there)
        yield Done(Answer(text="", raw="", warnings=(), provenance=Provenance(model="b", digest="d"), **regions))

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        k = question.slice_index
        values = question.volume.slice_array(k)
        mask = (values if values.ndim == 2 else values.max(axis=2)) >= BRIGHT
        text = "Something bright."
        region = Region(
            code="[C0_0]",
            label="bright",
            span=Span(10, 16),
            score=0.9,
            slice_index=k,
            mask=mask,
            frame=question.volume.slice_frame(k),
        )
        yield TextDelta(text)
        yield RegionFound(region)
        origin = Provenance(model="brightness", digest="d" * 64)
        yield Done(Answer(text=text, raw="Something bright[C0_0].", regions=(region,), warnings=(), provenance=origin))

    def open(self, volume: Volume, *, on_progress: Callable[[Progress], None] = lambda progress: None) -> Handle:
        return Handle(volume=volume)

    def close(self) -> None:
        pass
