"""Questions about whole volumes: decide once, propagate.

Every slice is perceived once, without words. The language model then reads a few key slices, chosen by what the region
queries saw; the codes that it writes there are drawn on every slice from that slice's own features, gated by presence,
and joined in space. What the language model costs is so paid for a few slices, not for hundreds.

What measuring answers is not read at all: structures are found by name and measured (`understanding` says what that
is). The exact mode reads every slice and joins nothing; it is there to compare with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final

from medsight_core.events import Event, Progress
from medsight_core.imaging.planes import Plane, Reformatted, check_slices, check_volume, reformat
from medsight_core.imaging.volume import Volume
from medsight_core.inference.asking import Asking
from medsight_core.inference.engine import Engine
from medsight_core.inference.features import BUDGET
from medsight_core.inference.grounding import place
from medsight_core.inference.inputs import slice_transform
from medsight_core.inference.looking import Looked, Looker
from medsight_core.inference.measuring import Measuring
from medsight_core.inference.memory import size_of
from medsight_core.inference.plan import Pace, Plan, free_memory, make_plan
from medsight_core.inference.reply import finish
from medsight_core.inference.stopping import check_stop
from medsight_core.inference.surveying import Survey, Surveying, classes_of
from medsight_core.inference.taught import taught
from medsight_core.model import ImageFeatures
from medsight_core.regions import Question
from medsight_core.understanding import Understood, never_taught, understand

KEY_SLICES: Final = 7
"""Slices that the language model reads."""

KNOWN: Final = 4
"""Volumes of which what was seen is kept."""

_IN_WORDS: Final = "What is said of it is not to be relied on, and that nothing is found says nothing about the scan."

_TYPICAL_ANSWER: Final = 40
"""Tokens of an answer whose time is reckoned with."""


class VolumeEngine:
    """Answers questions about volumes with one engine.

    What was seen of the last few volumes stays, within the budget: a second question on one, or a survey, looks at
    nothing again. Questions may be under way side by side, their steps one at a time; each may take the budget.

    Args:
        engine: The engine.
        budget: Bytes that features may take.
        batch: Slices between two reports of progress; it changes no result.
        key_slices: How many slices are read at most.
        memory: Bytes that may be used in all; None for what is free.
        pace: What a slice costs, where that is known; else one is timed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        budget: int = BUDGET,
        batch: int = 8,
        key_slices: int = KEY_SLICES,
        memory: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        if batch < 1 or key_slices < 1:
            raise ValueError(f"batch is {batch} and key_slices {key_slices}, expected 1 or more of both.")
        self.engine = engine
        self._budget = budget
        self._batch = batch
        self._key_slices = key_slices
        self._memory = memory
        self._looker = Looker(model=engine.model, features=engine.features)
        self._classes = tuple(engine.model.config.class_names)
        self._pace = pace
        self._looked: list[Looked] = []  # what was used last, last

    @property
    def classes(self) -> tuple[str, ...]:
        """The structures that the model knows by name."""
        return self._classes

    def taught(self, volume: Volume) -> tuple[str, ...]:
        """Those of `classes` that the model was taught to find in scans like this one."""
        return taught(self.engine.model.config, volume.modality)

    def plan(
        self,
        volume: Volume,
        text: str | None = None,
        *,
        plane: Plane = "acquired",
        slices: range | None = None,
        exact: bool = False,
        history: Sequence[tuple[str, str]] = (),
    ) -> Plan:
        """What a question about a volume will cost; times a slice where none was timed yet.

        Args:
            volume: The scan.
            text: The question; no slice is read for what measuring answers. None for one that is read.
            plane: The plane in which its slices are looked at.
            slices: Which of them, from 0; None for all.
            exact: Let the language model read every slice.
            history: Earlier turns, see `ask`.

        Raises:
            InputError: colour_volume, unknown_plane, no_geometry, one_slice, empty_range, slice_out_of_range,
                not_enough_memory; unknown_structure, see `ask`.
            MedSightError: Why the volume has no regular grid.
        """
        check_volume(volume)
        looked = self.known(volume, plane)
        chosen = check_slices(slices, looked.cut)
        way = "read" if text is None or exact else self._understand(text, volume, history).way
        return self._plan(looked, chosen, exact=exact, read=self._key_slices if way == "read" else 0)

    def ask(
        self,
        text: str,
        volume: Volume,
        *,
        plane: Plane = "acquired",
        slices: range | None = None,
        shown: int | None = None,
        exact: bool = False,
        history: Sequence[tuple[str, str]] = (),
        max_new_tokens: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        """Answers a question about a volume, step by step.

        What measuring answers ("how large is the spleen?") and what picks something out ("the largest lesion") is found
        by name on every slice and measured; the first warning says so. Everything else is read.

        Args:
            text: The question.
            volume: The scan.
            plane: The plane in which its slices are looked at.
            slices: Which of them, from 0; None for all.
            shown: The slice of the plane that a person is looking at; it is read, if anything is and it is among them.
            exact: Let the language model read every slice, whatever is asked.
            history: Earlier turns (question, answer); "it" is what the last of them spoke of.
            max_new_tokens: Where the words about a slice are cut off.
            cancel: When it is set, the stream ends with `Failed` within a slice's time.

        Returns:
            Events up to `Done`; regions come as `VolumeRegion`.

        Raises:
            InputError: At once, before the first event: see `plan`; unknown_structure, where a measurement is asked for
                of what the model was never taught to find in such a scan; the text is too long ...
        """
        steps = self._begin(
            text,
            volume,
            plane=plane,
            slices=slices,
            shown=shown,
            exact=exact,
            history=history,
            max_new_tokens=max_new_tokens,
            cancel=cancel,
        )
        return (event for event in steps if event is not None)

    def steps(
        self, text: str, volume: Volume, *, plane: Plane = "acquired", slices: range | None = None, **how: Any
    ) -> Iterator[Event | None]:
        """As `ask`, a pass of the model at each step: None where it brought nothing to tell.

        What `ask` raises at once comes with the first steps.
        """
        if self._pace is None:
            check_volume(volume)
            cut = self.known(volume, plane).cut
            chosen = check_slices(slices, cut)
            self._pace = yield from self._measure_pace(cut, chosen[len(chosen) // 2])
        yield from self._begin(text, volume, plane=plane, slices=slices, **how)

    def _begin(
        self,
        text: str,
        volume: Volume,
        *,
        plane: Plane,
        slices: range | None,
        shown: int | None = None,
        exact: bool = False,
        history: Sequence[tuple[str, str]] = (),
        max_new_tokens: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event | None]:
        check_volume(volume)
        looked = self.known(volume, plane)
        chosen = check_slices(slices, looked.cut)
        question = Question(
            text=text, volume=looked.cut.volume, slice_index=chosen[0] if shown is None else shown
        )  # which checks text and slice
        understood = Understood(way="read") if exact else self._understand(text, volume, history)
        if understood.way != "read":
            return Measuring(self, understood, looked, self._plan(looked, chosen, read=0), cancel=cancel).events()
        self.engine.check(question)
        plan = self._plan(looked, chosen, exact=exact, read=self._key_slices)
        unknown = understood.unknown
        warnings = (f"{never_taught(unknown, volume.modality)} {_IN_WORDS}",) if unknown else ()
        steps = Asking(
            self,
            question,
            looked,
            plan,
            shown=shown,
            warnings=warnings,
            max_new_tokens=max_new_tokens,
            cancel=cancel,
        )
        return steps.exactly() if exact else steps.once()

    def survey(
        self,
        volume: Volume,
        names: Sequence[str] | None = None,
        *,
        plane: Plane = "acquired",
        slices: range | None = None,
        cancel: threading.Event | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Survey:
        """Looks for structures by name, without the language model: the region queries say what is where.

        Args:
            volume: The scan.
            names: What to look for; None for all that the model was taught to find in such scans.
            plane: The plane in which its slices are looked at.
            slices: Which of them, from 0; None for all.
            cancel: When it is set, the survey ends within a slice's time.
            on_progress: Told now and then how far it is.

        Raises:
            InputError: See `plan`; unknown_structure.
            MedSightError: stopped.
        """
        check_volume(volume)
        looked = self.known(volume, plane)
        chosen = check_slices(slices, looked.cut)
        wanted = classes_of(self.taught(volume) if names is None else names, self._classes)
        plan = self._plan(looked, chosen, read=0)
        return Surveying(self, looked, plan, wanted, cancel=cancel).run(on_progress)

    def forget(self, volume: Volume) -> None:
        """Lets go of all that is kept of a volume."""
        self.engine.forget(volume)
        self._looked = [looked for looked in self._looked if looked.cut.original is not volume]

    def clear(self) -> None:
        """Lets go of all that is kept between questions."""
        self._looked.clear()

    def known(self, volume: Volume, plane: Plane) -> Looked:
        """What is known of a volume in a plane; of the last `KNOWN` only."""
        looked = next((one for one in self._looked if one.is_of(volume, plane)), None)
        if looked is None:
            looked = Looked(cut=reformat(volume, plane))
        others = [one for one in self._looked if one is not looked]
        self._looked = [*others[-KNOWN + 1 :], looked]
        return looked

    @property
    def looker(self) -> Looker:
        """Who looks at slices."""
        return self._looker

    def look(
        self, looked: Looked, slices: Sequence[int], *, budget: int, cancel: threading.Event | None = None
    ) -> Iterator[int]:
        """Looks at the slices that were not looked at yet; yields how many of all are done, or 0 between two reports.

        Raises:
            Stopped: ``cancel`` was set.
        """
        new = [k for k in slices if k not in looked.presence]
        together = self._looker.together
        for start in range(0, len(new), together):
            check_stop(cancel)
            few = new[start : start + together]
            for k, features in zip(few, self._looker.look(looked.cut.volume, few), strict=True):
                self._looker.take(looked, k, features, budget=budget)
            done = start + len(few)
            told = done % self._batch < together or done == len(new)
            yield len(slices) - len(new) + done if told else 0

    def look_at(self, looked: Looked, k: int) -> ImageFeatures:
        """Features of one slice, which are not kept."""
        if k not in looked.presence:
            features = self._looker.look(looked.cut.volume, [k])[0]
            self._looker.take(looked, k, features, budget=0)
            return self._looker.slim(features)
        return self._looker.features(looked, k)

    def _understand(self, text: str, volume: Volume, history: Sequence[tuple[str, str]]) -> Understood:
        here = self.taught(volume)
        understood = understand(text, here, history=history)
        understood.refuse(here, volume.modality)
        return understood

    def _plan(self, looked: Looked, slices: range, *, read: int, exact: bool = False) -> Plan:
        if self._pace is None:
            self._pace = finish(self._measure_pace(looked.cut, slices[len(slices) // 2]))
        plan = make_plan(
            looked.cut,
            slices,
            pace=self._pace,
            new=sum(k not in looked.presence for k in slices),
            read=read,
            exact=exact,
            budget=self._budget,
            free=free_memory() if self._memory is None else self._memory,
        )
        self._make_room(looked, plan.budget)
        return plan

    def _make_room(self, looked: Looked, budget: int) -> None:
        """Lets go of the features of other volumes, the oldest first, as far as those of this one need their place."""
        others = [one for one in self._looked if one is not looked]
        held = sum(one.bytes for one in others)
        for one in others:
            if held + budget <= self._budget:
                break
            held -= one.bytes
            one.let_go()

    def _measure_pace(self, cut: Reformatted, k: int) -> Generator[None, None, Pace]:
        """Times one slice: the second look, for the first one warms up."""

        def timed(tokens: int) -> float:
            start = time.perf_counter()
            self.engine.read([question], [slim], max_new_tokens=tokens)
            return time.perf_counter() - start

        self._looker.look(cut.volume, [k])
        yield
        start = time.perf_counter()
        features = self._looker.look(cut.volume, [k])[0]
        looking = time.perf_counter() - start
        yield
        slim = self._looker.slim(features)
        question = Question(text="What is shown?", volume=cut.volume, slice_index=k)
        timed(1)
        yield
        one, some = timed(1), timed(9)
        yield
        start = time.perf_counter()
        transform = slice_transform(self.engine.processor, cut.volume.slice_frame(k))
        place(features.regions.mask_logits[0, 0].float().cpu().numpy(), transform)
        drawing = time.perf_counter() - start
        return Pace(
            look=looking,
            read=one + _TYPICAL_ANSWER * max(0.0, some - one) / 8,
            draw=drawing,
            kept=size_of(slim),
        )
