"""Answers under way: the backend's work in threads, what it makes in the event loop, and nothing without an end.

The event loop never waits for the model: each answer has a thread that asks the backend and hands on what comes,
through a bounded queue. When its client goes away, the answer is cancelled; a client that takes nothing holds up its
own answer only, and not for long.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import anyio
from anyio import to_thread
from starlette.types import Receive

from medsight_core.errors import Busy
from medsight_core.server.pieces import Gone, Pieces
from medsight_core.server.problems import stopping

Begin = Callable[[threading.Event], Iterator[bytes]]
"""Starts an answer and gives its pieces, ready to be sent; the event cancels it. Runs in a thread of its own."""

RETRY_SECONDS: Final = 2.0


class Work:
    """The answers that an application is making.

    Its methods belong to the event loop.

    Args:
        most: Answers at once, running or waiting.
        backlog: Pieces of an answer that wait for its client.
        keep_alive_seconds: Between signs of life.
    """

    def __init__(self, *, most: int, backlog: int, keep_alive_seconds: float) -> None:
        self._most = most
        self._backlog = backlog
        self._keep_alive = keep_alive_seconds
        self._cancels: set[threading.Event] = set()
        self._draining = False
        self._threads: anyio.CapacityLimiter | None = None

    @property
    def under_way(self) -> int:
        """Answers that have begun and not ended."""
        return len(self._cancels)

    @property
    def draining(self) -> bool:
        """Whether no more is begun, because the server is about to end."""
        return self._draining

    def drain(self) -> None:
        """Begins nothing more; what is under way goes on."""
        self._draining = True

    def cancel_all(self) -> None:
        """Ends what is under way; each answer says that it was stopped."""
        for cancel in self._cancels:
            cancel.set()

    @asynccontextmanager
    async def run(self, begin: Begin, receive: Receive) -> AsyncIterator[Pieces]:
        """Begins an answer; its pieces can be taken.

        The body is left early, without an error, when the client goes away. However it is left, the answer is cancelled
        and its thread has ended afterwards.

        Args:
            begin: Starts it.
            receive: Of the request, whose body has been read.

        Raises:
            Busy: Too much is under way.
            MedSightError: stopping: the server is about to end.
        """
        failure: Exception | None = None
        with self._place() as cancel:
            pieces = Pieces(backlog=self._backlog, keep_alive_seconds=self._keep_alive)
            async with anyio.create_task_group() as group:
                group.start_soon(self._make, begin, cancel, pieces)
                group.start_soon(_leave_when_gone, receive, cancel, group.cancel_scope)
                try:
                    yield pieces
                except Exception as error:  # kept out of the task group, which would wrap it
                    failure = error
                finally:  # also where the client is gone: the thread may wait for room
                    cancel.set()
                    pieces.close()
                group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @contextmanager
    def _place(self) -> Iterator[threading.Event]:
        if self._draining:
            raise stopping()
        if self.under_way >= self._most:
            raise Busy(RETRY_SECONDS)
        cancel = threading.Event()
        self._cancels.add(cancel)
        try:
            yield cancel
        finally:
            self._cancels.discard(cancel)

    async def _make(self, begin: Begin, cancel: threading.Event, pieces: Pieces) -> None:
        # A limiter of our own: the one that all routes share would let answers keep uploads waiting.
        self._threads = self._threads or anyio.CapacityLimiter(self._most)
        await to_thread.run_sync(_pass_on, begin, cancel, pieces, limiter=self._threads)


def _pass_on(begin: Begin, cancel: threading.Event, pieces: Pieces) -> None:
    """Runs an answer in this thread, at the pace at which it is taken."""
    try:
        try:
            made = begin(cancel)
            try:
                for piece in made:
                    pieces.put(piece)
            finally:
                close = getattr(made, "close", None)
                if close is not None:
                    close()  # here, and not whenever it is collected
        except Gone:
            raise
        except Exception as error:
            pieces.put(error)
        pieces.end()
    except Gone:
        cancel.set()


async def _leave_when_gone(receive: Receive, cancel: threading.Event, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel.set()
    scope.cancel()
