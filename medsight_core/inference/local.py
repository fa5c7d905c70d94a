"""A model in this process as a `Backend`: the engine is called in the thread of whoever reads the events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from medsight_core import __version__
from medsight_core.backend import PROTOCOL, Handle, Info, SegmentRequest, Whole
from medsight_core.errors import InputError
from medsight_core.events import Event, Progress
from medsight_core.imaging.planes import check_slices, check_volume, reformat
from medsight_core.imaging.volume import Volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.segmenting import Segmenter
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.regions import Question


class LocalBackend:
    """Asks one engine.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._volumes = VolumeEngine(engine)
        self._segmenter = Segmenter(self._volumes)
        self._lock = threading.Lock()

    def info(self) -> Info:
        """What the engine is."""
        return info_of(self.engine)

    def open(self, volume: Volume, *, on_progress: Callable[[Progress], None] = lambda progress: None) -> Handle:
        """Nothing needs to be brought anywhere."""
        return Handle(volume=volume)

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        """See `Backend.ask`."""
        if whole is None:
            return self._events(self.engine.steps(question, cancel=cancel, max_new_tokens=max_new_tokens))
        check_whole(question, whole)
        steps = whole_steps(self._volumes, question, whole, cancel=cancel, max_new_tokens=max_new_tokens)
        return self._events(steps)

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        """See `Backend.segment`."""
        self._segmenter.check(request)
        return self._events(self._segmenter.steps(request, cancel=cancel))

    def close(self) -> None:
        """Lets go of what is kept between questions."""
        self._segmenter.clear()
        self._volumes.clear()
        self.engine.clear()

    def _events(self, steps: Iterator[Event | None]) -> Iterator[Event]:
        """The events of work that is done a step at a time, and never at the same time as that of another thread."""
        while True:
            with self._lock:
                try:
                    event = next(steps)
                except StopIteration:
                    return
            if event is not None:
                yield event


def info_of(engine: Engine) -> Info:
    """What an engine is and can do."""
    model = engine.model
    capabilities = {"ask", "segment", "volumes"}
    if model.model.prompt_encoder is not None:
        capabilities.add("prompts")
    settings = engine.settings()
    return Info(
        version=__version__,
        protocol=PROTOCOL,
        model=engine.name,
        digest=engine.digest,
        device=settings["device"],
        dtype=settings["dtype"],
        classes=tuple(model.config.class_names),
        capabilities=frozenset(capabilities),
        limits={"max_new_tokens": settings["max_new_tokens"]},
    )


def check_whole(question: Question, whole: Whole) -> None:
    """Makes sure that a question goes with its whole volume, without any work of the model.

    Raises:
        InputError: prompt_on_volume, colour_volume, unknown_plane, no_geometry, empty_range, slice_out_of_range ...
        MedSightError: Why the volume has no regular grid.
    """
    if question.prompts:
        raise InputError(
            "prompt_on_volume",
            "A point, box or scribble lies on one slice; it does not go with a question about the whole volume.",
            "Ask about the slice, or segment what it points at throughout the volume.",
        )
    check_volume(question.volume)
    cut = reformat(question.volume, whole.plane)
    check_slices(whole.slices, cut)
    if whole.shown is not None:
        cut.volume.slice_frame(whole.shown)


def whole_steps(
    volumes: VolumeEngine,
    question: Question,
    whole: Whole,
    *,
    cancel: threading.Event | None,
    max_new_tokens: int | None,
) -> Iterator[Event | None]:
    """The steps of a question about a whole volume; see `VolumeEngine.steps`."""
    return volumes.steps(
        question.text,
        question.volume,
        plane=whole.plane,
        slices=whole.slices,
        shown=whole.shown,
        exact=whole.exact,
        history=question.history,
        max_new_tokens=max_new_tokens,
        cancel=cancel,
    )
