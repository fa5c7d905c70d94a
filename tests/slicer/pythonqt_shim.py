"""Slicer's ``qt`` in what can be imitated of it on PySide6: properties are values, ``clicked`` passes False, no keyword
arguments, no attributes of one's own on widgets, lists come back as tuples, and more that is refused.

It is stricter than PythonQt where that finds mistakes: half characters and NUL in a text are refused, and what a slot
raises is kept in `errors`. What it cannot imitate (the two bindings' life times, crashes, Python's lock, ``super()``
calls of Qt's methods, the values of enums) is left to ``test_dialect.py`` and to the real binding.
"""

from __future__ import annotations

import inspect
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

MODULES = (QtCore, QtGui, QtNetwork, QtWidgets)
AS_THEY_ARE = {"QApplication", "QGuiApplication", "QCoreApplication"}
VIRTUAL = {"sizeHint", "minimumSizeHint"}  # Qt itself looks these up, and would find a value
CHECKED = {"clicked", "triggered"}
BUILTIN = (types.BuiltinMethodType, types.MethodWrapperType, type(QtCore.QObject().setObjectName))


class Shim(types.ModuleType):
    """The module ``qt``.

    Attributes:
        errors: What was raised in slots.
    """

    def __init__(self) -> None:
        super().__init__("qt")
        self.errors: list[BaseException] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("Q"):
            raise AttributeError(name)
        found = next((getattr(module, name) for module in MODULES if hasattr(module, name)), None)
        if found is None:
            raise AttributeError(f"module 'qt' has no attribute {name!r}")
        if inspect.isclass(found) and issubclass(found, QtCore.QObject) and name not in AS_THEY_ARE:
            found = _imitate(found, self)
        setattr(self, name, found)
        return found


class Proxy:
    """An object that Qt made, such as a scroll bar: read as PythonQt reads it, written through its setters only."""

    __slots__ = ("_real", "_shim")

    def __init__(self, real: Any, shim: Shim) -> None:
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "_shim", shim)

    def __getattr__(self, name: str) -> Any:
        return _read(self._real, name, getattr(self._real, name), self._shim)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name!r}: creating new attributes on C++ objects is not allowed")

    def __eq__(self, other: object) -> bool:
        return bool(self._real == _real(other))

    def __hash__(self) -> int:
        return hash(self._real)


class Signal:
    """A signal of an object."""

    def __init__(self, real: Any, name: str, owner: Any, shim: Shim) -> None:
        self._real, self._name, self._owner, self._shim = real, name, owner, shim

    def connect(self, slot: Callable[..., Any], *more: Any) -> bool:
        if more or isinstance(slot, str):
            raise ValueError(f"Called connect({self._name}) with wrong number of arguments")
        if isinstance(slot, Signal):
            self._real.connect(slot._real)
            return True

        def call(*arguments: Any) -> None:
            try:
                slot(*arguments[: _most_arguments(slot)])
            except Exception as error:
                self._shim.errors.append(error)
                traceback.print_exc()

        def call_checked(checked: bool = False) -> None:
            call(checked)

        self._real.connect(call_checked if self._name in CHECKED else call)
        return True

    def emit(self, *arguments: Any) -> None:
        self._real.emit(*map(_real, arguments))


class Method:
    """A method of Qt on an object."""

    def __init__(self, real: Any, shim: Shim) -> None:
        self._real, self._shim = real, shim

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        _check(arguments, keywords, getattr(self._real, "__name__", "a method"))
        try:
            return _given(self._real(*map(_real, arguments)), self._shim)
        except RuntimeError as error:
            raise ValueError(f"Trying to call a method of a destroyed object: {error}") from None


def _imitate(original: Any, shim: Shim) -> Any:
    """A Qt class that behaves as PythonQt's."""

    def __init__(self: Any, *arguments: Any, **keywords: Any) -> None:
        _check(arguments, keywords, original.__name__)
        if original.__name__ == "QShortcut" and (isinstance(arguments[0], str) or len(arguments) > 2):
            raise ValueError("Could not find matching overload for QShortcut")
        if original.__name__ == "QDialogButtonBox" and arguments and not isinstance(arguments[0], QtWidgets.QWidget):
            raise ValueError("QDialogButtonBox takes its buttons for something else")
        original.__init__(self, *map(_real, arguments))

    def __getattribute__(self: Any, name: str) -> Any:
        value = original.__getattribute__(self, name)
        return value if name.startswith("__") else _read(self, name, value, shim)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is made:
            raise AttributeError(f"{name!r} does not exist on {original.__name__} and creating new attributes on C++ "
                                 "objects is not allowed")  # fmt: skip
        if hasattr(original, name):
            raise AttributeError(f"Slot {name!r} can not be overwritten on {type(self).__name__} object")
        original.__setattr__(self, name, value)

    body = {"__init__": __init__, "__getattribute__": __getattribute__, "__setattr__": __setattr__}
    if original is QtWidgets.QFileDialog:
        for static in ("getOpenFileName", "getSaveFileName"):
            real = getattr(original, static)
            body[static] = staticmethod(lambda *arguments, real=real: real(*arguments)[0])
    made = type(original)(original.__name__, (original,), body)
    return made


def _read(owner: Any, name: str, value: Any, shim: Shim) -> Any:
    """An attribute of a Qt object as PythonQt gives it."""
    if isinstance(value, QtCore.SignalInstance):
        return Signal(value, name, owner, shim)
    if not isinstance(value, BUILTIN):
        return value
    if name not in VIRTUAL and _meta(type(owner)).indexOfProperty(name) >= 0:
        try:
            return _given(value(), shim)
        except RuntimeError as error:
            raise ValueError(f"Trying to read {name!r} of a destroyed object: {error}") from None
    return Method(value, shim)


def _meta(kind: Any) -> QtCore.QMetaObject:
    return kind.staticMetaObject


def _given(value: Any, shim: Shim) -> Any:
    """What Qt returns."""
    if isinstance(value, list):
        return tuple(_given(one, shim) for one in value)
    imitated = "__getattribute__" in vars(type(value)) or isinstance(value, QtCore.QCoreApplication)
    inherits = any("__getattribute__" in vars(kind) and kind.__module__ == __name__ for kind in type(value).__mro__)
    if isinstance(value, QtCore.QObject) and not imitated and not inherits:
        return Proxy(value, shim)
    return value


def _real(value: Any) -> Any:
    return value._real if isinstance(value, Proxy | Signal | Method) else value


def _check(arguments: tuple[Any, ...], keywords: dict[str, Any], what: str) -> None:
    if keywords:
        raise ValueError(f"Called {what} with keyword arguments, but called slot does not support kwargs.")
    for one in arguments:
        if isinstance(one, str) and ("\0" in one or any("\ud800" <= character <= "\udfff" for character in one)):
            raise SystemError(f"{what} was given a text that must be cleaned: {one!r}")
        if what in ("setText", "setPlainText", "setHtml", "insertHtml", "setToolTip") and not isinstance(one, str):
            raise TypeError(f"{what} was given {one!r}")
    if what == "installEventFilter" and not isinstance(arguments[0], QtCore.QObject):
        raise ValueError("Called installEventFilter(QObject filterObj) -> void with wrong arguments")


def _most_arguments(slot: Any) -> int:
    """How many arguments PythonQt passes to a slot: as many as a Python function takes, all to anything else."""
    function = getattr(slot, "__func__", slot)
    code = getattr(function, "__code__", None)
    if code is None or code.co_flags & inspect.CO_VARARGS:
        return sys.maxsize
    return int(code.co_argcount) - (function is not slot)
