"""How far a job is and how long it will take: a bar where a person sees it, a line now and then where none does."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medsight_core.cli.group import say

EVERY: Final = 60.0
"""Seconds between two lines in a log."""


class Meter:
    """Counts answers.

    Args:
        total: How many there will be.
        bar: Where a person sees it.
        every: Seconds between two lines where none does.
    """

    def __init__(self, total: int, bar: Progress | None = None, *, every: float = EVERY) -> None:
        self._total = total
        self._bar = bar
        self._every = every
        self._task = None if bar is None else bar.add_task("", total=total, failed="")
        self._start = self._last = time.monotonic()
        self.done = 0
        self.failed = 0

    def advance(self, *, failed: bool) -> None:
        """One more."""
        self.done += 1
        self.failed += failed
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, failed=f"{self.failed} failed" if self.failed else "")
        elif time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            say(self.sentence())

    def sentence(self) -> str:
        """How far it is, in words."""
        left = (time.monotonic() - self._start) / max(1, self.done) * (self._total - self.done)
        length = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done} of {self._total} answers{failed}; about {length} left."


@contextmanager
def metered(total: int, *, quiet: bool) -> Iterator[Meter]:
    """A meter while its body runs.

    Args:
        total: How many answers there will be.
        quiet: Show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield Meter(total, every=math.inf if quiet else EVERY)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("answers"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}", style="yellow"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Meter(total, bar)
