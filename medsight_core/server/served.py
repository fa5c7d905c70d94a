"""What an application serves, and how an answer of its backend becomes a response."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from starlette.types import Scope

from medsight_core.backend import Backend, Info
from medsight_core.errors import MedSightError
from medsight_core.events import Done, Event, Failed, TextDelta, Warning
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Answer
from medsight_core.server.answering import AnswerResponse
from medsight_core.server.config import ServerConfig
from medsight_core.server.masks import Masks
from medsight_core.server.metrics import Metrics
from medsight_core.server.pictures import Pictures
from medsight_core.server.store import VolumeStore
from medsight_core.server.trace import Trace, trace_of
from medsight_core.server.work import Work
from medsight_core.wire.events import EventWriter

MODEL_HEADER: Final = "MedSIGHT-Model"
"""Carries the digest of the checkpoint that answered."""

Ask = Callable[[threading.Event, Trace], tuple[EventWriter, Iterator[Event]]]
"""Reads a request to its end and puts it to the backend; runs in a thread. Raises what is wrong with it."""

Write = Callable[[EventWriter, Iterator[Event]], Iterator[bytes]]
"""Writes events as the pieces of a response."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """The parts of one application.

    Attributes:
        backend: Who is asked.
        info: What it is.
        config: How the server is reached.
        store: Volumes.
        masks: Masks of answers, to be fetched.
        pictures: Opens those of chat messages.
        work: Answers under way.
        metrics: Figures.
    """

    backend: Backend
    info: Info
    config: ServerConfig
    store: VolumeStore
    masks: Masks
    pictures: Pictures
    work: Work
    metrics: Metrics

    def writer(self, volume: Volume) -> EventWriter:
        """Writes events about a volume; large masks are kept to be fetched."""
        return EventWriter(volume, put_mask=self.masks.keeper(volume))

    def respond(
        self, scope: Scope, ask: Ask, write: Write, *, failed: Callable[[Failed], bytes], stream: bool
    ) -> AnswerResponse:
        """The response that begins an answer, and says what comes.

        Args:
            scope: Of the request.
            ask: Puts the question.
            write: Writes its events.
            failed: Writes what a stream failed with.
            stream: Whether the response is a stream.
        """
        trace = trace_of(scope)

        def begin(cancel: threading.Event) -> Iterator[bytes]:
            writer, events = ask(cancel, trace)
            return write(writer, self._watched(events, cancel, trace))

        return AnswerResponse(
            begin=begin,
            failed=failed,
            work=self.work,
            metrics=self.metrics,
            config=self.config,
            stream=stream,
            headers={MODEL_HEADER: self.info.digest},
        )

    def _watched(self, events: Iterator[Event], cancel: threading.Event, trace: Trace) -> Iterator[Event]:
        """Events up to `Done`, with figures taken; how else a stream ends is raised."""
        start: float | None = time.monotonic()
        for event in events:
            match event:
                case TextDelta() if start is not None:
                    self.metrics.first_text(time.monotonic() - start)
                    start = None
                case Done(answer):
                    trace.answered = not cancel.is_set()
                    trace.prompt_tokens, trace.completion_tokens = tokens_of(answer)
                case Failed():
                    raise event.error()
            yield event
            if isinstance(event, Done):
                return
        raise MedSightError("stream_ended", "The answer broke off before it was complete.", "Ask again.")


def warned(events: Iterator[Event], sentences: Sequence[str]) -> Iterator[Event]:
    """Events with sentences that belong beside the answer said first."""
    yield from map(Warning, sentences)
    for event in events:
        if isinstance(event, Done):
            warnings = dict.fromkeys((*sentences, *event.answer.warnings))
            event = Done(replace(event.answer, warnings=tuple(warnings)))
        yield event


def tokens_of(answer: Answer) -> tuple[int, int]:
    """Tokens that the model read and wrote for an answer; 0 where it read and wrote none, as for a click."""
    tokens = answer.provenance.tokens
    return tokens.get("prompt", 0), tokens.get("completion", 0)
