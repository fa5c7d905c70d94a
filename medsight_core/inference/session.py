"""Interactive segmentation of one structure: draw on a slice, see its region, refine it, follow it through the volume.

Nothing is encoded twice. A click costs one pass of the perceiver over the slice's cached features: all that was drawn
on the slice goes along, with the current result as a mask. Following a region costs two passes per slice, which look
for what the slice before showed in two ways (see `propagation`). The same clicks give the same masks, every time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from medsight_core.errors import InputError
from medsight_core.events import Done, Event, Progress, RegionFound, Warning
from medsight_core.imaging.volume import Volume
from medsight_core.inference.inputs import draw_prompts, slice_transform, turned_warning
from medsight_core.inference.pointing import MASK_LEVEL, NOTHING_MARGIN, Pointed, Pointer
from medsight_core.inference.propagation import (
    AGREEMENT,
    AREA_CHANGE,
    Chain,
    check_range,
    join,
    prompts_for,
    shares,
)
from medsight_core.regions import Answer, Prompt, Provenance, Region, Span, VolumeRegion

if TYPE_CHECKING:
    from medsight_core.inference.engine import Engine

INSISTING: Final = 2
"""With so many prompts on a slice, or with a box or a mask, a person has said clearly that there is something."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawing:
    """A slice that a person worked on.

    Attributes:
        prompts: What was drawn there, oldest first.
        region: What came of it; None where there is nothing.
    """

    prompts: tuple[Prompt, ...]
    region: Region | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """Everything a step can change, so that undoing is going back to an earlier one.

    Attributes:
        drawings: By slice, in the order in which they were begun.
        followed: Regions of the slices that nobody drew on, by slice.
        shown: The slice that was worked on last.
        name: Code and label, where they were given; else those of the first drawing.
    """

    drawings: Mapping[int, Drawing] = field(default_factory=lambda: MappingProxyType({}))
    followed: Mapping[int, Region] = field(default_factory=lambda: MappingProxyType({}))
    shown: int | None = None
    name: tuple[str, str] | None = None

    def region(self, k: int) -> Region | None:
        """The region on a slice."""
        return self.drawings[k].region if k in self.drawings else self.followed.get(k)

    def regions(self) -> dict[int, Region]:
        """All regions by slice, ascending."""
        found = {k: self.region(k) for k in sorted({*self.drawings, *self.followed})}
        return {k: region for k, region in found.items() if region is not None}


