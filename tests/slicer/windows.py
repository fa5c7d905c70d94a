"""Slicer's usual four views without a window: the real displayable managers, drawn in memory (OSMesa)."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from trame_slicer.core import SlicerApp
from trame_slicer.views import SliceView, ThreeDView
from vtk.util.numpy_support import vtk_to_numpy

ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


class Windows:
    """A scene and its views.

    Args:
        size: Of each view in pixels, width and height.

    Attributes:
        scene: The scene.
        slices: The slice views by the name of their colour.
    """

    def __init__(self, size: tuple[int, int] = (360, 300)) -> None:
        self._app = SlicerApp()
        self.scene = slicer.mrmlScene = self._app.scene
        self.scene.app_logic = self._app.app_logic
        logics = {"segmentations": self._app.segmentations_logic, "volumes": self._app.volumes_logic}
        slicer.modules = types.SimpleNamespace(
            **{name: types.SimpleNamespace(logic=_giving(logic)) for name, logic in logics.items()}
        )
        self.slices: dict[str, Any] = {}
        for name, orientation in ORIENTATIONS.items():
            view = SliceView(self.scene, self._app.app_logic, name)
            view.render_window().SetSize(*size)
            view.set_orientation(orientation)
            self.slices[name] = view
        self.space = ThreeDView(self.scene, self._app.app_logic, "View1")
        self.space.render_window().SetSize(*size)
        self.space.renderer().SetUseDepthPeeling(False)  # without it what is translucent is drawn in memory as well

    def show(self, volume_node: Any) -> None:
        """Puts a volume into all slice views, fits and draws it: what is shown later lies on it."""
        for view in self.slices.values():
            view.set_background_volume_id(volume_node.GetID())
            view.fit_view_to_content()
            view.render()

    def offsets(self) -> dict[str, float]:
        """Where each slice view is, in mm along its normal."""
        return {name: view.get_slice_value() for name, view in self.slices.items()}

    def pixel_of(self, name: str, ras: Any) -> tuple[int, int]:
        """Row from the top and column at which a slice view shows a place, world RAS mm ``(3,)``."""
        node = self.slices[name].get_view_node()
        to_xy = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(node.GetXYToRAS(), to_xy)
        x, y, *_ = to_xy.MultiplyPoint([*map(float, ras), 1.0])
        return round(self.slices[name].render_window().GetSize()[1] - 1 - y), round(x)


def picture(view: Any) -> NDArray[np.uint8]:
    """What a view shows, `(height, width, 3)`, from the top."""
    view.render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(view.render_window())
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    pixels: NDArray[np.uint8] = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    return np.ascontiguousarray(pixels[::-1, :, :3])


def _giving(logic: Any) -> Callable[[], Any]:
    return lambda: logic
