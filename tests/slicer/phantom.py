"""An abdomen made of ellipsoids: something to look at whose every voxel is known, and nobody's scan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsight_core.chat.turns import Finding
from medsight_core.geometry import Frame
from medsight_core.mrml.segments import Segments
from medsight_core.mrml.volumes import volume_of
from tests.slicer.bodies import finding, matrix

SHAPE = (64, 160, 192)
SPACING = (1.8, 1.8, 3.0)

# Centre and half-axes in (slice, row, column), as parts of the volume, and HU.
BODY = ((0.5, 0.5, 0.5), (2.0, 0.42, 0.46), 45)
FAT = (-100, 0.045)
Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]
ORGANS: dict[str, tuple[tuple[Ellipsoid, ...], int]] = {
    "liver": ((((0.58, 0.45, 0.28), (0.38, 0.27, 0.17)), ((0.70, 0.31, 0.45), (0.20, 0.12, 0.17))), 105),
    "spleen": ((((0.62, 0.56, 0.80), (0.26, 0.15, 0.08)),), 118),
    "right kidney": ((((0.32, 0.68, 0.33), (0.24, 0.09, 0.065)),), 165),
    "left kidney": ((((0.36, 0.67, 0.67), (0.24, 0.09, 0.065)),), 165),
    "lesion": ((((0.66, 0.38, 0.25), (0.13, 0.075, 0.055)),), 45),
}
BONE = ((0.5, 0.76, 0.5), (2.0, 0.095, 0.075), 420)
VESSEL = ((0.5, 0.60, 0.52), (2.0, 0.042, 0.034), 210)
BOWEL = tuple(
    ((0.30, row, column), (0.22, 0.07, 0.055), 10) for row, column in ((0.28, 0.48), (0.33, 0.62), (0.40, 0.53))
)


def add_phantom(*, turn: float = 0.0) -> tuple[Any, dict[str, NDArray[np.bool_]]]:
    """The scan as a volume node, and where its organs are."""
    import slicer

    values = np.full(SHAPE, -1000.0)
    inside = _ellipsoid(*BODY[:2])
    values[inside] = FAT[0]
    values[_ellipsoid(BODY[0], tuple(half - FAT[1] for half in BODY[1]))] = BODY[2]
    for centre, half, value in (*BOWEL, BONE, VESSEL):
        values[_ellipsoid(centre, half)] = value
    masks = {}
    rng = np.random.default_rng(7)
    uneven = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 7)
    uneven *= 0.16 / uneven.std()
    for name, (parts, value) in ORGANS.items():
        masks[name] = np.any([_ellipsoid(*part, uneven) for part in parts], axis=0) & inside
        values[masks[name]] = value
    values = ndimage.gaussian_filter(values, 0.7) + ndimage.gaussian_filter(rng.normal(0, 45, SHAPE), 0.8)
    node = slicer.util.addVolumeFromArray(
        values.round().astype(np.int16), ijkToRAS=matrix(SPACING, turn=turn), name="phantom"
    )
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(400, 60)
    return node, masks


def add_findings(node: Any, masks: dict[str, NDArray[np.bool_]]) -> tuple[Segments, list[Finding]]:
    """The organs as what was found."""
    frame: Frame = volume_of(node).require_frame()
    segments = Segments(node, frame)
    found = [finding(mask, frame, name, f"1.{n}") for n, (name, mask) in enumerate(masks.items(), start=1)]
    segments.sync(found)
    return segments, found


def _ellipsoid(
    centre: tuple[float, ...], half: tuple[float, ...], uneven: NDArray[np.float64] | float = 0.0
) -> NDArray[np.bool_]:
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    apart = sum(
        ((axis + 0.5) / n - middle) ** 2 / reach**2
        for axis, n, middle, reach in zip(grid, SHAPE, centre, half, strict=True)
    )
    found: NDArray[np.bool_] = np.asarray(apart) < 1 + uneven
    return found
