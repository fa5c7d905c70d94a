"""Looks for Qt that only one of PythonQt and PySide6 understands, in the text of a module, without running it.

What an expression is, is known where it is plain: ``x = qt.QLabel()``, ``self._x = qt.QLabel()``, a method that returns
such a name, an override's class. Elsewhere only what can mean nothing else is refused; reading with ``val()`` is always
allowed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

MODULES = (QtCore, QtGui, QtNetwork, QtWidgets)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
CLICKS = {"clicked", "triggered"}
NO_PROPERTIES = {"visible", "enabled", "checked", "readOnly", "plainText"}
ITEMS = {
    "item",
    "currentItem",
    "takeItem",
    "topLevelItem",
    "itemAt",
    "itemFromIndex",
    "invisibleRootItem",
    "takeTopLevelItem",
}
ONE_BINDING = {
    "QTest", "QSvgWidget", "QRegExp", "QDesktopWidget", "QThread", "QSignalBlocker", "Signal", "Slot", "Property",
    "QUiTools", "qVersion", "QStringList", "QVariant",
}  # fmt: skip
OLD_KEYS = {"CTRL", "SHIFT", "ALT", "META"}
TEXTS = {"setText", "setPlainText", "setHtml", "setToolTip", "setTitle", "setWindowTitle", "setPlaceholderText"}
SWITCHES = {"setChecked", "setEnabled", "setVisible", "setHidden", "setReadOnly", "setCheckable"}
ENUM_SETTERS = {
    "setAlignment", "setTextAlignment", "setSizePolicy", "setFrameShape", "setFrameShadow", "setTextFormat",
    "setOrientation", "setWindowModality", "setCheckState", "setFocusPolicy", "setContextMenuPolicy", "setEditTriggers",
}  # fmt: skip
BYTES = re.compile(r"readAll\w*|readLine|toBase64|toHex|saveGeometry|saveState|toUtf8")
FILES = {"getOpenFileName", "getSaveFileName"}
ANSWERS = {"getOpenFileNames", "getText", "getMultiLineText", "getItem", "getInt", "getDouble"}
GETTERS = {"verticalScrollBar": "QScrollBar", "horizontalScrollBar": "QScrollBar", "viewport": "QWidget"}
DIALOGS = {"QDialog", "QMessageBox", "QProgressDialog", "QFileDialog", "QMainWindow", "QInputDialog"}
RICH = {"QTextEdit", "QTextBrowser"}


@dataclass(frozen=True, order=True)
class Fault:
    """What is refused, and where."""

    line: int
    what: str


@cache
def qt_class(name: str) -> Any:
    """A class of Qt, or None."""
    found = (getattr(module, name, None) for module in MODULES)
    return next((kind for kind in found if isinstance(kind, type)), None)


@cache
def properties(name: str) -> frozenset[str]:
    """Names of a class's properties."""
    kind = qt_class(name)
    if kind is None or not issubclass(kind, QtCore.QObject):
        return frozenset()
    meta = kind.staticMetaObject
    return frozenset(meta.property(n).name() for n in range(meta.propertyCount()))


def _objects() -> Iterator[str]:
    for name in (name for module in MODULES for name in dir(module) if name.startswith("Q")):
        kind = qt_class(name)
        if kind is not None and issubclass(kind, QtCore.QObject):
            yield name


@cache
def unmistakable() -> frozenset[str]:
    """Properties that nothing but a property is called: in camel case, and of what the panel is made of."""
    found: set[str] = {"isActiveWindow", "hasSelectedText", "wasCanceled", "document"}
    for name in _objects():
        kind = qt_class(name)
        if issubclass(kind, QtWidgets.QWidget):
            found |= {one for one in properties(name) if re.match(r"[a-z]+[A-Z]", one)}
    return frozenset(found)


@cache
def methods() -> frozenset[str]:
    """Methods of Qt's objects that are in camel case, as no function of ours is."""
    return frozenset(one for name in _objects() for one in dir(qt_class(name)) if re.match(r"[a-z]+[A-Z]", one))


@cache
def signals() -> frozenset[str]:
    kinds = (qt_class(name).staticMetaObject for name in _objects())
    return frozenset(one for meta in kinds for one in _methods_of(meta, QtCore.QMetaMethod.Signal))


def _methods_of(meta: Any, kind: Any, arguments: int | None = None) -> Iterator[str]:
    for method in (meta.method(n) for n in range(meta.methodCount())):
        if method.methodType() == kind and arguments in (None, method.parameterCount()):
            yield bytes(method.name().data()).decode()


