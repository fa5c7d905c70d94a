"""A program beside the viewer: its lines as they come, its end whatever it was, and no way to outlive the viewer."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ._qt import alive, qt

PATIENCE_MS: Final = 5000
"""How long a program that was told to end may take before it is ended."""
LAST_MS: Final = 1500
"""The same where the viewer itself is about to end, and waits."""
LONGEST_LINE: Final = 4000


class End(NamedTuple):
    """How a program ended.

    Attributes:
        code: What it said, 0 where all was well; -1 where it could not be started.
        crashed: Whether it was ended from outside, or broke down.
        told: Whether we had told it to.
    """

    code: int
    crashed: bool
    told: bool


class Process:
    """A program that runs beside the viewer, once.

    Its standard input stays open for as long as the viewer lives, so that a program can see when that is gone.

    Args:
        parent: A widget or object; the process goes with it.
        command: The program and its arguments.
        on_line: Is given each line that it says.
        on_end: Is told when it is over, exactly once.
        environment: Of the program, all of it.
        folder: In which it works; "" for that of the viewer.
    """

    def __init__(
        self,
        parent: Any,
        command: Sequence[str],
        *,
        on_line: Callable[[str], Any],
        on_end: Callable[[End], Any],
        environment: Mapping[str, str],
        folder: str = "",
    ) -> None:
        self._on_line = on_line
        self._on_end = on_end
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._told = False
        self._over = False
        self._process = qt.QProcess(parent)
        self._process.setProcessChannelMode(qt.QProcess.MergedChannels)
        self._process.setEnvironment([f"{name}={value}" for name, value in environment.items()])
        if folder:
            self._process.setWorkingDirectory(folder)
        self._process.readyReadStandardOutput.connect(lambda *a: self._read())
        self._process.finished.connect(lambda *a: self._finished())
        self._process.errorOccurred.connect(lambda *a: self._failed(a[0]))
        self._patience = qt.QTimer(parent)
        self._patience.setSingleShot(True)
        self._patience.timeout.connect(lambda *a: self._process.kill())
        self._command = list(command)

    def start(self) -> None:
        """Starts it; where that fails, its end may be told before this returns."""
        self._process.start(self._command[0], self._command[1:])

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return not self._over

    @property
    def pid(self) -> int:
        """Its number, 0 where it has none."""
        return int(self._process.processId())

    def stop(self) -> None:
        """Tells it to end, and ends it where it does not; waits for nothing."""
        if self._over or self._told:
            return
        self._tell()
        self._patience.start(PATIENCE_MS)

    def close(self) -> None:
        """Ends it now, and waits until it is gone: for when the viewer itself ends."""
        if self._over or not alive(self._process):
            return
        self._on_line = _nothing
        if not self._told:
            self._tell()
        if not self._process.waitForFinished(LAST_MS):
            self._process.kill()
            self._process.waitForFinished(LAST_MS)

    def _tell(self) -> None:
        self._told = True
        self._process.closeWriteChannel()
        if sys.platform != "win32":  # where it would be a message to windows that such a program has none of
            self._process.terminate()

    def _read(self, *, last: bool = False) -> None:
        text = self._rest + self._decoder.decode(self._process.readAllStandardOutput().data(), last)
        *lines, self._rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if last or len(self._rest) > LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            if line.strip():
                self._on_line(line[:LONGEST_LINE].rstrip())

    def _finished(self) -> None:
        if not self._over:
            self._read(last=True)
            self._ended(
                End(int(self._process.exitCode()), self._process.exitStatus() == qt.QProcess.CrashExit, self._told)
            )

    def _failed(self, error: Any) -> None:
        if error == qt.QProcess.FailedToStart and not self._over:  # then nothing will be finished
            self._ended(End(-1, False, self._told))

    def _ended(self, end: End) -> None:
        self._over = True
        self._patience.stop()
        on_end, self._on_end = self._on_end, _nothing
        on_end(end)
        self._process.deleteLater()
        self._patience.deleteLater()


def outside() -> dict[str, str]:
    """The environment that the viewer was started in, without what would lead another Python astray."""
    try:
        environment = dict(sys.modules["slicer"].util.startupEnvironment())
    except (KeyError, AttributeError):  # outside Slicer
        environment = dict(os.environ)
    return _without(environment, "PYTHON", "MEDSIGHT_", "VIRTUAL_ENV", "__PYVENV")


def inside() -> dict[str, str]:
    """The viewer's own environment, for a Python that was made with the viewer's: it finds its libraries by it."""
    return _without(dict(os.environ), "PYTHONPATH", "PYTHONSTARTUP", "MEDSIGHT_", "VIRTUAL_ENV")


def _without(environment: Mapping[str, str], *beginnings: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(beginnings)}


def _nothing(*_anything: Any) -> None:
    pass
