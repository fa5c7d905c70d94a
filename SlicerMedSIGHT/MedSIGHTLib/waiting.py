"""A worker that has no thread: for scripts, which wait for an answer anyway."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from medsight_core.errors import MedSightError
from medsight_core.events import Done, Failed

from .words import _


class AtOnce:
    """Does its work when it is drained, in the thread that drains it; else as `worker.Worker`.

    Args:
        work: Given an event that says when to stop, returns an iterator of events.
    """

    living = False

    def __init__(self, work: Callable[[threading.Event], Iterator[Any]]) -> None:
        self._work = work
        self._cancel = threading.Event()
        self._events: list[Any] | None = None

    def cancel(self) -> None:
        """Lets it do no more."""
        self._cancel.set()

    def drain(self, most: int = 4096) -> list[Any]:
        """What comes of it, so many at most; in the end, nothing."""
        if self._events is None:
            self._events = list(self._made())
        out, self._events = self._events[:most], self._events[most:]
        return out

    def _made(self) -> Iterator[Any]:
        event = None
        try:
            for event in self._work(self._cancel):
                yield event
        except MedSightError as error:
            event = Failed(error.code, error.sentence, error.remedy)
            yield event
        if not isinstance(event, Done | Failed):
            yield Failed("stream_ended", _("The answer broke off before it was complete."), _("Ask again."))
