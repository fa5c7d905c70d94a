"""From Slicer's RAS to our LPS and back, and through the transforms that a node may lie under."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import slicer
import vtk

FloatArray = npt.NDArray[np.float64]

_TURN: Final = (-1.0, -1.0, 1.0)


def turned(points: npt.ArrayLike) -> FloatArray:
    """RAS mm ``(..., 3)`` as LPS, or LPS as RAS: the same turn both ways."""
    lps: FloatArray = np.asarray(points, dtype=np.float64) * np.array(_TURN)
    return lps


def matrix_of(source: Any) -> FloatArray:
    """A ``vtkMatrix4x4`` as an array ``(4, 4)``."""
    return np.array([[source.GetElement(row, column) for column in range(4)] for row in range(4)])


def from_world(points: npt.ArrayLike, node: Any) -> FloatArray:
    """World RAS mm ``(n, 3)`` in the node's own RAS: through the transforms it lies under, also non-linear ones."""
    return _through(points, None, node.GetParentTransformNode())


def to_world(points: npt.ArrayLike, node: Any) -> FloatArray:
    """RAS mm ``(n, 3)`` of a node in world RAS."""
    return _through(points, node.GetParentTransformNode(), None)


def _through(points: npt.ArrayLike, source: Any, target: Any) -> FloatArray:
    given = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if source is target:
        return given
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    return np.array([transform.TransformPoint(point) for point in given.tolist()]).reshape(-1, 3)
