"""Segmenting what was drawn or named, on a slice or throughout a volume.

What is drawn goes to an interactive `Session`, words go to the language model; what words found on a slice can be
followed through the volume as well. A request holds all that was drawn so far. The sessions of requests that came last
are remembered: a request with one stroke more costs one pass of the perceiver, one with a stroke less costs none, and
the result is that of a session which saw all strokes from the first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from medsight_core.backend import SegmentRequest, Stroke
from medsight_core.errors import InputError
from medsight_core.events import Done, Event, RegionFound, TextDelta, Warning
from medsight_core.imaging.volume import Volume
from medsight_core.inference.inputs import draw_prompts, slice_transform
from medsight_core.inference.propagation import check_range
from medsight_core.inference.referring import is_reference
from medsight_core.inference.session import Session
from medsight_core.inference.stopping import STOPPED
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.referring import parse_reference
from medsight_core.regions import Answer, Question, Region

SESSIONS: Final = 32
"""Sessions that are remembered at most."""

VOLUMES: Final = 4
"""Of so many scans at most, for a session keeps its scan."""

BUDGET: Final = 1 << 28
"""Bytes of masks that remembered sessions may have, unless the caller says otherwise."""

StrokeKey = tuple[int, str, bool, bytes, bytes]


class Segmenter:
    """Segments with one engine.

    Args:
        volumes: Answers about volumes, with the engine that is used.
        budget: Bytes of masks that remembered sessions may have.
    """

    def __init__(self, volumes: VolumeEngine, *, budget: int = BUDGET) -> None:
        self._volumes = volumes
        self._engine = volumes.engine
        self._budget = budget
        self._sessions: list[tuple[tuple[StrokeKey, ...], Session]] = []  # what was used last, last
        self._lock = threading.Lock()

    def check(self, request: SegmentRequest) -> None:
        """Raises what can be wrong with a request, without any work of the model.

        Raises:
            InputError: A stroke lies elsewhere or says only what is not meant; the range of slices is none ...
            MedSightError: Why the volume has no regular grid.
        """
        if request.slices is not None and not request.whole:
            raise InputError(
                "slices_without_volume", "A range of slices bounds a volume, and only one slice was asked for."
            )
        if request.text.strip():
            self._engine.check(self._question(request))
        begun: set[int] = set()
        for stroke in request.strokes:
            frame = request.volume.slice_frame(stroke.slice_index)
            draw_prompts([stroke.prompt], frame, slice_transform(self._engine.processor, frame))
            if not stroke.prompt.positive and stroke.slice_index not in begun:
                raise InputError(
                    "nothing_to_remove",
                    f"The {stroke.prompt.kind} says what does not belong to the region, but slice "
                    f"{stroke.slice_index} has none yet.",
                    "Point at the structure first.",
                )
            begun.add(stroke.slice_index)
        if request.strokes and self._engine.model.model.prompt_encoder is None:
            Session(self._engine, request.volume)  # which says so
        if request.whole:
            check_range(request.slices, sorted(begun), request.volume)

    def steps(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event | None]:
        """Segments, a pass of the model at each step: None where it brought nothing to tell.

        Args:
            request: What is asked for.
            cancel: When it is set, the work ends soon.

        Raises:
            InputError: At once, before the first event; see `check`.
        """
        self.check(request)
        if not request.text.strip():
            return self._drawn(request, cancel)
        if request.whole and not request.strokes:
            return self._named(request, cancel)
        return self._said(request, cancel)

    def _question(self, request: SegmentRequest) -> Question:
        words = request.text.strip()
        text = words if words[-1] in ".?!" else f"Segment the {words.removeprefix('the ')} in this image."
        elsewhere = [stroke for stroke in request.strokes if stroke.slice_index != request.slice_index]
        if elsewhere:
            raise InputError(
                "prompt_on_other_slice",
                f"The {elsewhere[0].prompt.kind} lies on slice {elsewhere[0].slice_index}; words go with what is drawn "
                f"on the slice that is asked about, {request.slice_index}.",
                "Draw on that slice, or leave the words out.",
            )
        prompts = tuple(stroke.prompt for stroke in request.strokes)
        return Question(text=text, volume=request.volume, slice_index=request.slice_index, prompts=prompts)

    def _drawn(self, request: SegmentRequest, cancel: threading.Event | None) -> Iterator[Event | None]:
        """What was pointed at."""
        keys = tuple(map(_key, request.strokes))
        session, seen = self._recall(request.volume, keys)
        try:
            for stroke in request.strokes[seen:]:
                if cancel is not None and cancel.is_set():
                    yield STOPPED
                    return
                session.add(stroke.prompt, stroke.slice_index)
                seen += 1
                yield None
            found = any(session.on_slice(stroke.slice_index) is not None for stroke in request.strokes)
            if not (request.whole and found):
                yield from _told(session.answer(session.region))
                return
            following = session.propagate(request.slices, cancel=cancel)
            before = session.steps
            try:
                for event in following:
                    if isinstance(event, RegionFound):
                        yield TextDelta(event.region.label)
                    yield event
            finally:
                # A further stroke must find what it would find in a session that was never followed.
                if session.steps > before:
                    session.undo()
        finally:
            self._remember(keys[:seen], session)

    def _named(self, request: SegmentRequest, cancel: threading.Event | None) -> Iterator[Event | None]:
        """What was named, throughout the volume."""
        words, volume = request.text.strip(), request.volume
        picked = is_reference(words, self._volumes.taught(volume))
        asked = words if picked else self._question(request).text
        steps = self._volumes.steps(asked, volume, slices=request.slices, shown=request.slice_index, cancel=cancel)
        return self._completed(steps, words)

    def _said(self, request: SegmentRequest, cancel: threading.Event | None) -> Iterator[Event | None]:
        """What was named on a slice, with what was drawn there; then followed, where the volume is meant."""
        stream = self._engine.steps(self._question(request), cancel=cancel)
        if not request.whole:
            yield from self._completed(stream, request.text)
            return
        for event in stream:
            if isinstance(event, Done):
                yield from self._followed(request, event.answer, cancel)
            elif not isinstance(event, RegionFound):  # these lie on a slice; those of the volume take their place
                yield event

    def _followed(
        self, request: SegmentRequest, answer: Answer, cancel: threading.Event | None
    ) -> Iterator[Event | None]:
        if not answer.regions:
            yield from self._completed(iter([Done(answer)]), request.text)
            return
        followed, warnings = [], list(answer.warnings)
        for region in answer.regions:
            for event in self._follow(request, region, cancel):
                if isinstance(event, Done):
                    (found,) = event.answer.volume_regions
                    followed.append(replace(found, span=region.span))
                    yield RegionFound(followed[-1])
                elif isinstance(event, Warning):
                    warnings.append(event.sentence)
                    yield event
                elif not isinstance(event, RegionFound):
                    yield event
        yield Done(replace(answer, regions=(), volume_regions=tuple(followed), warnings=tuple(dict.fromkeys(warnings))))

    def _follow(self, request: SegmentRequest, region: Region, cancel: threading.Event | None) -> Iterator[Event]:
        session = Session(self._engine, request.volume)
        session.adopt(region)
        return session.propagate(request.slices, cancel=cancel)

    def _completed(self, stream: Iterator[Event | None], words: str) -> Iterator[Event | None]:
        for event in stream:
            if isinstance(event, Done):
                answer = self._warned(event.answer, words)
                yield from map(Warning, answer.warnings[len(event.answer.warnings) :])
                event = Done(answer)
            yield event

    def _warned(self, answer: Answer, words: str) -> Answer:
        """Says where nothing was found because the model was never taught what was said: this is no finding."""
        known = self._engine.model.config.class_names
        if answer.regions or answer.volume_regions or not known:
            return answer
        try:
            parse_reference(words.strip(), known)
        except InputError as error:
            said = f"{error.sentence} That nothing was found says nothing about the scan."
            return replace(answer, warnings=tuple(dict.fromkeys((*answer.warnings, said))))
        return answer

    def _recall(self, volume: Volume, keys: tuple[StrokeKey, ...]) -> tuple[Session, int]:
        """A session that saw the first strokes, and how many of them; it is nobody else's meanwhile."""
        with self._lock:
            known = [(_common(seen, keys), n) for n, (seen, one) in enumerate(self._sessions) if one.volume is volume]
            common, n = max(known, default=(0, 0))
            if not common:
                return Session(self._engine, volume), 0
            seen, session = self._sessions.pop(n)
        for _ in seen[common:]:
            session.undo()
        return session, common

    def _remember(self, keys: tuple[StrokeKey, ...], session: Session) -> None:
        with self._lock:
            self._sessions.append((keys, session))
            while len(self._sessions) > 1 and self._too_much():
                self._sessions.pop(0)

    def _too_much(self) -> bool:
        sessions = [session for _, session in self._sessions]
        return (
            len(sessions) > SESSIONS
            or len({id(session.volume) for session in sessions}) > VOLUMES
            or sum(session.bytes for session in sessions) > self._budget
        )

    def clear(self) -> None:
        """Forgets all sessions."""
        with self._lock:
            self._sessions.clear()


def _told(answer: Answer) -> Iterator[Event]:
    """A whole answer as events."""
    yield TextDelta(answer.text)
    yield from map(RegionFound, answer.regions)
    yield from map(Warning, answer.warnings)
    yield Done(answer)


def _key(stroke: Stroke) -> StrokeKey:
    prompt = stroke.prompt
    mask = b"" if prompt.mask is None else prompt.mask.tobytes()
    return stroke.slice_index, prompt.kind, prompt.positive, prompt.points.tobytes(), mask


def _common(first: tuple[StrokeKey, ...], second: tuple[StrokeKey, ...]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
