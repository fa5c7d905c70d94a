"""A volume cut in another plane: axes are reordered and reversed, values are never interpolated.

Whatever the order in which a file stores its voxels, slices come out as a radiologist looks at them (see
`orientation`): the same body gives the same pictures, with the patient's right on the left of axial and coronal ones. A
mask drawn on these pictures goes back to the stored grid voxel by voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.imaging.orientation import Arrangement, runs_backwards, stacking_axis, turned
from medsight_core.imaging.volume import Volume

Plane = Literal["acquired", "axial", "coronal", "sagittal"]

_STACKED_ALONG: Final = {"axial": 2, "coronal": 1, "sagittal": 0}
_NAMES: Final = {axis: name for name, axis in _STACKED_ALONG.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Reformatted:
    """A volume in one plane, and the way back.

    Attributes:
        volume: Its slices are that plane; the original itself where nothing had to be turned.
        original: The scan as it was read.
        plane: As it was asked for.
        arrangement: From the original's axes to those of `volume`; None where they are the same.
    """

    volume: Volume
    original: Volume
    plane: Plane
    arrangement: Arrangement | None

    @property
    def axis(self) -> int:
        """The axis of the original array that `volume` is cut along."""
        return 0 if self.arrangement is None else self.arrangement.axes[0]

    def index(self, k: int) -> int:
        """Where slice ``k`` of `volume` lies along `axis` of the original."""
        if self.arrangement is None or not self.arrangement.reversed[0]:
            return k
        return self.volume.n_slices - 1 - k

    @property
    def backwards(self) -> bool:
        """Whether the slices of `volume` run against the usual order, from head to feet, say.

        What is chosen among slices must not depend on the order in which a file stores them.
        """
        frame = self.volume.frame
        return frame is not None and self.original.has_place and runs_backwards(frame)

    def forth(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view in this plane of an array ``(slices, rows, columns[, channels])`` on the original grid."""
        return array if self.arrangement is None else self.arrangement.view(array)

    def back(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view on the original grid of an array ``(slices, rows, columns[, channels])`` in this plane.

        Raises:
            ValueError: The array has another shape than `volume`.
        """
        if array.shape[:3] != self.volume.array.shape[:3]:
            raise ValueError(f"array has shape {array.shape}, expected that of {self.volume.array.shape[:3]}.")
        return array if self.arrangement is None else self.arrangement.native(array)

    @property
    def words(self) -> str:
        """What the slices of `volume` are called: "axial", or "" where that is not known."""
        frame = self.volume.frame
        return "" if frame is None or not self.original.has_place else _NAMES[stacking_axis(frame)]


def reformat(volume: Volume, plane: Plane = "acquired") -> Reformatted:
    """Cuts a volume in a plane.

    Args:
        volume: Any scan.
        plane: "acquired" leaves the slices as they follow each other and only turns each of them upright; an oblique
            volume is cut in the plane of its grid that is nearest.

    Raises:
        InputError: unknown_plane; no_geometry, one_slice: there is nothing to cut; or the named reason why the slices
            are no regular grid.
    """
    plane = check_plane(plane)
    if plane == "acquired" and (volume.frame is None or not volume.has_place):
        return Reformatted(volume=volume, original=volume, plane=plane, arrangement=None)
    frame = volume.require_frame()
    own = stacking_axis(frame)
    along = own if plane == "acquired" else _STACKED_ALONG[plane]
    if not volume.has_place:
        raise InputError(
            "no_geometry",
            f"There are no {plane} slices of this scan: it does not say where its slices lie in the patient.",
            "Ask about its slices as they are.",
        )
    if volume.n_slices == 1 and along != own:
        raise InputError(
            "one_slice",
            f"There are no {plane} slices of this scan: it is a single {_NAMES[own]} slice.",
            "Ask about that slice.",
        )
    arrangement = turned(frame.affine, frame.shape, stacked_along=along, keep_order=plane == "acquired")
    if arrangement.axes == (0, 1, 2) and not any(arrangement.reversed):
        return Reformatted(volume=volume, original=volume, plane=plane, arrangement=None)
    return Reformatted(volume=_turn(volume, frame, arrangement), original=volume, plane=plane, arrangement=arrangement)


def _turn(volume: Volume, frame: Frame, arrangement: Arrangement) -> Volume:
    new = Frame(
        shape=arrangement.shape,
        origin=arrangement.affine[:3, 3],
        # Permuted, not measured anew, so that no digit changes on the way.
        spacing=frame.spacing[list(arrangement.axes)],
        direction=frame.direction[:, list(arrangement.axes)] * np.where(arrangement.reversed, -1.0, 1.0),
    )
    return replace(
        volume,
        array=arrangement.view(volume.array),
        frame=new,
        slice_frames=tuple(new.slice(k) for k in range(new.shape[0])),
        # The files are no longer one per slice.
        source=replace(volume.source, resampled=True, frame_numbers=()),
    )


def check_plane(plane: str) -> Plane:
    """The plane of a name.

    Raises:
        InputError: unknown_plane.
    """
    for known in get_args(Plane):
        if plane == known:
            return cast(Plane, known)
    raise InputError("unknown_plane", f'There is no plane "{plane}".', f"Choose one of {', '.join(get_args(Plane))}.")


def check_volume(volume: Volume) -> None:
    """Makes sure that the slices of a scan are a volume.

    Raises:
        InputError: colour_volume.
        MedSightError: Why the volume has no regular grid.
    """
    if volume.n_slices > 1 and volume.is_colour:
        raise InputError(
            "colour_volume",
            f"This scan is {volume.n_slices} colour pictures, which are no volume.",
            "Ask about one of them, with --slice.",
        )
    volume.require_frame()


def check_slices(slices: range | None, cut: Reformatted) -> range:
    """The slices that are meant: those of the whole plane where none are named; see `check_range`."""
    return check_range(slices, cut.volume.n_slices, words=cut.words)


def check_range(slices: range | None, total: int, *, words: str = "") -> range:
    """The slices that are meant: all where none are named.

    Args:
        slices: Neighbouring slices, from 0.
        total: How many slices there are.
        words: What they are called, such as "axial"; may be empty.

    Raises:
        InputError: empty_range, slice_out_of_range.
    """
    if slices is None:
        return range(total)
    legal = "the only slice is 0" if total == 1 else f"slices are 0 to {total - 1}"
    if not slices:
        raise InputError(
            "empty_range",
            f"The range from slice {slices.start} up to, not including, {slices.stop} holds no slice; {legal}.",
            f"Give a first and a later last one, such as 0:{total}.",
        )
    if slices.step != 1 or slices[0] < 0 or slices[-1] >= total:
        kind = f"{words} slices".lstrip()
        wrong = "reaches outside" if slices.step == 1 else "leaves slices out"
        raise InputError(
            "slice_out_of_range",
            f"The range from slice {slices[0]} to {slices[-1]} {wrong}: this scan has {total} {kind}, {legal}.",
            "Choose a range of neighbouring slices inside.",
        )
    return slices
