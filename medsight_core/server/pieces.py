"""The way of an answer's pieces from the thread that makes them to the event loop that sends them.

Many at a time where many have come: to wake the event loop costs both sides time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator

import anyio

Item = bytes | Exception | None
"""Pieces, ready to be sent; what the answer failed with; or, now and then, a sign of life."""


class Gone(Exception):
    """Nobody takes the pieces any more."""


class Pieces(AsyncIterator[Item]):
    """A bounded way with a thread at its beginning and the event loop, in which it is made, at its end.

    Args:
        backlog: Pieces that may lie on the way.
        keep_alive_seconds: Between signs of life, while nothing comes.
    """

    def __init__(self, *, backlog: int, keep_alive_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._backlog = backlog
        self._keep_alive = keep_alive_seconds
        self._changed = threading.Condition()
        self._items: deque[bytes | Exception] = deque()
        self._ended = self._closed = False
        self._awaited: anyio.Event | None = None
        """Wakes the loop where it waits for a piece; else it looks by itself."""

    def put(self, item: bytes | Exception) -> None:
        """Hands on a piece; waits while too many lie on the way. For the thread.

        Raises:
            Gone: Nobody takes it any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._backlog)
            if self._closed:
                raise Gone
            self._items.append(item)
            awaited, self._awaited = self._awaited, None
        if awaited is not None:
            self._wake(awaited)

    def end(self) -> None:
        """Says that nothing more comes. For the thread."""
        with self._changed:
            self._ended = True
            awaited, self._awaited = self._awaited, None
        if awaited is not None:
            self._wake(awaited)

    def close(self) -> None:
        """Takes nothing more; the thread hears of it with its next piece. For the loop."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    async def __anext__(self) -> Item:
        """What has come; bytes that came together are joined."""
        with self._changed:
            awaited = self._awaited = None if self._items or self._ended else anyio.Event()
        if awaited is not None:
            with anyio.move_on_after(self._keep_alive):
                await awaited.wait()
            if not awaited.is_set():
                return None
        return self._take()

    def _take(self) -> Item:
        with self._changed:
            if not self._items:
                raise StopAsyncIteration
            item = self._items.popleft()
            if isinstance(item, bytes):
                joined = [item]
                while self._items and isinstance(more := self._items[0], bytes):
                    joined.append(more)
                    self._items.popleft()
                item = b"".join(joined)
            self._changed.notify_all()
        return item

    def _wake(self, event: anyio.Event) -> None:
        try:
            self._loop.call_soon_threadsafe(event.set)
        except RuntimeError:  # the loop has ended, and the server with it
            raise Gone from None

