"""Work beside the window: a thread makes events, a queue carries them, a timer on the main thread takes them out.

Inside Slicer the main thread keeps Python's lock while it waits for a person, so a thread runs only when the main
thread runs Python. The timer therefore is not only how events arrive, it is what lets the thread work at all: it ticks
for as long as any worker lives, also one whose events nobody wants any more.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from medsight_core.chat.turns import STOPPED
from medsight_core.errors import MedSightError
from medsight_core.events import Done, Failed

from ._qt import alive, qt
from .words import _

TICK_MS: Final = 5
"""Between two looks at the workers: 8 ms from a word's arrival to the main thread, which is busy 1 % of its time."""
MOST: Final = 4096
"""Events that may wait; a thread that makes more waits itself."""
_UNEXPECTED: Final = (
    _("Something went wrong inside MedSIGHT: {kind}, {reason}."),
    _("no reason was given"),
    _("Ask again; the log says more."),
)


class Worker:
    """Runs an iterator of events in a thread of its own.

    All methods but the work itself belong to the main thread.

    Args:
        work: Given an event that says when to stop, returns the iterator, such as
            ``lambda cancel: put(asked, backend, volume, cancel=cancel)``.

    Example:
        >>> worker = Worker(lambda cancel: put(asked, backend, volume, cancel=cancel))
        >>> poll.watch(worker)                        # starts it, and calls `pump` until it is through
        >>> for event in worker.drain(): conversation.take(event)   # in `pump`
    """

    def __init__(self, work: Callable[[threading.Event], Iterator[Any]]) -> None:
        self._work = work
        self._cancel = threading.Event()
        self._events: queue.Queue[Any] = queue.Queue(MOST)
        self._thread = threading.Thread(target=self._run, name="medsight-worker", daemon=True)
        self._ended = False

    @property
    def living(self) -> bool:
        """Whether its thread still runs, and so needs the main thread to run Python."""
        return self._thread.is_alive()

    @property
    def ended(self) -> bool:
        """Whether the last event was drained."""
        return self._ended

    @property
    def cancelled(self) -> bool:
        """Whether it was told to stop."""
        return self._cancel.is_set()

    def start(self) -> None:
        """Begins, once."""
        if self._thread.ident is None:
            self._thread.start()

    def cancel(self) -> None:
        """Tells it to stop, and waits for nothing; what was made before can still be drained."""
        self._cancel.set()

    def drain(self, most: int = MOST) -> list[Any]:
        """The events that have come since; after the last one, none.

        A stream that ends with neither `Done` nor `Failed` gets a `Failed`; one that was cancelled ends with it here
        and now, however long its thread takes to notice.

        Args:
            most: Return so many at most, the rest next time.
        """
        out: list[Any] = []
        over = self.cancelled or (self._thread.ident is not None and not self.living)  # before the queue is emptied
        while not self._ended and len(out) < most:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            out.append(event)
            self._ended = isinstance(event, Done | Failed)
        if over and not self._ended and len(out) < most:
            self._ended = True
            out.append(_stopped() if self.cancelled else _broken_off())
        return out

    def _run(self) -> None:
        events: Iterator[Any] = iter(())
        try:
            events = iter(self._work(self._cancel))
            for event in events:
                if not self._hand_over(event):
                    break
        except MedSightError as error:
            self._hand_over(Failed(error.code, error.sentence, error.remedy))
        except Exception as error:  # whatever it is, a person waits for an answer
            if not self.cancelled:
                logging.getLogger(__name__).exception("MedSIGHT: the work behind a question failed")
            self._hand_over(_unexpected(error))
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def _hand_over(self, event: Any) -> bool:
        """Whether there is still someone who wants it."""
        while not self.cancelled:
            try:
                self._events.put(event, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class Poll:
    """The timer that lets workers work, and looks after what they made.

    Args:
        parent: A widget; the timer goes with it.
        tick: Called every few milliseconds while any worker lives, or as long as it says that it left something.
    """

    def __init__(self, parent: Any, tick: Callable[[], Any]) -> None:
        self._tick = tick
        self._workers: list[Worker] = []
        self._timer = qt.QTimer(parent)
        self._timer.setTimerType(qt.Qt.PreciseTimer)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._look)

    @property
    def running(self) -> bool:
        """Whether the timer runs."""
        return bool(self._timer.isActive())

    def watch(self, worker: Worker) -> None:
        """Starts a worker, and the timer before it."""
        self._workers.append(worker)
        self._timer.start()
        worker.start()

    def close(self) -> None:
        """Tells all workers to stop, and calls nobody any more; the timer ends with the last thread."""
        self._tick = _nothing
        for worker in self._workers:
            worker.cancel()
        self._look()

    def _look(self) -> None:
        # Asked before the tick takes what they made, or the last events of one could be left behind.
        self._workers = [one for one in self._workers if one.living or not (one.ended or one.cancelled)]
        last = not self._workers
        try:
            self._tick()
        finally:
            if last and not self._workers and alive(self._timer):
                self._timer.stop()


def _nothing() -> None:
    pass


def _stopped() -> Failed:
    return Failed(STOPPED, _("Stopped before it was complete."))


def _broken_off() -> Failed:
    return Failed("stream_ended", _("The answer broke off before it was complete."), _("Ask again."))


def _unexpected(error: Exception) -> Failed:
    sentence, nothing, remedy = _UNEXPECTED
    words = " ".join(str(error).split()) or nothing
    return Failed("unexpected", sentence.format(kind=type(error).__name__, reason=words.rstrip(".")), remedy)