def chain(node: ast.AST) -> list[str]:
    """``qt.Qt.AlignLeft`` as its names; [] for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [*reversed([*names, node.id])] if isinstance(node, ast.Name) else []


def is_qt(node: ast.AST) -> bool:
    return chain(node)[:1] == ["qt"]


@dataclass
class Scope:
    """What is known of a file's names.

    Attributes:
        kinds: Class of Qt by name, such as ``self._label`` or ``label``.
        filters: Own classes that watch events.
        functions: Names of all functions of the file.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    filters: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)

    def kind(self, node: ast.AST) -> str:
        """The class of Qt that an expression is of; "" where that is not known."""
        if isinstance(node, ast.Call):
            names = chain(node.func)
            if len(names) == 2 and names[0] == "qt" and qt_class(names[1]) is not None:
                return names[1]
            if isinstance(node.func, ast.Attribute) and node.func.attr in GETTERS:
                return GETTERS[node.func.attr]
            return ""
        return self.kinds.get(".".join(chain(node)), "")


def faults(text: str, *, binding: bool = False) -> list[Fault]:
    """What in a module only one binding understands.

    Args:
        text: Of the module.
        binding: It is the one that finds out which binding there is, and may name them.
    """
    tree = ast.parse(text)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    scope = _scope(tree)
    found: set[Fault] = set()
    for node in ast.walk(tree):
        for rule in RULES:
            if binding and rule in (_imports, _deletion):
                continue
            found |= {Fault(getattr(node, "lineno", 0), what) for what in rule(node, scope, parents)}
    return sorted(found)