class Session:
    """Work on one structure in one scan.

    Args:
        engine: Whose model and cached features are used; its language model is not.
        volume: The scan.

    Attributes:
        volume: The scan.
        pointed: What the model made of the last prompt, drawn or not.

    Raises:
        InputError: The model reads no prompts.
    """

    def __init__(self, engine: Engine, volume: Volume) -> None:
        if engine.model.model.prompt_encoder is None:
            raise InputError(
                "prompts_not_read", "This model does not read points, boxes or other prompts.", "Ask in words alone."
            )
        self.volume = volume
        self.pointed: Pointed | None = None
        self._engine = engine
        self._pointer = Pointer(model=engine.model, processor=engine.processor)
        self._state = State()
        self._past: list[State] = []
        self._future: list[State] = []
        self._chains: dict[tuple[Region, int], Chain] = {}
        self._encoded = 0
        self._seconds = {"encode": 0.0, "point": 0.0}

    @property
    def perceived(self) -> int:
        """Passes of the perceiver so far."""
        return self._pointer.passes

    @property
    def encoded(self) -> int:
        """Slices that had to be encoded so far; a slice that the engine still remembers is none."""
        return self._encoded

    @property
    def region(self) -> Region | None:
        """The region on the slice that was worked on last."""
        return None if self._state.shown is None else self._state.region(self._state.shown)

    def on_slice(self, k: int) -> Region | None:
        """The region on slice ``k``."""
        return self._state.region(k)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What was drawn on the slice that was worked on last."""
        drawing = None if self._state.shown is None else self._state.drawings.get(self._state.shown)
        return () if drawing is None else drawing.prompts

    @property
    def volume_region(self) -> VolumeRegion | None:
        """All slices' regions as one; None where there is none, or where the slices are no regular grid."""
        regions = self._state.regions()
        return self._join(self._state) if regions and self.volume.frame is not None else None

    @property
    def steps(self) -> int:
        """How many steps can be taken back."""
        return len(self._past)

    @property
    def bytes(self) -> int:
        """Memory that its masks take, with those of steps that were taken back."""
        regions = [region for state in (*self._past, self._state, *self._future) for region in state.regions().values()]
        regions += [region for chain in self._chains.values() for region in chain.regions]
        return sum({id(region): region.mask.nbytes for region in regions}.values())

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether a step was taken back that can be made again."""
        return bool(self._future)

    def add(self, prompt: Prompt, slice_index: int) -> Region | None:
        """One more prompt on a slice: the first one finds a region, further ones refine it.

        A mask replaces the region so far. Where the region was followed to this slice, it is refined all the same, and
        the next `propagate` starts from here as well.

        Args:
            prompt: What was drawn.
            slice_index: Where.

        Returns:
            The region on that slice; None where there is nothing.

        Raises:
            InputError: Before any work: slice_out_of_range; prompt_outside and other faults of the prompt;
                nothing_to_remove, where it only says "not here" and there is no region yet.
        """
        frame = self.volume.slice_frame(slice_index)
        known = self._state.drawings.get(slice_index)
        prompts = (*(known.prompts if known else ()), prompt)
        before = self._state.region(slice_index)
        marks = [one for one in prompts if one.kind != "mask"]
        if prompt.mask is not None:
            marks.append(prompt)
        elif before is not None:
            marks.append(Prompt(kind="mask", mask=before.mask))
        if not any(mark.positive for mark in marks):
            raise InputError(
                "nothing_to_remove",
                f"The {prompt.kind} says what does not belong to the region, but slice {slice_index} has none yet.",
                "Point at the structure first.",
            )
        raster = draw_prompts(marks, frame, slice_transform(self._engine.processor, frame))
        insisted = len(prompts) >= INSISTING or any(one.kind in ("box", "mask") for one in prompts)
        region = self._point([raster], slice_index, insisted=insisted)
        if region is not None and self._state.name is not None:
            region = replace(region, code=self._state.name[0], label=self._state.name[1])
        self._draw(slice_index, Drawing(prompts=prompts, region=region))
        return region

    def adopt(self, region: Region) -> Region:
        """Takes a region that came otherwise, such as from an answer in words; its code and label stay.

        Raises:
            InputError: slice_out_of_range, other_grid, empty_region.
        """
        frame = self.volume.slice_frame(region.slice_index)
        if not region.frame.is_close(frame):
            raise InputError(
                "other_grid", f'The region "{region.label}" does not lie on slice {region.slice_index} of this scan.'
            )
        if not region.area_pixels:
            raise InputError("empty_region", f'The region "{region.label}" has no pixels.', "Draw instead.")
        name = (region.code, region.label)
        self._draw(region.slice_index, Drawing(prompts=(), region=region), name=name)
        return region

    def undo(self) -> Region | None:
        """Takes the last step back, be it a prompt or a propagation, without any pass; returns `region`."""
        if self._past:
            self._future.append(self._state)
            self._state = self._past.pop()
        return self.region

    def redo(self) -> Region | None:
        """Makes again what was taken back; returns `region`."""
        if self._future:
            self._past.append(self._state)
            self._state = self._future.pop()
        return self.region

    def clear(self) -> None:
        """Forgets all that was drawn and found; can be undone."""
        if self._state.drawings:
            self._go_to(State())

    def propagate(self, slices: range | None = None, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        """Follows the region from every slice that was drawn on, in both directions.

        What was followed before and is not touched by a correction is not followed again.

        Args:
            slices: Where to; None for the whole volume.
            cancel: When it is set, the work ends before the next slice, with what there is.

        Returns:
            `Progress` per slice, then `RegionFound` with a `VolumeRegion`, then `Done`.

        Raises:
            InputError: Before any work: nothing_to_follow, one_slice, colour_volume, empty_range, slice_out_of_range,
                prompt_outside_range.
            MedSightError: Why the volume has no regular grid.
        """
        chosen = check_range(slices, list(self._state.drawings), self.volume)
        if not any(drawing.region is not None for drawing in self._state.drawings.values()):
            raise InputError(
                "nothing_to_follow", "There is no region yet that could be followed.", "Point at the structure first."
            )
        return self._propagate(chosen, cancel)

    def _propagate(self, slices: range, cancel: threading.Event | None) -> Iterator[Event]:
        state, chains, followed = self._state, {}, {}
        done, stopped = len(state.drawings), False
        for share in shares(state.drawings, slices):
            start = state.drawings[share.start].region
            if start is None:
                continue
            key = (start, share.direction)
            chain = chains[key] = self._chains.get(key) or Chain(start=start, direction=share.direction)
            while len(chain.regions) < share.length and not chain.ended:
                if stopped := cancel is not None and cancel.is_set():
                    break
                chain.add(self._follow(chain))
                done += 1
                yield Progress(min(done, len(slices)), len(slices), "Following the region")
            followed |= {region.slice_index: region for region in chain.regions[: share.length]}
            if stopped:
                break
        # Chains of regions that no longer start one are let go: they hold a mask per slice.
        self._chains = chains if not stopped else {**self._chains, **chains}
        self._go_to(replace(state, followed=MappingProxyType(followed)))
        found = self._join(self._state)
        warnings = ("The region was not followed to its end, because it was stopped.",) if stopped else ()
        yield Progress(len(slices), len(slices), "Following the region")
        yield from map(Warning, warnings)
        yield RegionFound(found)
        yield Done(self.answer(found, warnings))

    def answer(self, found: Region | VolumeRegion | None, warnings: Sequence[str] = ()) -> Answer:
        """A region as the answer that it is; its text is the label."""
        regions: tuple[Region, ...] = ()
        turned = () if self._state.shown is None else turned_warning(self.volume, self._state.shown)
        if isinstance(found, Region):
            regions = (replace(found, span=Span(0, len(found.label))),)
        return Answer(
            text="There is nothing at this place." if found is None else found.label,
            raw="" if found is None else f"{found.label}{found.code}",
            regions=regions,
            warnings=(*warnings, *turned),
            provenance=self.provenance(),
            volume_regions=(found,) if isinstance(found, VolumeRegion) else (),
        )

    def provenance(self) -> Provenance:
        """What was used so far."""
        settings: dict[str, Any] = {
            "mode": "interactive",
            "nothing_margin": NOTHING_MARGIN,
            "mask_level": MASK_LEVEL,
            "area_change": AREA_CHANGE,
            "agreement": AGREEMENT,
            "encoded": self.encoded,
            "perceived": self.perceived,
        }
        return Provenance(
            model=self._engine.name,
            digest=self._engine.digest,
            settings=settings,
            timings={**self._seconds, "total": sum(self._seconds.values())},
        )

    def _follow(self, chain: Chain) -> Region | None:
        """The region of the slice behind a chain's last."""
        k = chain.last.slice_index + chain.direction
        frame = self.volume.slice_frame(k)
        transform = slice_transform(self._engine.processor, frame)
        region = self._point([draw_prompts(some, frame, transform) for some in prompts_for(chain.last, frame)], k)
        return region if self.pointed is not None and self.pointed.agreement >= AGREEMENT else None

    def _point(self, rasters: Sequence[NDArray[np.float32]], k: int, *, insisted: bool = False) -> Region | None:
        start, features = time.perf_counter(), self._engine.features
        known = features.encoded
        vision = features.get(self.volume, [k])[0]
        self._encoded += features.encoded - known
        seen = time.perf_counter()
        self.pointed = self._pointer.point(vision, *rasters, modality=self.volume.modality)
        frame = self.volume.slice_frame(k)
        transform = slice_transform(self._engine.processor, frame)
        region = self.pointed.region(transform=transform, slice_index=k, frame=frame, insisted=insisted)
        self._seconds["encode"] += seen - start
        self._seconds["point"] += time.perf_counter() - seen
        return region

    def _join(self, state: State) -> VolumeRegion:
        regions = state.regions()
        first = next((d.region for d in state.drawings.values() if d.region is not None), next(iter(regions.values())))
        code, label = state.name or (first.code, first.label)
        drawn = [k for k, drawing in state.drawings.items() if drawing.region is not None]
        return join(regions, frame=self.volume.require_frame(), code=code, label=label, drawn_on=drawn)

    def _draw(self, k: int, drawing: Drawing, name: tuple[str, str] | None = None) -> None:
        drawings = MappingProxyType({**self._state.drawings, k: drawing})
        followed = MappingProxyType({at: region for at, region in self._state.followed.items() if at != k})
        name = name or self._state.name
        self._go_to(State(drawings=drawings, followed=followed, shown=k, name=name))

    def _go_to(self, state: State) -> None:
        self._past.append(self._state)
        self._future.clear()
        self._state = state
