"""Structures looked for by name, without words: what the region queries of every slice take themselves for.

It costs one look at each slice and answers for all names at once, so that a report and questions about a volume rest on
the same evidence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from medsight_core.errors import MedSightError
from medsight_core.events import Progress
from medsight_core.inference.drawing import Structure
from medsight_core.inference.grounding import place
from medsight_core.inference.inputs import slice_transform
from medsight_core.inference.looking import Looked
from medsight_core.inference.nearest import nearest_code
from medsight_core.inference.plan import Plan
from medsight_core.inference.presence import PRESENT, choose_key_slices, strength
from medsight_core.inference.reply import Stopwatch
from medsight_core.inference.stopping import Stopped, check_stop, stoppable
from medsight_core.naming import find_names, unknown_name
from medsight_core.regions import Provenance, VolumeRegion
from medsight_core.terminology import normal_words

if TYPE_CHECKING:
    from medsight_core.inference.volumes import VolumeEngine

RESTS_ON = 5
"""Slices that a structure of a survey is said to rest on, at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """What was looked for in a volume, and what was found.

    Attributes:
        regions: By name, where each structure is; None where it was not found.
        presence: By name, how likely each slice shows it, 0 to 1, by slice of the plane.
        slices: The slices of the plane that were looked at.
        words: What they are called, such as "axial"; "" where that is not known.
        known: What the model was taught to find in such a scan, and what was looked for beside it.
        warnings: Plain sentences that belong beside it.
        provenance: Model, digest, settings, timings.
    """

    regions: Mapping[str, VolumeRegion | None]
    presence: Mapping[str, Mapping[int, float]]
    slices: tuple[int, ...]
    words: str
    known: tuple[str, ...]
    warnings: tuple[str, ...]
    provenance: Provenance


