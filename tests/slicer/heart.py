"""Whether the main thread was ever away for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST = 0.1
"""Seconds for which a person notices nothing."""
TRIES = 3
"""How often a fault is played at most until the main thread was never away: on a machine that is busy with other
things, any thread can be; a defect would show each time."""


class Heart:
    """Beats in the main thread, and knows the longest pause for which the machine itself was not to blame.

    Args:
        library: ``MedSIGHTLib``.
    """

    def __init__(self, library: Any) -> None:
        from PySide6 import QtCore

        self.longest = 0.0
        self._last = self._now()
        self._timer = QtCore.QTimer()
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.setInterval(5)
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def stop(self) -> None:
        self._beat()
        self._timer.stop()

    def _beat(self) -> None:
        now = self._now()
        self.longest = max(self.longest, now - self._last)
        self._last = now

    @staticmethod
    def _now() -> float:
        """Seconds, without those for which this thread could have run and was not let (Linux; else all of them)."""
        try:
            waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            waited = 0.0
        return time.monotonic() - waited


def beating(library: Any, play: Callable[[], Any]) -> float:
    """Plays something, again where the main thread was away for too long; returns for how long it was at most."""
    pauses: list[float] = []
    for _ in range(TRIES):
        heart = Heart(library)
        play()
        heart.stop()
        pauses.append(heart.longest)
        if heart.longest < LONGEST:
            break
    assert min(pauses) < LONGEST, f"the main thread was away for {[round(1000 * pause) for pause in pauses]} ms"
    return min(pauses)
