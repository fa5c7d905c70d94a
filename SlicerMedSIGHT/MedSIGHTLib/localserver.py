"""The model on this computer: installed at a person's wish, started as a program of its own, and gone with the viewer.

It listens on this computer only, at a port that the system chooses, and lets in nobody but this viewer: each start has
a token of its own, which is told through the environment and written nowhere.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, Literal

from medsight_core.errors import MedSightError

from ._qt import alive, clean, qt
from .environment import folder_of, is_installed, made_by_the_viewer, python_in, viewer_home
from .installing import Installer, Ran, Step, steps
from .process import End, Process, inside, outside
from .settings import Settings, Store
from .words import _

State = Literal["missing", "installing", "stopped", "starting", "running", "stopping", "failed"]

LINES: Final = 500
"""Of the log that are kept."""
NOT_INSTALLED: Final = _("Not installed yet.")
READY: Final = _("Ready to start.")
START_SECONDS: Final = 180
"""After which a server that says nothing is given up."""

LAUNCH: Final = """\
import os, signal, sys, threading
def watch():
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    signal.raise_signal(signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
from medsight_core.server.cli import app
app(["serve", *sys.argv[1:]], prog_name="medsight")
"""
"""Serves for as long as its standard input is open, so that it ends with the viewer, however that ends.

Python is told with -P to take nothing from the folder that the viewer happens to work in.
"""

_SERVES: Final = re.compile(r"serves (?P<model>.+?) \((?P<digest>\w*), (?P<device>\S+)\) at (?P<url>https?://[^\s,]+)")
_ERROR: Final = re.compile(r"(?:error: (?P<said>.+)|(?P<kind>\w+(?:Error|Exception)): .+)")
_BUSY: Final = ("installing", "starting", "running", "stopping")


class LocalServer:
    """A server of our own.

    Args:
        parent: A widget or object; everything goes with it.
        store: Where it is installed stands there.
        python: Serves instead of that of the installation; for tests and for those who develop it.
        environment: Added to that of the server.
        script: Gives the steps of an installation.
    """

    def __init__(
        self,
        parent: Any,
        store: Store,
        *,
        python: str = "",
        environment: Mapping[str, str] | None = None,
        script: Callable[[Settings], Generator[Step, Ran, str]] = steps,
    ) -> None:
        self._parent = parent
        self._store = store
        self._python = python
        self._more = dict(environment or {})
        self._script = script
        self._callbacks: list[Callable[[], Any]] = []
        self._process: Process | None = None
        self._installer: Installer | None = None
        self._lines: deque[str] = deque(maxlen=LINES)
        self._problem = ""
        self._again = False
        self._closed = False
        self._late = qt.QTimer(parent)
        self._late.setSingleShot(True)
        self._late.timeout.connect(lambda *a: self._too_late())
        self.state: State = "missing"
        self.sentence = ""
        self.fraction: float | None = None
        self.written = 0
        self.url = ""
        self.token = ""
        self.look()

    @property
    def busy(self) -> bool:
        """Whether a program of ours runs."""
        return self.state in _BUSY

    @property
    def installed(self) -> bool:
        """Whether there is something to start."""
        return bool(self._python) or is_installed(folder_of(self._store.settings))

    @property
    def origin(self) -> str:
        """Its address while it runs, else ""; may be asked from any thread."""
        return self.url

    @property
    def log(self) -> tuple[str, ...]:
        """What programs said last; `written` counts all lines that ever came."""
        return tuple(self._lines)

    @property
    def pid(self) -> int:
        """Number of the program, 0 where none runs."""
        return 0 if self._process is None else self._process.pid

    def on_change(self, callback: Callable[[], Any]) -> None:
        """Calls a function whenever there is something new to show."""
        self._callbacks.append(callback)

    def look(self) -> None:
        """Looks whether it is installed, as after another folder was chosen."""
        if self.busy:
            return
        if not self.installed:
            self._become("missing", NOT_INSTALLED)
        elif self.state == "missing":
            self._become("stopped", READY)

    def install(self) -> None:
        """Installs it, or what is missing of it, and starts it."""
        if self.busy:
            return
        self._become("installing", _("Installing"))
        self._installer = Installer(
            self._parent,
            self._script(self._store.settings),
            on_line=self._write,
            on_step=lambda title, fraction: self._become("installing", title, fraction),
            on_end=self._installed,
        )

    def start(self, port: int = 0) -> None:
        """Starts it, and says later whether that went well.

        Args:
            port: Where it listens; 0 for any that is free.
        """
        if self.busy or self._closed or self._process is not None:
            return
        if not self.installed:
            self._become("missing", NOT_INSTALLED)
            return
        python, own = self._python, False
        if not python:
            folder = folder_of(self._store.settings)
            python, own = str(python_in(folder)), made_by_the_viewer(folder, viewer_home())
        self._problem, self.token = "", secrets.token_urlsafe(32)
        environment = {**(inside() if own else outside()), **self._more}
        environment |= {"MEDSIGHT_TOKEN": self.token, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        self._become("starting", _("Starting, which takes some seconds"))
        self._late.start(1000 * START_SECONDS)
        command = [python, "-P", "-c", LAUNCH, "--host", "127.0.0.1", "--port", str(port)]
        if not self._python:  # beside the rest of it, so that one folder is all there is to throw away
            command += ["--store", str(folder_of(self._store.settings) / "volumes")]
        self._process = Process(self._parent, command, on_line=self._said, on_end=self._ended, environment=environment)
        self._process.start()

    def stop(self) -> None:
        """Ends it, or its installation."""
        if self._installer is not None:
            self._installer.stop()
        elif self._process is not None and self.state != "stopping":
            self.url = ""
            self._become("stopping", _("Stopping"))
            self._process.stop()

    def restart(self) -> None:
        """Starts it anew."""
        if self._process is None:
            self.start()
        else:
            self._again = True
            self.stop()

    def close(self) -> None:
        """Ends everything now: for when the module or the viewer goes."""
        self._closed = True
        self._callbacks.clear()
        self.url = self.token = ""
        if alive(self._late):
            self._late.stop()
        if self._installer is not None:
            self._installer.close()
        if self._process is not None:
            self._process.close()

    def _installed(self, sentence: str, error: MedSightError | None) -> None:
        self._installer = None
        if error is None:
            self._become("stopped", f"{sentence} {READY}")
            self.start()
        elif error.code == "stopped":
            self._become("missing", str(error))
        else:
            self._write(f"error: {error}")
            self._become("failed", str(error))

    def _said(self, line: str) -> None:
        self._write(line)
        error = _ERROR.match(line.strip())
        if error is not None:
            self._problem = error["said"] or error[0]
        serves = _SERVES.search(line)
        if serves is not None and self.state == "starting":
            self._late.stop()
            self.url = serves["url"]
            self._become(
                "running", _("Running: {model} on {device}.").format(model=serves["model"], device=serves["device"])
            )

    def _ended(self, end: End) -> None:
        before, self._process, self.url, self.token = self.state, None, "", ""
        self._late.stop()
        if end.told and before != "failed":
            self._become("stopped", _("Stopped."))
        elif before == "running":
            said = (
                _("The local backend ended by itself."),
                _("It was ended from outside, or ran out of memory.") if end.crashed else "",
                _ended_with_a_stop(self._problem),
                _("Start it again."),
            )
            self._become("failed", " ".join(filter(None, said)))
        elif before == "starting":
            no_python = _("Its Python cannot be started.") if end.code == -1 else ""
            why = _ended_with_a_stop(self._problem) or no_python
            said = (_("The local backend did not start."), why, _("See the log."))
            self._become("failed", " ".join(filter(None, said)))
        if self._again:
            self._again = False
            self.start()

    def _too_late(self) -> None:
        if self.state == "starting" and self._process is not None:
            self._become(
                "failed",
                _("The local backend said nothing for {seconds} s and was ended. See the log.").format(
                    seconds=START_SECONDS
                ),
            )
            self._process.stop()

    def _write(self, line: str) -> None:
        text = clean(line)
        self._lines.append(text.replace(self.token, "…") if self.token else text)
        self.written += 1
        self._tell()

    def _become(self, state: State, sentence: str, fraction: float | None = None) -> None:
        self.state, self.sentence, self.fraction = state, sentence, fraction
        self._tell()

    def _tell(self) -> None:
        for callback in tuple(self._callbacks):
            callback()


def _ended_with_a_stop(sentence: str) -> str:
    words = sentence.strip()
    return f"{words.rstrip('.')}." if words else ""