def classes_of(names: Sequence[str], known: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The classes, by their number in ``known``, that each name stands for.

    Raises:
        InputError: unknown_structure.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        named = (name,) if name in known else getattr(find_names(normal_words(name), known), "names", ())
        if not named:
            raise unknown_name(name, known)
        found[name] = tuple(known.index(one) for one in named)
    return found


class Surveying:
    """One survey while it is made.

    Args:
        volumes: Who makes it.
        looked: What is known of the slices.
        plan: What is to be done.
        wanted: Classes of each name.
        cancel: See `VolumeEngine.survey`.
    """

    def __init__(
        self,
        volumes: VolumeEngine,
        looked: Looked,
        plan: Plan,
        wanted: Mapping[str, tuple[int, ...]],
        *,
        cancel: threading.Event | None,
    ) -> None:
        self._volumes = volumes
        self._looked = looked
        self._plan = plan
        self._wanted = wanted
        self._cancel = cancel
        self._found = {name: Structure(label=name) for name in wanted}
        self._best: dict[str, tuple[float, str]] = {}
        self._sure: dict[str, list[float]] = {name: [] for name in wanted}

    def run(self, on_progress: Callable[[Progress], None]) -> Survey:
        """Looks, draws and joins.

        Raises:
            MedSightError: stopped.
        """
        steps = self.steps()
        try:
            while True:
                progress = next(steps)
                if progress is not None:
                    on_progress(progress)
        except StopIteration as end:
            made: Survey = end.value
            return made
        except Stopped as stop:
            raise MedSightError(
                "stopped", "The survey was stopped before it was complete.", "Start it again."
            ) from stop

    def steps(self) -> Generator[Progress | None, None, Survey]:
        """The same step by step; tells now and then how far it is, and None where there is nothing to tell.

        Raises:
            Stopped: It was told to.
        """
        watch = Stopwatch("look", "draw", "join")
        slices, count = self._plan.slices, len(self._plan.slices)
        self._looked.make_room(slices, self._plan.budget)
        looking = self._volumes.look(self._looked, slices, budget=self._plan.budget, cancel=self._cancel)
        while True:
            with watch("look"):
                done = next(looking, None)
            if done is None:
                break
            yield Progress(done, count, "Looking at slices") if done else None
        for k in slices:
            check_stop(self._cancel)
            with watch("draw"):
                self._draw_on(k)
            yield None
        yield Progress(count, count, "Joining")
        regions, joining = yield from watch.over("join", self._join())
        return self._survey(regions, joining, watch.seconds)

    def _survey(
        self, regions: Mapping[str, VolumeRegion | None], joining: Sequence[str], seconds: Mapping[str, float]
    ) -> Survey:
        slices = self._plan.slices
        engine = self._volumes.engine
        profile = self._looked.profile(slices)
        return Survey(
            regions=regions,
            presence={
                name: dict(zip(slices, map(float, strength(profile, classes)), strict=True))
                for name, classes in self._wanted.items()
            },
            slices=tuple(slices),
            words=self._plan.words,
            known=self._known(),
            warnings=(*self._plan.warnings, *joining),
            provenance=Provenance(
                model=engine.name,
                digest=engine.digest,
                settings={**engine.settings(), **self._plan.to_json(), "mode": "survey", "joining": list(joining)},
                timings={**seconds, "total": sum(seconds.values())},
            ),
        )

    def _known(self) -> tuple[str, ...]:
        """What can be found in such a scan, and what was looked for all the same."""
        classes = self._volumes.classes
        chosen = {*self._volumes.taught(self._looked.cut.original)}
        chosen.update(classes[number] for numbers in self._wanted.values() for number in numbers)
        return tuple(name for name in classes if name in chosen)

    @torch.inference_mode()
    def _draw_on(self, k: int) -> None:
        """Draws, on one slice, the queries that take themselves for what is looked for."""
        presence = self._looked.presence[k]
        here = {
            name: list(classes) for name, classes in self._wanted.items() if presence[list(classes)].max() >= PRESENT
        }
        if not here:
            return
        volumes, volume = self._volumes, self._looked.cut.volume
        features = volumes.looker.features(self._looked, k)
        model, regions = volumes.engine.model, features.regions
        transform = slice_transform(volumes.engine.processor, volume.slice_frame(k))
        probability = regions.class_logits[0].float().softmax(-1)
        head = model.model.perceiver.segmentation_cls_head
        for name, classes in here.items():
            sure = probability[:, classes].sum(1)
            queries = (sure >= PRESENT).nonzero().flatten()
            logits = head.masks(regions.queries[:, queries], regions.pixels)[0].float().cpu().numpy()
            for query, drawn in zip(queries.tolist(), logits, strict=True):
                placed = place(drawn, transform)
                if placed is None:
                    continue
                self._found[name].add(k, placed)
                self._sure[name].append(float(sure[query]))
                if float(sure[query]) > self._best.get(name, (0.0, ""))[0]:
                    code = nearest_code(
                        model,
                        volumes.engine.processor,
                        regions.queries[0, query],
                        features.vision,
                        modality=volume.modality,
                    )
                    self._best[name] = (float(sure[query]), code)

    def _join(self) -> Generator[None, None, tuple[dict[str, VolumeRegion | None], list[str]]]:
        cut, slices = self._looked.cut, self._plan.slices
        frame, profile = cut.original.require_frame(), self._looked.profile(slices)
        regions: dict[str, VolumeRegion | None] = {}
        steps: list[str] = []
        for name, one in self._found.items():
            check_stop(self._cancel)
            keys = [slices[n] for n in choose_key_slices(profile, count=RESTS_ON, named=self._wanted[name])]
            sure = self._sure[name]
            make = partial(
                one.region,
                cut,
                frame,
                code=self._best.get(name, (0.0, ""))[1],
                probability=sum(sure) / len(sure) if sure else 0.0,
            )
            regions[name], done = yield from stoppable(partial(make, keys=keys, joined=True), self._cancel)
            steps += done
        return regions, steps
