"""Small work beside the window that nobody waits for: packing a conversation for the scene, measuring a segment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from medsight_core.events import Failed

Begin = Callable[[Callable[[threading.Event], Iterator[Any]]], Any]
"""Starts a `Worker` on some work and gives it back, watched by the poll."""


class Chores:
    """One piece of work at a time, in the order in which it came.

    Args:
        begin: Starts a worker.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._waiting: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {}
        self._worker: Any = None
        self._then: Callable[[Any], None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return self._worker is None and not self._waiting

    def add(self, name: str, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Puts something on the list; what waits there under the same name is out of date and is dropped.

        Args:
            name: Of the chore.
            work: Done in a thread; touches neither scene nor window.
            then: Is given its result in the main thread, None where it failed.
        """
        self._waiting.pop(name, None)
        self._waiting[name] = (work, then)
        self._next()

    def pump(self) -> None:
        """Takes what is done, and begins what comes next."""
        if self._worker is None:
            return
        events = self._worker.drain()
        if events:
            self._worker.cancel()  # nothing else comes of it
            then, self._worker, self._then = self._then, None, None
            if then is not None:
                then(None if isinstance(events[0], Failed) else events[0])
        self._next()

    def close(self) -> None:
        """Drops everything; nobody is given a result any more."""
        self._waiting.clear()
        if self._worker is not None:
            self._worker.cancel()
            self._worker = self._then = None

    def _next(self) -> None:
        if self._worker is None and self._waiting:
            name = next(iter(self._waiting))
            work, self._then = self._waiting.pop(name)
            self._worker = self._begin(lambda _cancel: iter([work()]))
