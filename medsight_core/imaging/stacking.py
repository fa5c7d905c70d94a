"""From single slices to one regular grid, or to the name of what is in the way.

A spacing is never averaged over unequal gaps: a volume with a missing slice read as if it were regular puts every mask
behind the gap in the wrong place, and nothing would show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError
from medsight_core.geometry import Frame

ORIENTATION_TOLERANCE: Final = 1e-3
"""Largest difference of a direction cosine between slices of one stack."""

DUPLICATE_TOLERANCE_MM: Final = 1e-3
"""Slices closer than this lie at one place."""

TILT_TOLERANCE_DEGREES: Final = 0.05
"""A smaller slant of the stack against its slices is rounding of the header."""

IN_PLANE_TOLERANCE_PIXELS: Final = 0.1
"""How far a slice may lie beside the straight stack, in pixels."""

SPACING_TOLERANCE: Final = 0.02
"""How far a slice may lie from its place on the regular grid, as a part of the spacing..."""

SPACING_TOLERANCE_MM: Final = 0.05
"""...or in mm, for positions written with one decimal (but never more than a tenth of the spacing)."""

RESAMPLABLE: Final = ("missing_slices", "irregular_spacing", "irregular_positions", "gantry_tilt")
"""Problems of slices that are parallel and each at a place of its own."""

RESAMPLE_REMEDY: Final = (
    "Ask about one slice, which works as it is, or add --resample to bring the series to a regular grid."
)
SLICE_REMEDY: Final = "Ask about one slice, which works as it is, or choose a regular series."


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Slices in geometric order.

    Attributes:
        order: For each place in the stack, the index of the given slice.
        frame: Of the whole stack; None where it is not a regular grid.
        problem: Why not.
    """

    order: tuple[int, ...]
    frame: Frame | None
    problem: InputError | None = None


def stack(slices: Sequence[Frame]) -> Stack:
    """Orders slices along their normal and tells whether they form a regular grid.

    Args:
        slices: One frame of shape (1, rows, columns) each, all of the same size; ties keep their order.
    """
    first = slices[0]
    if len(slices) == 1:
        return Stack(order=(0,), frame=first)
    groups = _by_orientation(slices)
    order = tuple(k for group in groups for k in sorted(group, key=lambda k: float(slices[k].origin @ first.normal)))
    if len(groups) > 1:
        order = tuple(
            k
            for group in groups
            for k in sorted(group, key=lambda k: float(slices[k].origin @ slices[group[0]].normal))
        )
        sizes = ", ".join(str(len(group)) for group in groups)
        return _irregular(
            order, "mixed_orientation", f"The slices have {len(groups)} different orientations ({sizes} slices)."
        )
    if np.ptp([s.spacing[1:] for s in slices], axis=0).max() > SPACING_TOLERANCE * first.spacing[1:].min() / 10:
        return _irregular(order, "mixed_spacing", "The slices have different pixel spacings.")
    return _along_normal(slices, order)


def typical_gap(gaps: npt.NDArray[np.float64]) -> float:
    """The distance in mm that most neighbouring slices have: the median, or the smallest where slices are missing."""
    smallest = gaps[gaps <= 1.5 * gaps.min()]
    return float(np.median(smallest if 4 * len(smallest) >= len(gaps) else gaps))


def _by_orientation(slices: Sequence[Frame]) -> list[list[int]]:
    groups: list[list[int]] = []
    for k, frame in enumerate(slices):
        for group in groups:
            if np.abs(slices[group[0]].direction - frame.direction).max() <= ORIENTATION_TOLERANCE:
                group.append(k)
                break
        else:
            groups.append([k])
    return groups


