"""One question about a volume while it is answered: look, choose, read, draw, join, say."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from medsight_core.events import Done, Event, Progress, RegionFound, TextDelta, Warning
from medsight_core.inference.composing import compose, key_of, slices_in_words
from medsight_core.inference.drawing import SURE, Structure, structures
from medsight_core.inference.grounding import decode_masks, place
from medsight_core.inference.inputs import slice_transform
from medsight_core.inference.looking import Looked
from medsight_core.inference.plan import Plan
from medsight_core.inference.presence import choose_key_slices, denies, named_classes, strength, where_present
from medsight_core.inference.reply import Reading, Stopwatch
from medsight_core.inference.stopping import STOPPED, Stopped, check_stop, stoppable
from medsight_core.model import ImageFeatures
from medsight_core.regions import Answer, Provenance, Question, VolumeRegion

if TYPE_CHECKING:
    from medsight_core.inference.volumes import VolumeEngine

SEEN = 0.8
"""Presence of a class from which on its absence from an answer is worth a word."""

GROUP = 16
"""Slices that the exact mode reads together: always so many, so that the answers are always the same."""


class Asking:
    """One question about a volume while it is answered.

    Args:
        volumes: Who answers.
        question: On the plane's slices.
        looked: What is known of them.
        plan: What is to be done.
        shown: The slice a person is looking at.
        warnings: What is known beforehand that belongs beside the answer.
        max_new_tokens: Where the words about a slice are cut off.
        cancel: See `VolumeEngine.ask`.
    """

    def __init__(
        self,
        volumes: VolumeEngine,
        question: Question,
        looked: Looked,
        plan: Plan,
        *,
        shown: int | None,
        warnings: Sequence[str] = (),
        max_new_tokens: int | None = None,
        cancel: threading.Event | None,
    ) -> None:
        self._volumes = volumes
        self._engine = volumes.engine
        self._question = question
        self._looked = looked
        self._plan = plan
        self._cancel = cancel
        self._shown = shown if shown is not None and shown in plan.slices else None
        self._named = named_classes(question.text, volumes.classes)
        self._watch = Stopwatch("look", "read", "draw", "join")
        self._known = (*plan.warnings, *warnings)
        self._limit = max_new_tokens
        self._warnings: list[str] = []
        self._held: dict[int, ImageFeatures] = {}

    def once(self) -> Iterator[Event | None]:
        """Reads key slices and draws their codes on all slices; None where a step brought nothing to tell."""
        try:
            yield from map(Warning, self._known)
            yield from self._look()
            slices = self._plan.slices
            order = slices[::-1] if self._looked.cut.backwards else slices
            profile = self._looked.profile(order)
            shown = None if self._shown is None else order.index(self._shown)
            chosen = choose_key_slices(profile, count=self._plan.read, named=self._named, shown=shown)
            keys = sorted(order[n] for n in chosen)
            yield Progress(0, len(keys), f"Reading {slices_in_words(keys, self._plan.words)}")
            readings = yield from self._read(keys)
            found = structures(readings, {k: self._denied(reading, readings) for k, reading in readings.items()})
            yield from self._draw(found)
            yield from self._finish(readings, found, joined=True)
        except Stopped:
            yield STOPPED

    def exactly(self) -> Iterator[Event | None]:
        """Reads every slice and draws its codes on it alone; None where a step brought nothing to tell."""
        try:
            yield from map(Warning, self._known)
            slices = self._plan.slices
            yield Progress(0, len(slices), self._plan.sentence)
            readings: dict[int, Reading] = {}
            found: dict[str, Structure] = {}
            for start in range(0, len(slices), GROUP):
                part = slices[start : start + GROUP]
                self._held = {}
                for k in part:
                    check_stop(self._cancel)
                    with self._watch("look"):
                        self._held[k] = self._volumes.look_at(self._looked, k)
                    yield None
                readings |= yield from self._read(part)
                new = structures({k: readings[k] for k in part}, {})
                for key, structure in new.items():
                    found.setdefault(key, Structure(label=structure.label)).written.update(structure.written)
                for k in part:
                    self._draw_on(k, {key: found[key] for key, one in new.items() if k in one.written})
                    yield None
                yield Progress(len(readings), len(slices), "Reading slices")
            yield from self._finish(readings, found, joined=False)
        except Stopped:
            yield STOPPED

    def _look(self) -> Iterator[Event | None]:
        slices = self._plan.slices
        yield Progress(0, len(slices), self._plan.sentence)
        self._looked.make_room(slices, self._plan.budget)
        steps = self._volumes.look(self._looked, slices, budget=self._plan.budget, cancel=self._cancel)
        while True:
            with self._watch("look"):
                done = next(steps, None)
            if done is None:
                break
            yield Progress(done, len(slices), "Looking at slices") if done else None

    def _features(self, k: int) -> ImageFeatures:
        held = self._held.get(k)
        return self._volumes.looker.features(self._looked, k) if held is None else held

    def _read(self, keys: Sequence[int]) -> Generator[None, None, dict[int, Reading]]:
        with self._watch("read"):
            features = [self._features(k) for k in keys]
        steps = self._engine.reading(
            [replace(self._question, slice_index=k) for k in keys],
            features,
            cancel=self._cancel,
            max_new_tokens=self._limit,
        )
        readings = yield from self._watch.over("read", steps)
        check_stop(self._cancel)
        return dict(zip(keys, readings, strict=True))

    def _denied(self, reading: Reading, readings: Mapping[int, Reading]) -> tuple[str, ...]:
        """Structures, of those that any slice shows, that the model said are not on this one."""
        here = {key_of(mention.label) for mention in reading.mentions}
        others = {key_of(m.label): m.label for one in readings.values() for m in one.mentions}
        return tuple(
            key
            for key, label in others.items()
            if key not in here
            # Not to point at what it was asked for is a no; not to mention something else is not.
            and (set(named_classes(label, self._volumes.classes)) & set(self._named) or denies(reading.text, label))
        )

    def _draw(self, found: Mapping[str, Structure]) -> Iterator[Event | None]:
        slices = self._plan.slices
        profile = self._looked.profile(slices)
        gates = {
            key: where_present(strength(profile, named_classes(one.label, self._volumes.classes)))
            for key, one in found.items()
        }
        for n, k in enumerate(slices):
            check_stop(self._cancel)
            here = {
                key: one for key, one in found.items() if k not in one.denied and (gates[key][n] or k in one.written)
            }
            self._draw_on(k, here)
            told = n % 16 == 15 or k == slices[-1]
            yield Progress(n + 1, len(slices), "Drawing") if told else None

    def _draw_on(self, k: int, found: Mapping[str, Structure]) -> None:
        """Draws structures on one slice, with that slice's own features."""
        backwards = self._looked.cut.backwards
        codes = [(one, code) for one in found.values() for code in one.codes_for(k, backwards=backwards)]
        if not codes:
            return
        volume = self._looked.cut.volume
        with self._watch("draw"):
            features = self._features(k)
            transform = slice_transform(self._engine.processor, volume.slice_frame(k))
            logits = decode_masks(self._engine.model, [code.state for _, code in codes], features)
            for (one, _), drawn in zip(codes, logits, strict=True):
                placed = place(drawn, transform)
                if placed is not None and (placed.certainty >= SURE or k in one.written):
                    one.add(k, placed)

    def _finish(
        self, readings: Mapping[int, Reading], found: Mapping[str, Structure], *, joined: bool
    ) -> Iterator[Event | None]:
        """Joins what was drawn, and says what was said."""
        regions: dict[str, VolumeRegion] = {}
        steps: list[str] = []
        frame = self._looked.cut.original.require_frame()
        for key, one in found.items():
            check_stop(self._cancel)
            make = partial(one.region, self._looked.cut, frame, code=one.code, probability=one.probability)
            joining = stoppable(partial(make, keys=one.written, joined=joined), self._cancel)
            region, done = yield from self._watch.over("join", joining)
            steps += done
            if region is None:
                self._warnings.append(f'The answer points at "{one.label}", but its mask is empty on every slice.')
            else:
                regions[key] = region
        self._warnings += self._unspoken(regions)
        order = sorted(readings, key=lambda k: (-self._weight(readings[k], k), k))
        composed = compose(readings, regions, order=order, words=self._plan.words)
        yield TextDelta(composed.text)
        placed = [
            replace(region, span=composed.spans[key]) if key in composed.spans else region
            for key, region in regions.items()
        ]
        placed.sort(key=lambda region: region.span.start)
        for region in placed:
            yield RegionFound(region)
        warnings = self._sentences(readings, composed.slices, steps)
        yield from map(Warning, warnings[len(self._known) :])  # those were said at the beginning
        yield Done(
            Answer(
                text=composed.text,
                raw=composed.raw,
                regions=(),
                warnings=warnings,
                provenance=self._provenance(readings, steps),
                volume_regions=tuple(placed),
            )
        )

    def _unspoken(self, regions: Mapping[str, VolumeRegion]) -> Iterator[str]:
        """What was asked for and clearly seen by the eye, but is not in the answer: a person should know of it."""
        classes = self._volumes.classes
        shown = {n for region in regions.values() for n in named_classes(region.label, classes)}
        for n in (n for n in self._named if n not in shown):
            seen = [k for k in self._plan.slices if self._looked.presence[k][n] >= SEEN]
            if seen:
                many = f"{len(seen)} slices between {seen[0]} and {seen[-1]} look"
                where = many if len(seen) > 3 else f"{slices_in_words(seen, self._plan.words)} {_look(len(seen))}"
                yield f"The answer shows no {classes[n]}, but {where} as if there were."

    def _weight(self, reading: Reading, k: int) -> float:
        """How much a slice has to say: what it points at first, then what is likely to be on it."""
        sure = float(strength(self._looked.presence[k][None], self._named)[0])
        return float(sum(code.probability for code in reading.codes) + sure / 2)

    def _sentences(self, readings: Mapping[int, Reading], told: Sequence[int], steps: Sequence[str]) -> tuple[str, ...]:
        read = sorted(readings)
        words = self._plan.words
        count = len(self._plan.slices)
        first = f"The words are those about {slices_in_words(sorted(told), words)}"
        if not self._plan.exact:
            first += f"; {slices_in_words(read, words)} were read" if len(read) > 1 else "; it alone was read"
        first += f", of {count} looked at." if count > 1 else "."
        said = (sentence for k in told for sentence in readings[k].warnings)
        return tuple(dict.fromkeys((*self._known, *([first] if count > 1 else []), *said, *self._warnings, *steps)))

    def _provenance(self, readings: Mapping[int, Reading], steps: Sequence[str]) -> Provenance:
        settings = {
            **self._engine.settings(),
            **self._plan.to_json(),
            "mode": "exact" if self._plan.exact else "decide once, propagate",
            "slices_read": sorted(readings),
            "joining": list(steps),
        }
        seconds = self._watch.seconds
        return Provenance(
            model=self._engine.name,
            digest=self._engine.digest,
            settings=settings,
            timings={**seconds, "total": sum(seconds.values())},
            tokens={
                kind: sum(reading.tokens[kind] for reading in readings.values()) for kind in ("prompt", "completion")
            },
        )


def _look(count: int) -> str:
    return "looks" if count == 1 else "look"
