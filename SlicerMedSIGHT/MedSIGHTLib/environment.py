"""Where the model on this computer is installed: a folder of the person's own, with a Python of its own.

Nothing is put into the viewer's Python. What is installed can be thrown away by throwing the folder away.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medsight_core import __version__
from medsight_core.errors import MedSightError
from medsight_core.wire import PROTOCOL

from .settings import Settings
from .words import _

OLDEST: Final = (3, 11)
"""The oldest Python that MedSIGHT runs on."""

_MARK: Final = "medsight-backend.json"

PROBE: Final = """\
import importlib.util as u, json, struct, sys
try:
    from medsight_core import __version__ as medsight
    from medsight_core.wire import PROTOCOL as protocol
except Exception:
    medsight, protocol = "", 0
print("MEDSIGHT " + json.dumps({
    "version": list(sys.version_info[:2]), "bits": 8 * struct.calcsize("P"), "venv": bool(u.find_spec("ensurepip")),
    "medsight": medsight, "protocol": protocol,
    "lacks": [n for n in ("torch", "transformers", "fastapi", "uvicorn") if not u.find_spec(n)]}))
"""
"""A program that says what a Python is and has; see `Found`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What an installation takes, in GB.

    Attributes:
        download: From the network.
        disk: In the folder.
    """

    download: float
    disk: float


SIZES: Final[Mapping[bool, Size]] = {False: Size(download=0.5, disk=1.8), True: Size(download=3.5, disk=8.0)}
"""Without and with support for NVIDIA's GPUs, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a Python said of itself.

    Attributes:
        version: Its own.
        bits: 64, or it is too small.
        venv: Whether it can make an environment.
        medsight: Version of MedSIGHT in it, "" where there is none.
        protocol: Of that.
        lacks: Packages that a server needs and that it does not have.
    """

    version: tuple[int, int]
    bits: int
    venv: bool
    medsight: str
    protocol: int
    lacks: tuple[str, ...]

    @property
    def can_make(self) -> bool:
        """Whether an environment can be made with it."""
        return self.version >= OLDEST and self.bits == 64 and self.venv

    @property
    def problem(self) -> str:
        """Why it cannot serve a model to this viewer, as a sentence; "" where it can."""
        if not self.medsight:
            return _("MedSIGHT is not installed in it.")
        if self.lacks:
            return _("It lacks {packages}.").format(packages=", ".join(self.lacks))
        if self.protocol != PROTOCOL:
            return _("It has MedSIGHT {its}, and this viewer {ours}: they do not understand each other.").format(
                its=self.medsight, ours=__version__
            )
        return ""


def read_probe(lines: Sequence[str]) -> Found | None:
    """What `PROBE` said; None where it said nothing of use."""
    for line in reversed(lines):
        if line.startswith("MEDSIGHT "):
            try:
                said = json.loads(line.removeprefix("MEDSIGHT "))
                major, minor = said["version"]
                return Found(
                    version=(int(major), int(minor)),
                    bits=int(said["bits"]),
                    venv=bool(said["venv"]),
                    medsight=str(said["medsight"]),
                    protocol=int(said["protocol"]),
                    lacks=tuple(map(str, said["lacks"])),
                )
            except (ValueError, KeyError, TypeError):
                return None
    return None


def folder_of(settings: Settings) -> Path:
    """Where the installation is, or would be."""
    return Path(settings.folder) if settings.folder else usual_folder()


def usual_folder() -> Path:
    """Where it goes unless a person says otherwise."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "medsight" / "backend"


def python_in(folder: Path) -> Path:
    """The Python of an installation, whether or not it is there."""
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def mark_installed(folder: Path, found: Found) -> None:
    """Remembers that an installation was complete."""
    (folder / _MARK).write_text(json.dumps({"medsight": found.medsight, "protocol": found.protocol}), "utf-8")


