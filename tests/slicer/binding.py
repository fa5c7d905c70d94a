"""The panel's package on one of two bindings: plain PySide6, or `pythonqt_shim`."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULE = Path(__file__).resolve().parents[2] / "SlicerMedSIGHT"


class Library:
    """``MedSIGHTLib`` as it was imported for one binding.

    Attributes:
        name: "plain" or "shim".
        app: Qt's application.
    """

    def __init__(self, name: str, app: Any) -> None:
        self.name = name
        self.app = app

    def __getattr__(self, module: str) -> Any:
        if module.startswith("__"):
            raise AttributeError(module)
        return importlib.import_module(f"MedSIGHTLib.{module}")

    def settle(self, milliseconds: int = 0) -> None:
        """Lets Qt's loop run, for a while or until there is nothing more to do."""
        from qtpy import QtCore

        loop = QtCore.QEventLoop()
        QtCore.QTimer.singleShot(milliseconds, loop.quit)
        loop.exec_()


def library(name: str) -> Iterator[Library]:
    """Imports the package for a binding, and forgets it afterwards."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from qtpy import QtWidgets

    app = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["MedSIGHT"])
    before = sys.modules.get("qt")
    _forget()
    shim: types.ModuleType | None = None
    if name == "shim":
        from tests.slicer.pythonqt_shim import Shim

        shim = sys.modules["qt"] = Shim()
    else:
        sys.modules.pop("qt", None)
    sys.path.insert(0, str(MODULE))
    try:
        yield Library(name, app)
    finally:
        sys.path.remove(str(MODULE))
        _forget()
        sys.modules.pop("qt", None)
        if before is not None:
            sys.modules["qt"] = before
    if shim is not None:
        assert not shim.errors, f"slots raised {shim.errors}"


def _forget() -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == "MedSIGHTLib"]:
        del sys.modules[module]
