"""Volumes of a scene in all the ways in which one can lie in a patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsight_core.chat.turns import Finding
from medsight_core.geometry import Frame
from medsight_core.regions import Region, Span, VolumeRegion


def matrix(
    spacing: tuple[float, float, float] = (0.7, 0.7, 2.5), *, turn: float = 0.0, left_handed: bool = False
) -> NDArray[np.float64]:
    """IJK to RAS `(4, 4)` of an axial scan, turned about an oblique axis by some degrees."""
    axis = np.array([1.0, 2.0, 2.0]) / 3.0
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(turn)
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    found = np.eye(4)
    found[:3, :3] = rotation @ np.diag([-spacing[0], -spacing[1], -spacing[2] if left_handed else spacing[2]])
    found[:3, 3] = (31.5, -12.25, 40.0)
    return found


GEOMETRIES: dict[str, tuple[NDArray[np.float64], tuple[int, int, int]]] = {
    "axial": (matrix(), (6, 20, 30)),
    "oblique": (matrix(turn=20.0), (6, 20, 30)),
    "left-handed": (matrix(left_handed=True), (6, 20, 30)),
    "oblique and left-handed": (matrix(turn=-75.0, left_handed=True), (5, 20, 30)),
    "anisotropic": (matrix((0.5, 2.0, 10.0)), (4, 12, 40)),
    "one slice": (matrix((0.8, 0.8, 5.0), turn=10.0), (1, 24, 18)),
}


def add_volume(name: str) -> Any:
    """A volume node of that geometry with values that differ from voxel to voxel."""
    import slicer

    ijk_to_ras, shape = GEOMETRIES[name]
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 1000
    return slicer.util.addVolumeFromArray(values, ijkToRAS=ijk_to_ras, name=name)


def blob(shape: tuple[int, int, int], seed: int) -> NDArray[np.bool_]:
    """A ragged mask with a hole, within the volume."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=bool)
    rows, columns = shape[1] // 4, shape[2] // 4
    mask[:, rows : 3 * rows, columns : 3 * columns] = rng.random((shape[0], 2 * rows, 2 * columns)) > 0.3
    return mask


def finding(mask: NDArray[np.bool_], frame: Frame, label: str = "liver", key: str = "1.1") -> Finding:
    """A finding throughout a volume."""
    region = VolumeRegion(code="[C0_16]", label=label, span=Span(0, 0), score=0.9, mask=mask, frame=frame)
    return Finding(key=key, region=region, name=label)


def finding_on_slice(mask: NDArray[np.bool_], frame: Frame, k: int, label: str = "liver") -> Finding:
    """A finding on one slice."""
    region = Region(
        code="[C0_16]", label=label, span=Span(0, 0), score=0.9, slice_index=k, mask=mask[k], frame=frame.slice(k)
    )
    return Finding(key="1.1", region=region, name=label)