Parents = dict[ast.AST, ast.AST]
Rule = Callable[[ast.AST, Scope, Parents], Iterator[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def _scope(tree: ast.Module) -> Scope:
    scope = Scope(functions={node.name for node in ast.walk(tree) if isinstance(node, FUNCTIONS)})
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(getattr(one, "name", "") == "eventFilter" for one in node.body):
            scope.filters.add(node.name)
    returns: dict[str, str] = {}
    for _ in range(3):  # a name may be known only once another one is
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                given = {scope.kind(one.value) for one in ast.walk(node) if isinstance(one, ast.Return) and one.value}
                if len(given) == 1 and (kind := given.pop()):
                    returns[node.name] = kind
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                kind = scope.kind(node.value)
                if not kind and isinstance(node.value, ast.Call):
                    names = chain(node.value.func)
                    kind = returns.get(names[-1], "") if names and names[:-1] in (["self"], []) else ""
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    name = ".".join(chain(target))
                    if name and kind and issubclass(qt_class(kind), QtCore.QObject):
                        scope.kinds[name] = kind
    return scope


def _base(node: ast.ClassDef) -> str:
    """The class of Qt that an own class derives from."""
    bases = [chain(base) for base in node.bases]
    return next((names[1] for names in bases if len(names) == 2 and names[0] == "qt"), "")


def _is_read(node: ast.AST, parents: Parents) -> bool:
    """Whether an expression is what ``val()`` is given."""
    call = parents.get(node)
    return isinstance(call, ast.Call) and chain(call.func)[-1:] == ["val"] and node in call.args


@rule
def _imports(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""] if node.level == 0 else []
    else:
        return
    for name in names:
        if name.split(".")[0] in {"qt", "ctk", "qtpy", "PySide6", "PySide2", "PyQt5", "PyQt6", "PythonQt"}:
            yield f"import {name}: take qt from _qt"


@rule
def _keywords(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if not (isinstance(node, ast.Call) and node.keywords):
        return
    named = isinstance(node.func, ast.Attribute) and chain(node.func)[:1] != ["slicer"]
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    known = bool(named and isinstance(node.func, ast.Attribute) and scope.kind(node.func.value))
    setting = method == "value" and any(keyword.arg == "type" for keyword in node.keywords)
    if is_qt(node.func) or known or setting or (named and method in methods() and method not in scope.functions):
        yield "keyword arguments"


@rule
def _reading(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
        return
    kind, parent = scope.kind(node.value), parents.get(node)
    called = isinstance(parent, ast.Call) and parent.func is node
    empty = isinstance(parent, ast.Call) and called and not parent.args
    if node.attr in NO_PROPERTIES and (empty or kind):
        yield f".{node.attr}: call isX()"
    elif kind and node.attr in properties(kind):
        if not _is_read(node, parents) and not (called and not empty) and node.attr != "html":
            yield f".{node.attr} of a {kind} without val()"
    elif empty and not kind and node.attr in unmistakable() and node.attr not in scope.functions:
        yield f".{node.attr}() without val()"


@rule
def _writing(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)):
        return
    if kind := scope.kind(node.value):
        yield f"an attribute {node.attr} of a {kind}: use its setter, setProperty() or a dictionary"
    elif re.fullmatch(r"[a-z]\w*Event", node.attr):
        yield f"{node.attr} is put onto an object: derive from its class"


@rule
def _connecting(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return
    if node.func.attr not in ("connect", "disconnect", "emit"):
        return
    source = node.func.value
    signal = source.attr if isinstance(source, ast.Attribute) else ""
    if isinstance(source, ast.Subscript):
        yield "an overload of a signal"
    if node.func.attr == "emit":
        if signal in CLICKS and node.args:
            yield "emitting clicked with an argument: use click()"
        return
    if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
        yield "a signal named by a string"
    if node.func.attr == "disconnect" or not (signal in signals() or signal in CLICKS):
        return
    if len(node.args) > 1:
        yield "a type of connection"
    slot = node.args[0] if node.args else None
    if isinstance(slot, ast.Lambda) and slot.args.vararg is None:
        yield "a lambda without *a"
    if isinstance(slot, ast.Call) and chain(slot.func)[-1:] == ["partial"]:
        yield "a partial function"
    bare = signal in CLICKS and isinstance(slot, ast.Attribute) and slot.attr not in scope.functions
    if bare and isinstance(slot, ast.Attribute) and (scope.kind(slot.value) or slot.attr in _slots()):
        yield f"a slot of Qt ({slot.attr}) for {signal}: use a lambda with *a"


@cache
def _slots() -> frozenset[str]:
    """What widgets and dialogs can be told without an argument."""
    kinds = (QtWidgets.QDialog, QtWidgets.QTextEdit, QtWidgets.QLineEdit, QtWidgets.QProgressDialog, QtCore.QTimer)
    return frozenset(one for kind in kinds for one in _methods_of(kind.staticMetaObject, QtCore.QMetaMethod.Slot, 0))


@rule
def _calls(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    """Single calls that fail."""
    if not isinstance(node, ast.Call):
        return
    args, names = node.args, chain(node.func)
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    first = args[0] if args else None
    literal = first.value if isinstance(first, ast.Constant) else ...
    if method in CLICKS | {"toggled"} and not is_qt(node.func):
        yield f"calling the signal {method}: use click()"
    if method == "sender" and not args:
        yield "sender()"
    if method == "processEvents":
        yield "processEvents() hides a stalled worker and lets events in"
    if method in ("metaObject", "className") and not args:
        yield f"{method}(): use inherits()"
    if method in ("position", "globalPosition", "scenePosition") and chain(node.func)[:1] in (["event"], ["ev"]):
        yield f"event.{method}(): use pos()"
    if method == "fontMetrics":
        yield "fontMetrics(): use qt.QFontMetrics(val(w.font))"
    if method == "primaryScreen":
        yield "primaryScreen() without val()"
    if method in TEXTS and (literal is None or isinstance(literal, bytes | int | float)):
        yield f"{method}({literal!r}): give it a text"
    if method in SWITCHES and (isinstance(literal, str) or (first is not None and _is_numpy(first))):
        yield f"{method}() with something else than a bool"
    if method in ENUM_SETTERS and isinstance(literal, int):
        yield f"{method}({literal}): name the enum"
    if method in ("findChild", "findChildren") and isinstance(literal, str):
        yield f"{method}() with a class's name"
    if method == "setShortcut" and isinstance(literal, str):
        yield "setShortcut() with a string"
    if method == "load" and isinstance(first, ast.Constant | ast.JoinedStr) and "oader" in ast.unparse(node.func):
        yield "QUiLoader.load() with a path"
    if method == "append" and isinstance(node.func, ast.Attribute) and scope.kind(node.func.value) in RICH:
        yield "append() guesses whether it is given markup"
    if method in FILES and names[:1] == ["qt"]:
        outer = parents.get(node)
        if not (isinstance(outer, ast.Call) and chain(outer.func)[-1:] == ["path_of"]):
            yield f"{method}() without path_of()"
    if method in ANSWERS and names[:1] == ["qt"]:
        yield f"{method}() returns something else in each binding: use an instance"
    if names in (["isinstance"], ["issubclass"]) and len(args) > 1 and any(is_qt(one) for one in ast.walk(args[1])):
        yield f"{names[0]}() of a class of Qt: use inherits()"
    if names in (["bytes"], ["str"]) and isinstance(first, ast.Call) and BYTES.fullmatch(_method(first)):
        yield f"{names[0]}() of a QByteArray: use data()"
    if names == ["int"] and first is not None and is_qt(first):
        yield "int() of an enum"
    if names == ["sys", "exit"]:
        yield "sys.exit() ends Slicer"
    if isinstance(node.func, ast.Name) and node.func.id in scope.filters and not args:
        yield "an event filter without a parent"
    if method == "installEventFilter" and isinstance(first, ast.Call):
        yield "an event filter that nothing keeps"


def _method(call: ast.Call) -> str:
    """The last name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_numpy(node: ast.AST) -> bool:
    return any(chain(one)[:1] in (["np"], ["numpy"]) for one in ast.walk(node) if isinstance(one, ast.Attribute))


@rule
def _making(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    """Objects that are made in a form that one binding takes for another one."""
    if not isinstance(node, ast.Call):
        return
    names, args = chain(node.func), node.args
    if len(names) != 2 or names[0] != "qt":
        return
    first = args[0] if args else None
    if names[1] == "QShortcut" and (
        len(args) > 2 or (isinstance(first, ast.Constant) and isinstance(first.value, str))
    ):
        yield "QShortcut(string) or with a slot: QShortcut(QKeySequence(..), w), then connect"
    if names[1] == "QTimer" and not args:
        yield "a timer without a parent"
    if names[1] == "QImage" and len(args) > 3:
        yield "QImage of bytes: use QImage.fromData"
    if names[1] == "QDialogButtonBox" and any(chain(one)[:2] == names for arg in args for one in ast.walk(arg)):
        yield "QDialogButtonBox(buttons): use setStandardButtons"


@rule
def _names(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    """Names that one binding does not have, and enums."""
    names = chain(node) if isinstance(node, ast.Attribute) else []
    if names[:1] != ["qt"] or len(names) < 2:
        return
    if len(names) == 2 and names[1] in ONE_BINDING:
        yield f"qt.{names[1]} is not in every binding"
    if names[1] == "Qt" and len(names) == 3 and names[2] in OLD_KEYS:
        yield f"qt.Qt.{names[2]}"
    if len(names) == 4:
        kind = qt_class(names[1]) if names[1] != "Qt" else QtCore.Qt
        if isinstance(getattr(kind, names[2], None), type):
            yield f"a scoped enum ({'.'.join(names)}): use its short name"
        elif names[3] in ("value", "name"):
            yield f".{names[3]} of an enum"
    if names[-1] == "WA_DeleteOnClose":
        yield "WA_DeleteOnClose: use dispose()"


@rule
def _instances(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    """An enum that is read from an object."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr[:1].isupper():
        kind = scope.kind(node.value)
        if kind and hasattr(qt_class(kind), node.attr):
            yield f"the enum {node.attr} from an object"


@rule
def _base_calls(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call) and chain(node.value.func) == ["super"]:
        owner: ast.AST | None = node
        while owner is not None and not isinstance(owner, ast.ClassDef):
            owner = parents.get(owner)
        base = _base(owner) if isinstance(owner, ast.ClassDef) else ""
        if node.attr in methods() or (base and hasattr(qt_class(base), node.attr) and not node.attr.startswith("__")):
            yield f"super().{node.attr}: call it by the class's name"


@rule
def _subclasses(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if not isinstance(node, ast.ClassDef):
        return
    base, defined = _base(node), {one.name: one for one in node.body if isinstance(one, FUNCTIONS)}
    for name in ("sizeHint", "minimumSizeHint"):
        if name in defined:
            yield f"{name}() is never asked: use setMinimumSize()"
    if "eventFilter" in defined:
        if not base:
            yield "an event filter that is no QObject"
        last = defined["eventFilter"].body[-1]
        bare = [one for one in ast.walk(defined["eventFilter"]) if isinstance(one, ast.Return) and one.value is None]
        if bare or not isinstance(last, ast.Return | ast.If | ast.Try | ast.Match):
            yield "an event filter that returns nothing"
    if not base:
        return
    for inner in ast.walk(node):
        if not (
            isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and chain(inner.value) == ["self"]
        ):
            continue
        if hasattr(qt_class(base), inner.attr) or inner.attr in properties(base):
            yield f"self.{inner.attr} of a {base} is Qt's own"


@rule
def _keeping(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    """Items of lists and tables, which die with their list."""
    if isinstance(node, ast.Assign):
        kept = [one for one in node.targets if chain(one)[:1] == ["self"] or isinstance(one, ast.Subscript)]
        values: list[ast.AST] = [node.value] if kept else []
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("append", "add"):
        values = list(node.args) if chain(node.func.value)[:1] == ["self"] else []
    else:
        return
    for value in values:
        if not isinstance(value, ast.Call):
            continue
        names = chain(value.func)
        made = (
            len(names) == 2
            and names[0] == "qt"
            and re.fullmatch(r"Q(List|Tree|Table)WidgetItem|QStandardItem", names[1])
        )
        if made or (isinstance(value.func, ast.Attribute) and value.func.attr in ITEMS):
            yield "an item is kept: keep its key"


@rule
def _deletion(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "deleteLater":
        source = ast.unparse(node.func.value)
        if scope.kind(node.func.value) in DIALOGS or source in ("self", "self.widget", "self.dialog"):
            yield "deleteLater() of a top-level widget: use dispose()"


@rule
def _lists(node: ast.AST, scope: Scope, parents: Parents) -> Iterator[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for side in (node.left, node.right):
            if isinstance(side, ast.Call) and isinstance(side.func, ast.Attribute) and side.func.attr == "findChildren":
                yield "findChildren() + a list: it may be a tuple"
