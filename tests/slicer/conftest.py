"""A scene of 3D Slicer's own libraries, without the desktop program: the wheel ``slicer-core``."""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_ignore_collect(collection_path: Any) -> bool | None:
    """Without the libraries there is nothing to collect here."""
    if collection_path.name.startswith("test_"):
        try:
            import slicer  # noqa: F401
            import vtk  # noqa: F401
        except ImportError:
            return True
    return None


@pytest.fixture
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An empty scene with the logics that `slicer.util` needs."""
    scene = new_scene(tmp_path_factory.mktemp("cache"))
    yield scene
    scene.Clear(True)


def new_scene(cache_folder: Path) -> Any:
    """Makes the scene that `slicer.util` works on, and what that needs.

    Args:
        cache_folder: For what saved scenes are unpacked in.
    """
    import slicer
    import vtk

    scene = slicer.mrmlScene = slicer.vtkMRMLScene()
    app = slicer.vtkSlicerApplicationLogic()
    app.SetMRMLScene(scene)
    app.GetColorLogic().SetMRMLScene(scene)
    app.GetColorLogic().AddDefaultColorNodes()
    app.SetModuleLogic("Colors", app.GetColorLogic())
    app.SetSliceLogics(vtk.vtkCollection())
    app.SetViewLogics(vtk.vtkCollection())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    logics = {"segmentations": slicer.vtkSlicerSegmentationsModuleLogic(), "volumes": slicer.vtkSlicerVolumesLogic()}
    for logic in logics.values():
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(app)
    slicer.modules = types.SimpleNamespace(
        **{name: types.SimpleNamespace(logic=lambda logic=logic: logic) for name, logic in logics.items()}
    )
    scene.app_logic = app
    cache, files = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
    cache.SetRemoteCacheDirectory(str(cache_folder))
    files.SetCacheManager(cache)
    scene.SetCacheManager(cache)
    scene.SetDataIOManager(files)
    return scene


@pytest.fixture(params=("plain", "shim"))
def lib(request: Any) -> Iterator[Any]:
    """The panel's package, once on plain PySide6 and once as PythonQt would have it."""
    from tests.slicer.binding import library

    yield from library(request.param)


@pytest.fixture(scope="session", autouse=True)
def _spare_references() -> None:
    """Without these PySide6 6.12 ends Python 3.11: each call that returns nothing costs it a reference to None.

    They are never given back. From Python 3.12 on None cannot run out.
    """
    if sys.version_info < (3, 12):
        for one in (None, True, False):
            for _ in range(200_000):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
