"""One request on its way through the scheduler, as whoever reads it sees it and whoever works on it.

To wake whoever reads takes the interpreter away from the model, and a fast model says a word every few milliseconds. So
an event that comes alone is read at once, those of the next hundredth of a second together, and nothing waits once the
answer is complete.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Final, Literal

from medsight_core.errors import InputError
from medsight_core.events import Done, Event, Failed, RegionFound, TextDelta, Warning
from medsight_core.imaging.volume import Volume
from medsight_core.inference.answering import Answering
from medsight_core.inference.decoding import Prefilled

Kind = Literal["words", "slice", "volume"]
"""What is asked for: words about a slice, which are written together with those of others; something drawn on a slice;
or a whole volume, which takes long."""

TOGETHER_SECONDS: Final = 0.01
"""How long events are gathered after others were read; a fraction of what a person notices."""

STOPPED: Final = Failed("stopped", "The question was stopped before it was answered.", "Ask again.")

Steps = Iterator[Event | None] | Generator[Event | None, None, Prefilled]


class Stop(threading.Event):
    """Set when one of two wants it: whoever asked, by an event of their own, or whoever reads, by reading no more.

    Args:
        other: The event of whoever asked.
    """

    def __init__(self, other: threading.Event | None) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        """Whether either is set."""
        return super().is_set() or (self._other is not None and self._other.is_set())


class Job:
    """One request.

    Args:
        kind: What is asked for.
        begin: Begins the work, or begins it anew: an `Answering` for words, else the events step by step.
        looks_at: The slice that it looks at first, where that is known.
        stop: When it is set, the work ends soon.
    """

    def __init__(
        self,
        kind: Kind,
        begin: Callable[[], Answering | Steps],
        stop: Stop,
        *,
        looks_at: tuple[Volume, int] | None = None,
    ) -> None:
        self.kind: Kind = kind
        self.looks_at = looks_at
        self.stop = stop
        self.answering: Answering | None = None
        self.since = time.monotonic()
        self.dropped = threading.Event()
        """Nobody reads any more."""
        self.over = False
        self._begin = begin
        self._steps: Steps | None = None
        self._items: deque[Event | InputError] = deque()
        self._come = threading.Condition()
        self._awaited = False
        self._read = float("-inf")
        self._silent = True
        self._shown = self._anew = False
        self._said: set[str] = set()

    @property
    def can_begin_anew(self) -> bool:
        """Whether it was not begun anew before, and nothing of the answer was shown yet."""
        return not (self._anew or self._shown)

    def step(self) -> Event | None:
        """The next step of the work.

        Raises:
            StopIteration: With the prompt that was read, where words are to be written now.
        """
        if self._steps is None:
            begun = self._begin()
            if isinstance(begun, Answering):
                self.answering = begun
                begun = begun.prepare()
            self._steps = begun
        return next(self._steps)

    def begin_anew(self) -> None:
        """The next step will be the first one again."""
        self.let_go()
        self._anew = True

    def let_go(self) -> None:
        """Ends the work where it is."""
        if isinstance(self._steps, Generator):
            self._steps.close()
        self._steps = self.answering = None

    def put(self, event: Event) -> None:
        """Gives an event to whoever reads; what they were told before the work was begun anew is not told again."""
        match event:
            case Warning(sentence):
                if self._anew and sentence in self._said:
                    return
                self._said.add(sentence)
            case TextDelta() | RegionFound():
                self._shown = True
            case Done() | Failed():
                self.over = True
            case _:
                pass
        self._silent = False
        self._hand_over(event)

    def refuse(self, error: InputError) -> None:
        """Tells that the request itself is wrong, which could not be known before; raised where nothing came before."""
        self.over = True
        self._hand_over(error if self._silent else Failed(error.code, error.sentence, error.remedy))

    def take(self) -> Event:
        """The next event; waits for it.

        Raises:
            InputError: See `refuse`.
        """
        with self._come:
            if not self._items:
                gather = self._read + TOGETHER_SECONDS - time.monotonic()
                if gather > 0:
                    self._come.wait_for(lambda: self.over, gather)
                self._awaited = True
                self._come.wait_for(lambda: self._items)
                self._awaited = False
                self._read = time.monotonic()
            item = self._items.popleft()
        if isinstance(item, InputError):
            raise item
        return item

    def _hand_over(self, item: Event | InputError) -> None:
        with self._come:
            self._items.append(item)
            if self._awaited or self.over:
                self._come.notify()


class Stream(Iterator[Event]):
    """The events of one request; to close or to drop it ends the work behind it.

    Args:
        job: The request.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._over = False

    def __next__(self) -> Event:
        """The next event; waits for it."""
        if self._over:
            raise StopIteration
        try:
            event = self._job.take()
        except InputError:
            self._over = True
            raise
        self._over = isinstance(event, Done | Failed)
        return event

    def close(self) -> None:
        """Ends the work at its next step; nothing more comes."""
        self._over = True
        self._job.dropped.set()
        self._job.stop.set()

    def __del__(self) -> None:
        self.close()
