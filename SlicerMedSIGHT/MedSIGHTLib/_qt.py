"""Qt, whichever binding there is: Slicer's ``qt`` (PythonQt), else what qtpy finds; and what both must be helped with.

The two bindings share a dialect: write with ``setX()``; read with ``val(w.x)``; connect methods, or lambdas that take
``*a``; enums by their short names; base classes called by name; no keyword arguments; no attributes of one's own on
widgets. ``tests/slicer/test_dialect.py`` refuses what only one of them understands.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from typing import Any, Final


def _namespace() -> Any:
    """All of Qt in one flat namespace, as Slicer has it."""
    try:
        import qt as slicers
    except ImportError:
        slicers = None
    if slicers is not None and hasattr(slicers, "QObject"):
        return slicers
    from qtpy import QtCore, QtGui, QtNetwork, QtWidgets

    modules = (QtCore, QtGui, QtNetwork, QtWidgets)
    return types.SimpleNamespace(**{n: v for module in modules for n, v in vars(module).items() if n[0] == "Q"})


qt: Final[Any] = _namespace()

# What a document must never be given: control characters, which cut a text off or vanish; characters that turn the
# direction of all that follows; and those that Qt itself marks frames and pictures with.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffc\ufffe\uffff]"
)
_BREAKS: Final = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")

# Widgets that wait to be deleted. Under PythonQt a widget must not lose its last Python reference while Qt deletes it:
# if that reference sits in a slot connected on it, it is deleted twice. So this list holds it until it is gone; it is
# the one thing in this package that outlives its owner.
_GOING: Final[list[Any]] = []


def val(x: Any) -> Any:
    """Reads ``w.text`` and the like: a value under PythonQt, a method elsewhere."""
    return x() if callable(x) else x


def alive(w: Any) -> bool:
    """Whether a widget still exists on Qt's side."""
    try:
        w.property("objectName")
    except (RuntimeError, ValueError):
        return False
    return True


def dispose(w: Any) -> None:
    """Deletes a top-level widget, once Qt is back in its loop."""
    _GOING[:] = [one for one in _GOING if alive(one)]
    if alive(w):
        _GOING.append(w)
        w.deleteLater()


def clean(text: object) -> str:
    """Any text as Qt may be given it: halves of a character joined or replaced, nothing that cuts or turns it.

    Lines end with a line feed only.
    """
    if text is None:
        return ""
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    words = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _UNSEEN.sub("", _BREAKS.sub("\n", words))


def written(w: Any) -> str:
    """What stands in a line or a cell; "" where half of a character is left of one that was deleted."""
    try:
        return clean(val(w.text))
    except (UnicodeError, SystemError):
        return ""


def path_of(chosen: Any) -> str:
    """The path that a file dialog returned, which some bindings return with its filter; "" where none was chosen."""
    return str(chosen[0] if isinstance(chosen, tuple | list) else chosen or "")


class EventFilter(qt.QObject):  # type: ignore[misc]
    """Shows each event of what it is installed on to a function, which says whether it is dealt with.

    Args:
        parent: Keeps it alive.
        handle: Takes an event, returns True where nobody else shall have it.
    """

    def __init__(self, parent: Any, handle: Callable[[Any], bool]) -> None:
        super().__init__(parent)
        self._handle = handle

    def eventFilter(self, _watched: Any, event: Any) -> bool:
        return bool(self._handle(event))


def _nothing() -> bool:
    return False


class EnterFilter(qt.QObject):  # type: ignore[misc]
    """Keys of a field for a message: Enter sends it, Shift+Enter breaks the line, Up and Down leaf through older ones.

    Args:
        parent: The field; keeps the filter alive.
        send: Called on Enter.
        older: Called on Up; whether it did anything, else the key moves in the text.
        newer: Called on Down, likewise.
    """

    def __init__(
        self,
        parent: Any,
        send: Callable[[], Any],
        older: Callable[[], bool] = _nothing,
        newer: Callable[[], bool] = _nothing,
    ) -> None:
        super().__init__(parent)
        self._send = send
        self._older = older
        self._newer = newer

    def eventFilter(self, _watched: Any, event: Any) -> bool:
        if event.type() != qt.QEvent.KeyPress:
            return False
        key, held = event.key(), event.modifiers()
        if held & (qt.Qt.ShiftModifier | qt.Qt.AltModifier):
            return False
        if key in (qt.Qt.Key_Return, qt.Qt.Key_Enter):
            if not event.isAutoRepeat():
                self._send()
            return True
        if held & qt.Qt.ControlModifier:
            return False
        if key == qt.Qt.Key_Up:
            return bool(self._older())
        return key == qt.Qt.Key_Down and bool(self._newer())
