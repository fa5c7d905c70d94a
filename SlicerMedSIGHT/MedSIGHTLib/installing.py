"""Installs the model on this computer: find a Python, make an environment, fill it, look whether it works."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medsight_core.errors import MedSightError

from .environment import (
    OLDEST,
    PROBE,
    check_room,
    folder_of,
    install_commands,
    made_by_the_viewer,
    make_command,
    mark_installed,
    python_in,
    pythons,
    read_probe,
    viewer_home,
    viewers_pythons,
)
from .process import End, Process, inside, outside
from .settings import Settings
from .words import _

_DONE: Final = re.compile(r"Progress (\d+) of (\d+)")
_ERROR: Final = re.compile(r"(?:ERROR|error): (.+)")

# What a person can do about it, by what pip or venv says.
_REASONS: Final[tuple[tuple[str, str, str], ...]] = (
    ("No space left on device", _("The disk is full."), _("Make room, or choose another folder.")),
    (
        "CERTIFICATE_VERIFY_FAILED",
        _("A proxy on the way shows a certificate of its own."),
        _("Set the option cert of pip."),
    ),
    ("ProxyError", _("The proxy on the way does not let this through."), _("Check the variable https_proxy.")),
    (
        "NewConnectionError",
        _("The packages cannot be reached from here."),
        _("Check the network, or the proxy of pip."),
    ),
    (
        "NameResolutionError",
        _("The packages cannot be reached from here."),
        _("Check the network, or the proxy of pip."),
    ),
    ("Read timed out", _("The packages came too slowly."), _("Try again; what has arrived is kept.")),
    (
        "ensurepip is not available",
        _("That Python lacks venv."),
        _("On Debian and Ubuntu: install python3-venv."),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One program of an installation.

    Attributes:
        title: What it does, for a person.
        command: The program.
        own: Whether it needs the viewer's environment.
    """

    title: str
    command: Sequence[str]
    own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a step went."""

    code: int
    lines: tuple[str, ...]


def steps(settings: Settings, candidates: Callable[[], Sequence[str]] = pythons) -> Generator[Step, Ran, str]:
    """What has to be done, one behind the other; it is sent how each went.

    Args:
        settings: Where to, and what.
        candidates: Gives the programs that may be a Python.

    Returns:
        A sentence about what there is now.

    Raises:
        MedSightError: Why it cannot be done.
    """
    folder = folder_of(settings)
    python = str(python_in(folder))
    own = made_by_the_viewer(folder, viewer_home())
    if Path(python).is_file():
        found = read_probe(
            (yield Step(title=_("Looking at what is there"), command=[python, "-c", PROBE], own=own)).lines
        )
        if found is not None and not found.problem:
            mark_installed(folder, found)
            return _("MedSIGHT {version} is installed.").format(version=found.medsight)
    check_room(settings)
    if not Path(python).is_file():
        base = yield from _find(candidates())
        own = base in viewers_pythons()
        ran = yield Step(title=_("Making an environment"), command=make_command(base, folder), own=own)
        if ran.code != 0:
            raise _failure(_("An environment could not be made."), ran.lines)
    titles = (_("Preparing pip"), _("Installing PyTorch"), _("Installing MedSIGHT"))
    for title, command in zip(titles, install_commands(settings), strict=True):
        ran = yield Step(title=title, command=command, own=own)
        if ran.code != 0 and command is not install_commands(settings)[0]:
            raise _failure(_("{step} failed.").format(step=title), ran.lines)
    found = read_probe((yield Step(title=_("Looking whether it works"), command=[python, "-c", PROBE], own=own)).lines)
    if found is None:
        raise MedSightError("no_python", _("The environment that was made does not start."), _("See the log."))
    if found.problem:
        raise MedSightError(
            "not_installed",
            _("The installation is not complete: {problem}").format(problem=found.problem),
            _("See the log."),
        )
    mark_installed(folder, found)
    return _("MedSIGHT {version} is installed.").format(version=found.medsight)


def _find(candidates: Sequence[str]) -> Generator[Step, Ran, str]:
    """The first Python that can make an environment."""
    seen = []
    for python in candidates:
        own = python in viewers_pythons()
        found = read_probe((yield Step(title=_("Looking for Python"), command=[python, "-c", PROBE], own=own)).lines)
        if found is not None and found.can_make:
            return python
        if found is not None:
            seen.append(".".join(map(str, found.version)) + ("" if found.venv else f" {_('without venv')}"))
    oldest = ".".join(map(str, OLDEST))
    needed = (
        _("It takes a Python of {oldest} or newer that can make environments; there is {versions}.")
        if seen
        else _("It takes a Python of {oldest} or newer that can make environments.")
    )
    raise MedSightError(
        "no_python",
        needed.format(oldest=oldest, versions=", ".join(dict.fromkeys(seen))),
        _("Install one from python.org; on Debian and Ubuntu also python3-venv."),
    )


def _failure(sentence: str, lines: Sequence[str]) -> MedSightError:
    text = "\n".join(lines)
    for mark, reason, remedy in _REASONS:
        if mark in text:
            return MedSightError("install_failed", f"{sentence} {reason}", remedy)
    said = [found[1] for line in lines if (found := _ERROR.search(line))]
    return MedSightError("install_failed", f"{sentence} {said[0][:300]}" if said else sentence, _("See the log."))


class Installer:
    """Runs the steps.

    Args:
        parent: A widget or object; everything goes with it.
        script: The steps.
        on_line: Is given what programs say.
        on_step: Is told what is being done and how much of it, 0 to 1, or None.
        on_end: Is given a sentence, and an error or None, exactly once.
    """

    def __init__(
        self,
        parent: Any,
        script: Generator[Step, Ran, str],
        *,
        on_line: Callable[[str], Any],
        on_step: Callable[[str, float | None], Any],
        on_end: Callable[[str, MedSightError | None], Any],
    ) -> None:
        self._parent = parent
        self._script = script
        self._on_line = on_line
        self._on_step = on_step
        self._on_end = on_end
        self._process: Process | None = None
        self._step = Step(title="", command=())
        self._lines: list[str] = []
        self._stopped = False
        self._go_on(None)

    def stop(self) -> None:
        """Ends it; what has arrived stays and is taken up the next time."""
        self._stopped = True
        if self._process is not None:
            self._process.stop()

    def close(self) -> None:
        """Ends it now, for when the viewer ends; nobody is told."""
        self._stopped = True
        self._on_end = _nothing
        if self._process is not None:
            self._process.close()

    def _go_on(self, ran: Ran | None) -> None:
        try:
            if self._stopped:
                raise MedSightError("stopped", _("The installation was stopped."), _("It goes on where it was."))
            self._step = next(self._script) if ran is None else self._script.send(ran)
        except StopIteration as end:
            self._over(str(end.value), None)
        except MedSightError as error:
            self._over("", error)
        except OSError as error:
            self._over(
                "",
                MedSightError(
                    "install_failed", _("The folder cannot be used: {reason}.").format(reason=error.strerror), ""
                ),
            )
        else:
            self._lines = []
            self._on_step(self._step.title, None)
            environment: Mapping[str, str] = inside() if self._step.own else outside()
            self._process = Process(
                self._parent,
                self._step.command,
                on_line=self._line,
                on_end=self._ended,
                environment={**environment, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                folder=str(Path(self._step.command[0]).parent),  # nothing is imported from where the viewer works
            )
            self._process.start()

    def _over(self, sentence: str, error: MedSightError | None) -> None:
        self._process = None
        self._script.close()
        on_end, self._on_end = self._on_end, _nothing
        on_end(sentence, error)

    def _line(self, line: str) -> None:
        done = _DONE.match(line)
        if done is not None:
            total = int(done[2])
            self._on_step(self._step.title, int(done[1]) / total if total else None)
            return
        self._lines.append(line)
        if not line.startswith("MEDSIGHT "):
            self._on_line(line)

    def _ended(self, end: End) -> None:
        self._go_on(Ran(code=-1 if end.crashed else end.code, lines=tuple(self._lines)))


def _nothing(*_anything: Any) -> None:
    pass