def _along_normal(slices: Sequence[Frame], order: tuple[int, ...]) -> Stack:
    first = slices[order[0]]
    origins = np.array([slices[k].origin for k in order])
    heights = (origins - origins[0]) @ first.normal
    gaps = np.diff(heights)
    if gaps.min() < DUPLICATE_TOLERANCE_MM:
        where = int(gaps.argmin())
        count = int((gaps < DUPLICATE_TOLERANCE_MM).sum())
        return _irregular(
            order,
            "duplicate_positions",
            f"{count} slice(s) lie where another one lies, first at {_place(origins[where])}: the series holds several "
            "phases, echoes or copies.",
        )
    beside = _beside(slices, order, origins, heights, first)
    if beside is not None:
        return beside
    typical = typical_gap(gaps)
    spacing = float(heights[-1] / (len(order) - 1))
    tolerance = min(max(SPACING_TOLERANCE * typical, SPACING_TOLERANCE_MM), 0.1 * typical) + 1e-6
    if (
        np.abs(heights - spacing * np.arange(len(order))).max() > tolerance
        or np.abs(gaps - typical).max() > 2 * tolerance
    ):
        return _uneven(order, origins, gaps, typical, tolerance)
    # Only here, where all gaps are known to be equal, is their mean the best estimate of each.
    frame = Frame(
        shape=(len(order), *first.shape[1:]),
        origin=origins[0],
        spacing=np.array([spacing, *first.spacing[1:]]),
        direction=np.column_stack([first.normal, first.direction[:, 1:]]),
    )
    return Stack(order=order, frame=frame)


def _beside(
    slices: Sequence[Frame],
    order: tuple[int, ...],
    origins: npt.NDArray[np.float64],
    heights: npt.NDArray[np.float64],
    first: Frame,
) -> Stack | None:
    """Finds slices that do not lie straight above each other."""
    shifts = (origins - origins[0]) @ first.direction[:, 1:]
    allowed = IN_PLANE_TOLERANCE_PIXELS * first.spacing[1:].min()
    if np.abs(shifts).max() <= allowed:
        return None
    slope = shifts[-1] / heights[-1]
    if np.abs(shifts - heights[:, None] * slope).max() > allowed:
        furthest = order[int(np.linalg.norm(shifts, axis=1).argmax())]
        return _irregular(
            order,
            "irregular_positions",
            f"The slices do not lie straight above each other: the one at {_place(slices[furthest].origin)} is "
            f"{np.linalg.norm(shifts, axis=1).max():.1f} mm beside the first.",
        )
    angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if angle < TILT_TOLERANCE_DEGREES:
        return None
    return _irregular(
        order,
        "gantry_tilt",
        f"The stack is slanted by {angle:.1f} degrees against its slices (gantry tilt).",
    )


def _uneven(
    order: tuple[int, ...],
    origins: npt.NDArray[np.float64],
    gaps: npt.NDArray[np.float64],
    typical: float,
    tolerance: float,
) -> Stack:
    multiples = np.rint(gaps / typical)
    if (multiples >= 1).all() and np.abs(gaps - multiples * typical).max() <= 2 * tolerance and multiples.max() > 1:
        first, missing = int((multiples > 1).argmax()), int(multiples.sum()) - len(gaps)
        return _irregular(
            order,
            "missing_slices",
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing (they are {typical:.3g} mm apart): after the "
            f"one at {_place(origins[first])} the next lies {gaps[first]:.3g} mm further"
            + (f", and there are {int((multiples > 1).sum()) - 1} more gaps." if (multiples > 1).sum() > 1 else "."),
        )
    return _irregular(
        order,
        "irregular_spacing",
        f"The distances between slices differ: {gaps.min():.3g} to {gaps.max():.3g} mm.",
    )


def _irregular(order: tuple[int, ...], code: str, sentence: str) -> Stack:
    remedy = RESAMPLE_REMEDY if code in RESAMPLABLE else SLICE_REMEDY
    return Stack(order=order, frame=None, problem=InputError(code, sentence, remedy))


def _place(origin: npt.NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{v:.1f}" for v in origin) + ") mm"
