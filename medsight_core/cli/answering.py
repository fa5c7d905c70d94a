"""One answer of a conversation at the terminal: shown while it is written, and stopped by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from rich.console import Console

from medsight_core import events
from medsight_core.chat import Conversation, Turn
from medsight_core.cli.ask import is_plan
from medsight_core.cli.console import AnswerView, status
from medsight_core.cli.group import say

STOPPED = events.Failed("stopped", "The answer was stopped before it was complete.", "Ask again.")
BROKEN = events.Failed("internal_error", "Something unexpected went wrong.", "Ask again.")


def follow(
    stream: Iterator[events.Event], conversation: Conversation, console: Console, cancel: threading.Event
) -> Turn:
    """Hands the events of an answer to its conversation, and shows them.

    Ctrl-C stops the answer, and the stream comes to its end; a second one does not wait for that.

    Args:
        stream: From `medsight_core.chat.put`.
        conversation: In which the turn has begun.
        console: For stdout.
        cancel: Of the stream.

    Returns:
        The turn as it ended.
    """
    with _stoppable(cancel), AnswerView(console) as view, ExitStack() as waiting:
        tell = waiting.enter_context(status("Looking", quiet=False))
        turn = conversation.turns[-1]
        try:
            for event in stream:
                turn = conversation.take(event)
                _show(event, view, waiting, tell)
        except KeyboardInterrupt:
            turn = conversation.take(STOPPED)
        except BaseException:
            conversation.take(BROKEN)
            raise
    return turn


def _show(event: events.Event, view: AnswerView, waiting: ExitStack, tell: Callable[[str], None]) -> None:
    match event:
        case events.TextDelta(text):
            waiting.close()  # two animations on one terminal would overwrite each other
            view.write(text)
        case events.RegionFound(region):
            waiting.close()
            view.found(region)
        case events.Progress(done, total, what):
            if is_plan(event):
                say(what)
            else:
                words = f"{what} {done}/{total}" if done and total else what
                tell(words)  # before there is an answer
                view.busy(words)  # below it
        case _:
            pass


@contextmanager
def _stoppable(cancel: threading.Event) -> Iterator[None]:
    """Ctrl-C sets ``cancel``; a second one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
