"""What tests of settings, consent and servers share: settings in a file of their own, and patience."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds after which a test gives up waiting for what must happen; nothing is measured by it."""


def stored(lib: Any, folder: Path) -> Any:
    """Settings in a file of the test's own, as they are read anew at each call."""
    qt = lib._qt.qt
    file = qt.QSettings(str(folder / "settings.ini"), qt.QSettings.IniFormat)
    return lib.settings.Store(file)


def kept(store: Any, folder: Path) -> str:
    """What stands in that file."""
    store._file.sync()
    path = folder / "settings.ini"
    return path.read_text() if path.exists() else ""


def until(lib: Any, happened: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Lets Qt's loop run until something that must happen has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = happened()
        if result:
            return result
        lib.settle(10)
    raise AssertionError("it did not happen")


class Idle:
    """A local server that is never started."""

    def __init__(self) -> None:
        self.url = self.origin = self.token = ""
        self.state = "stopped"
        self.started = 0

    def start(self) -> None:
        self.started += 1
        self.state = "starting"


def connected(lib: Any, folder: Path, **settings: Any) -> Any:
    """A connection with settings of its own."""
    store = stored(lib, folder)
    if settings:
        store.save(lib.settings.Settings(**{"where": "server", **settings}))
    local = Idle()
    return lib.connection.Connection(store, lib.consent.Consents(store, lambda: local.origin), local)
