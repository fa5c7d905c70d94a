"""What of the desktop program a scripted module needs, with no more than its documented behaviour.

The real ``slicer.util`` is there; base classes, module manager and node selector are stand-ins.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.slicer.binding import MODULE, Library


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.categories, parent.dependencies, parent.contributors = "", [], [], []
        parent.helpText = parent.acknowledgementText = ""


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()

    def setup(self) -> None:
        pass

    def cleanup(self) -> None:
        pass

    def onReload(self) -> None:
        import slicer

        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> Any:
        import slicer

        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetAttribute("ModuleName", self.moduleName)
            node.SetName(scene.GenerateUniqueName(self.moduleName))
            node = scene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message: str, requestedDelay: Any = None, msec: Any = None) -> None:
        pass


class Application:
    """``slicer.app``: signals by their names, and Qt's loop."""

    def __init__(self, library: Library) -> None:
        self.slots: dict[str, list[Callable[..., Any]]] = {}
        self._library = library

    def connect(self, signal: str, slot: Callable[..., Any]) -> bool:
        self.slots.setdefault(signal, []).append(slot)
        return True

    def emit(self, signal: str) -> None:
        for slot in self.slots.get(signal, []):
            slot()

    def moduleManager(self) -> Any:
        return types.SimpleNamespace(disconnect=lambda *a: True, connect=lambda *a: True)

    def processEvents(self) -> None:
        self._library.settle(0)


def selector_class(qt: Any) -> type:
    """``qMRMLNodeComboBox``, as far as a choice of volumes needs it."""

    class NodeComboBox(qt.QComboBox):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._slots: list[Callable[[Any], Any]] = []
            self._node: Any = None

        def setMRMLScene(self, scene: Any) -> None:
            pass

        def connect(self, signal: str, slot: Callable[[Any], Any]) -> bool:
            assert signal == "currentNodeChanged(vtkMRMLNode*)"
            self._slots.append(slot)
            return True

        def currentNode(self) -> Any:
            return self._node

        def setCurrentNode(self, node: Any) -> None:
            if node is not self._node:
                self._node = node
                for slot in self._slots:
                    slot(node)

    return NodeComboBox


class Desktop:
    """A Slicer with one module.

    Attributes:
        module: What is registered.
        representation: The widget that the module's widgets are put into.
        opened: The module's widget, once it was opened.
    """

    def __init__(self, library: Library, scene: Any) -> None:
        import slicer

        qt = library._qt.qt
        self.library, self.scene = library, scene
        slicer.app = Application(library)
        slicer.qMRMLNodeComboBox = selector_class(qt)
        self.representation = qt.QWidget()
        self._layout = qt.QVBoxLayout(self.representation)
        # In Slicer this is qSlicerScriptedLoadableModuleWidget: what a plain widget lacks of it is beside it.
        self.parent = types.SimpleNamespace(layout=lambda: self._layout, reload=self._open)
        slicer.modules.medsight = types.SimpleNamespace(
            path=str(MODULE / "MedSIGHT.py"),
            widgetRepresentation=lambda: types.SimpleNamespace(
                children=lambda: list(self.representation.children()), layout=lambda: self._layout
            ),
        )
        self.registered = types.SimpleNamespace(path=str(MODULE / "MedSIGHT.py"))
        self.module = self.python.MedSIGHT(self.registered)
        self.opened: Any = None

    @property
    def python(self) -> Any:
        """``MedSIGHT.py`` as it is loaded now."""
        if "MedSIGHT" not in sys.modules:
            spec = importlib.util.spec_from_file_location("MedSIGHT", MODULE / "MedSIGHT.py")
            assert spec is not None and spec.loader is not None
            sys.modules["MedSIGHT"] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules["MedSIGHT"])
        return sys.modules["MedSIGHT"]

    def open(self) -> Any:
        """Opens the module for the first time, and shows it."""
        self._open()
        self.opened.enter()
        return self.opened

    def close_scene(self) -> None:
        self.scene.Clear(False)

    def _open(self) -> None:
        import slicer

        self.opened = slicer.modules.MedSIGHTWidget = self.python.MedSIGHTWidget(self.parent)
        self.opened.setup()


def desktop(library: Library, scene: Any, monkeypatch: Any) -> Iterator[Desktop]:
    """A Slicer with our module; gone afterwards."""
    import slicer

    base = types.ModuleType("slicer.ScriptedLoadableModule")
    for one in (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ):
        setattr(base, one.__name__, one)
    words = types.ModuleType("slicer.i18n")
    words.tr = lambda text: text  # type: ignore[attr-defined]
    words.translate = lambda context, text: text  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setitem(sys.modules, words.__name__, words)
    monkeypatch.setattr(slicer, "ScriptedLoadableModule", base, raising=False)
    monkeypatch.setattr(slicer, "i18n", words, raising=False)
    monkeypatch.setattr(slicer.util, "modulePath", lambda name: str(Path(MODULE) / f"{name}.py"))
    monkeypatch.setitem(sys.modules, "qt", library._qt.qt)
    sys.modules.pop("MedSIGHT", None)
    found = Desktop(library, scene)
    try:
        yield found
    finally:
        if found.opened is not None:
            found.opened.cleanup()
        library._qt.dispose(found.representation)
        library.settle(20)
        for name in ("app", "qMRMLNodeComboBox"):
            delattr(slicer, name)
        sys.modules.pop("MedSIGHT", None)
