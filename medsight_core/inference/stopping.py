"""Stopping work about a volume in the middle of it, within a slice's time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

from medsight_core.events import Failed

Made = TypeVar("Made")

STOPPED: Final = Failed(
    "stopped", "The question was stopped before it was answered; nothing was kept of it.", "Ask again."
)
"""How the stream of a question that was stopped ends."""

PAUSE: Final = 0.005
"""Seconds between two looks at whether something is done or to be stopped."""


class Stopped(Exception):
    """Whoever asked does not want the answer any more."""


def check_stop(cancel: threading.Event | None) -> None:
    """Raises `Stopped` where ``cancel`` is set."""
    if cancel is not None and cancel.is_set():
        raise Stopped


def stoppable(work: Callable[[], Made], cancel: threading.Event | None) -> Generator[None, None, Made]:
    """Does work that cannot look at ``cancel`` itself, such as SimpleITK's; where it is stopped it is left to its end.

    Now and then it gives a chance to do something else meanwhile.

    Raises:
        Stopped: ``cancel`` was set.
    """
    if cancel is None:
        return work()
    aside = ThreadPoolExecutor(1, "medsight-join")
    try:
        future = aside.submit(work)
        while True:
            check_stop(cancel)
            if future in wait((future,), timeout=PAUSE).done:
                return future.result()
            yield
    finally:
        aside.shutdown(wait=False)
