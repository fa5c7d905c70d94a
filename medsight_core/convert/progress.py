"""How far a conversion is, in bytes: a bar where a person sees it, a line now and then where none does."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from medsight_core.cli.group import say

EVERY: Final = 60.0
"""Seconds between two lines in a log."""


class Meter:
    """Counts bytes.

    Args:
        what: Is being done.
        total: Bytes there will be.
        bar: Where a person sees it.
        every: Seconds between two lines where none does.
    """

    def __init__(self, what: str, total: int, bar: Progress | None, *, every: float) -> None:
        self._what, self._total, self._bar, self._every = what, total, bar, every
        self._task = None if bar is None else bar.add_task(what, total=total)
        self._last = time.monotonic()
        self._done = 0

    def advance(self, count: int) -> None:
        """So many more."""
        self._done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            say(f"{self._what}: {self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB")


@contextmanager
def metered(what: str, total: int, *, quiet: bool) -> Iterator[Meter]:
    """A meter while its body runs."""
    if quiet or not sys.stderr.isatty():
        yield Meter(what, total, None, every=math.inf if quiet else EVERY)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Meter(what, total, bar, every=EVERY)
