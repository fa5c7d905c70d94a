"""A DICOM series in a scene, as Slicer's own reader brings it in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from medsight_core.mrml.volumes import INSTANCES


def load(scene: Any, folder: Path) -> tuple[Any, Callable[[str], str]]:
    """Loads a series of slices.

    Args:
        scene: Gets a volume node.
        folder: With the files of the series, and no others that end with ".dcm".

    Returns:
        The node, with the attribute that Slicer's DICOM module sets where the files have UIDs of their own, and what
        Slicer's DICOM database would say of the files: the one of a SOP Instance UID, "" where it knows none.
    """
    paths = sorted(folder.glob("*.dcm"))
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    order = sorted(range(len(paths)), key=lambda n: float(headers[n].ImagePositionPatient[2]))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(paths[order[0]]))
    for n in order:
        storage.AddFileName(str(paths[n]))
    storage.SetSingleFile(0)
    assert storage.ReadData(node), f"{folder} could not be read"
    node.SetAndObserveStorageNodeID(storage.GetID())
    files = {str(headers[n].SOPInstanceUID): str(paths[n]) for n in order}
    files.pop("", None)
    if files:
        node.SetAttribute(INSTANCES, " ".join(files))
    return node, lambda uid: files.get(uid, "")


def to_ras(frame: Any, k: float, row: float, column: float) -> Any:
    """A voxel of a volume that no transform moves, in world RAS mm ``(3,)``."""
    return np.asarray(frame.to_lps((k, row, column))) * (-1, -1, 1)
