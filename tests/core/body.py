"""A body in LPS millimetres with organs and lesions at known places, on any grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsight_core.geometry import Frame
from medsight_core.regions import Span, VolumeRegion

# Centre and radii in LPS mm: x to the patient's left, y to the back, z to the head.
ORGANS = {
    "liver": ((-60, 0, 20), (50, 40, 35)),
    "spleen": ((75, 20, 25), (22, 22, 25)),
    "left kidney": ((50, 30, -30), (17, 17, 28)),
    "right kidney": ((-50, 30, -35), (17, 17, 28)),
}
LESIONS = {
    "large right": ((-80, 0, 20), (13, 13, 13)),
    "small right": ((-78, 5, 50), (8, 8, 8)),
    "middle liver": ((-35, 0, 18), (9, 9, 9)),
    "splenic": ((75, 20, 25), (10, 10, 10)),
}
BODY = ((0, 0, 0), (130, 80, 1000))
HALF = (150.0, 95.0, 75.0)
SPACING = 5.0


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How a scan of the body is stored.

    Attributes:
        order: Which LPS axis slices, rows and columns follow.
        flips: Whether they run against it.
        turn: ``(3, 3)`` rotation of the grid in the patient.
        crop: Lowest and highest x that is scanned.
    """

    order: tuple[int, int, int] = (2, 1, 0)
    flips: tuple[bool, bool, bool] = (False, False, False)
    turn: np.ndarray | None = None
    crop: tuple[float, float] = (-HALF[0], HALF[0])

    @property
    def frame(self) -> Frame:
        low, high = -np.array(HALF), np.array(HALF)
        low[0], high[0] = self.crop
        shape, columns, origin = [], [], np.zeros(3)
        for axis, flip in zip(self.order, self.flips, strict=True):
            shape.append(int((high[axis] - low[axis]) / SPACING) + 1)
            unit = np.zeros(3)
            unit[axis] = -1 if flip else 1
            columns.append(unit)
            origin[axis] = high[axis] if flip else low[axis]
        turn = np.eye(3) if self.turn is None else self.turn
        return Frame(
            shape=(shape[0], shape[1], shape[2]),
            origin=turn @ origin,
            spacing=np.full(3, SPACING),
            direction=turn @ np.stack(columns, axis=1),
        )


def inside(frame: Frame, shape: tuple[tuple[float, ...], tuple[float, ...]]) -> np.ndarray:
    """Voxels whose centres lie in an ellipsoid."""
    points = frame.to_lps(np.moveaxis(np.indices(frame.shape), 0, -1))
    return np.asarray((((points - shape[0]) / shape[1]) ** 2).sum(axis=-1) <= 1)


def scan(frame: Frame) -> np.ndarray:
    """Hounsfield units: air, soft tissue, darker lesions."""
    values = np.where(inside(frame, BODY), 50, -1000).astype(np.int16)
    for shape in LESIONS.values():
        values[inside(frame, shape)] = 10
    return values


def region(label: str, mask: np.ndarray, frame: Frame, score: float = 0.9) -> VolumeRegion:
    keys = tuple(int(k) for k in np.flatnonzero(mask.any(axis=(1, 2)))[:1])
    return VolumeRegion(
        code="[C0_1]", label=label, span=Span(0, 0), score=score, mask=mask, frame=frame, key_slices=keys
    )


def regions(frame: Frame) -> list[VolumeRegion]:
    """What a model with the names liver, spleen, kidney and lesion would find; organs leave their lesions out."""
    lesions = np.any([inside(frame, shape) for shape in LESIONS.values()], axis=0)
    organs = {name: inside(frame, shape) & ~lesions for name, shape in ORGANS.items()}
    kidneys = organs["left kidney"] | organs["right kidney"]
    found = {"liver": organs["liver"], "spleen": organs["spleen"], "kidney": kidneys, "lesion": lesions}
    return [region(name, mask, frame) for name, mask in found.items()]