def is_installed(folder: Path) -> bool:
    """Whether an installation was complete, and is of this viewer's age."""
    try:
        kept = json.loads((folder / _MARK).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return python_in(folder).is_file() and isinstance(kept, dict) and kept.get("protocol") == PROTOCOL


def free_gb(folder: Path) -> float | None:
    """Room where the folder is or would be; None where that cannot be told."""
    for place in (folder, *folder.parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free / 1e9
            except OSError:
                return None
    return None


def check_room(settings: Settings) -> None:
    """Makes sure that an installation would fit and harm nothing.

    Raises:
        MedSightError: disk_full, folder_not_empty, folder_not_writable.
    """
    folder, size = folder_of(settings), SIZES[settings.gpu]
    free = free_gb(folder)
    if free is not None and free < size.disk:
        raise MedSightError(
            "disk_full",
            _("It takes {size} GB, and there are {free} GB free at {folder}.").format(
                size=f"{size.disk:g}", free=f"{free:.1f}", folder=folder
            ),
            _("Choose another folder, or make room."),
        )
    strange = folder.exists() and not (folder / "pyvenv.cfg").is_file()
    if strange and (not folder.is_dir() or any(folder.iterdir())):
        raise MedSightError(
            "folder_not_empty",
            _("{folder} holds other things already.").format(folder=folder),
            _("Choose an empty folder or a new one."),
        )
    place = next(one for one in (folder, *folder.parents) if one.exists())
    if not os.access(place, os.W_OK):
        raise MedSightError(
            "folder_not_writable",
            _("Nothing can be written to {folder}.").format(folder=place),
            _("Choose another folder."),
        )


def pythons() -> list[str]:
    """Programs that may be a Python to make an environment with; the system's first, the viewer's own last."""
    found = [
        path for path in map(shutil.which, ("python3.13", "python3.12", "python3.11", "python3", "python")) if path
    ]
    if sys.platform == "darwin":  # a program with windows has a short PATH there; and Apple's own opens a dialog
        places = ("/opt/homebrew/bin", "/usr/local/bin", "/Library/Frameworks/Python.framework/Versions/Current/bin")
        found = [path for path in found if path != "/usr/bin/python3"]
        found += [str(path) for place in places if (path := Path(place) / "python3").is_file()]
    if sys.platform == "win32":
        place = Path(os.environ.get("LOCALAPPDATA", "")) / "Programs" / "Python"
        found += sorted(map(str, place.glob("Python3*/python.exe")), reverse=True)
        found = [path for path in found if "WindowsApps" not in path]  # that one opens a shop
    return list(dict.fromkeys([*found, *viewers_pythons()]))


def viewers_pythons() -> list[str]:
    """The viewer's own Python, where it has one that can be started by itself."""
    home = viewer_home()
    names = ("PythonSlicer", "PythonSlicer.exe")
    return [str(path) for name in names if home and (path := Path(home) / "bin" / name).is_file()]


def viewer_home() -> str:
    """Where the viewer is installed; "" where that cannot be told."""
    try:
        return str(sys.modules["slicer"].app.slicerHome or "")
    except (KeyError, AttributeError):  # outside Slicer
        return ""


def made_by_the_viewer(folder: Path, home: str) -> bool:
    """Whether an environment was made with the viewer's own Python, which needs the viewer's variables to start.

    Args:
        folder: Of the installation.
        home: Where the viewer is installed; "" where that is unknown.
    """
    try:
        lines = (folder / "pyvenv.cfg").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    base = next((line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == "home"), "")
    return bool(home and base) and Path(base).is_relative_to(home)


def make_command(python: str, folder: Path) -> list[str]:
    """Makes an environment; what is in the folder already stays."""
    return [python, "-m", "venv", str(folder)]


def install_commands(settings: Settings) -> list[list[str]]:
    """Fills an environment. PyTorch goes first and alone: what follows finds it and does not fetch another build."""
    pip = [str(python_in(folder_of(settings))), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    quiet = ["--progress-bar", "off"]
    torch = ["torch>=2.6"]
    if settings.torch_index and not settings.gpu and sys.platform != "darwin":
        torch += ["--index-url", settings.torch_index]
    return [
        [*pip, *quiet, "--upgrade", "pip"],
        [*pip, "--progress-bar", "raw", *torch],  # raw: bytes, which are counted here; the new pip knows how
        [*pip, "--progress-bar", "raw", "--upgrade", "--upgrade-strategy", "only-if-needed", settings.package],
    ]
