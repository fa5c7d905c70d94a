"""Which regions a `Reference` means: by size, by place in the patient, by what they lie in or near to.

Single lesions are the connected pieces of a region. They are looked at in their own small boxes and become regions of
the whole grid only when they are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from medsight_core import laterality
from medsight_core.geometry import FloatArray, Frame
from medsight_core.naming import Side, is_lesion, same_name
from medsight_core.referring import Direction, Inside, Near, OnSide, Place, Ranked, Reference, Selector
from medsight_core.regions import Region, VolumeRegion

INSIDE_MARGIN_MM: Final = 5.0
"""How far beside an organ a voxel may lie and still count as inside; the diagonal of a voxel where that is longer."""

INSIDE_SHARE: Final = 0.5
"""A piece lies in an organ when at least this part of its surface does."""

_TOWARDS: Final[dict[Direction, tuple[int, int]]] = {
    "left": (0, 1),
    "right": (0, -1),
    "posterior": (1, 1),
    "anterior": (1, -1),
    "superior": (2, 1),
    "inferior": (2, -1),
}
"""Axis and sign of a direction in LPS."""

_MOST_POINTS: Final = 20_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A connected part of a region, or all of it.

    Attributes:
        of: The region.
        corner: Where ``mask`` begins on its grid: slice, row, column.
        mask: ``(slices, rows, columns)`` bool, its box only.
    """

    of: Region | VolumeRegion
    corner: tuple[int, int, int]
    mask: NDArray[np.bool_]

    @property
    def frame(self) -> Frame:
        """Of the whole grid."""
        return self.of.frame

    @cached_property
    def voxels(self) -> int:
        """How many voxels it has."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def centroid(self) -> FloatArray:
        """``(3,)`` LPS mm."""
        return self.frame.to_lps(np.argwhere(self.mask).mean(axis=0) + self.corner)

    def coordinate(self, axis: int) -> NDArray[np.float32]:
        """LPS coordinate of each of its voxels along one axis."""
        return laterality.coordinates(self.frame, axis, self.corner, self.mask.shape)[self.mask]

    def shell(self) -> NDArray[np.intp]:
        """``(n, 3)`` indices on the whole grid of the voxels at its surface, thinned out where there are very many."""
        found = np.argwhere(self.mask & ~ndimage.binary_erosion(self.mask))
        return found[:: -(-len(found) // _MOST_POINTS)] + self.corner

    def surface(self) -> FloatArray:
        """``(n, 3)`` LPS mm of the same voxels."""
        return self.frame.to_lps(self.shell())

    def region(self) -> Region | VolumeRegion:
        """It as a region of its own, on the whole grid."""
        whole = np.zeros(self.frame.shape, dtype=bool)
        whole[tuple(slice(at, at + size) for at, size in zip(self.corner, self.mask.shape, strict=True))] = self.mask
        if isinstance(self.of, Region):
            return replace(self.of, mask=whole[0])
        return replace(self.of, mask=whole, key_slices=tuple(k for k in self.of.key_slices if whole[k].any()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Resolved:
    """What a reference means in a scan.

    Attributes:
        pieces: In the order asked for; single pieces without one, the largest first.
        notes: Plain sentences: what could not be decided, how something was decided, or that nothing was found.
    """

    pieces: tuple[Piece, ...]
    notes: tuple[str, ...] = ()

    def regions(self) -> tuple[Region | VolumeRegion, ...]:
        """The pieces as regions of their own; each takes as much memory as the mask of the whole scan."""
        return tuple(piece.region() for piece in self.pieces)


def split(region: Region | VolumeRegion) -> list[Piece]:
    """The pieces of a region that do not touch, not even at a corner; the largest first."""
    whole = _whole(region)
    if whole is None:
        return []
    labels, pieces = _components(whole.mask), []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        corner = [start + extent.start for start, extent in zip(whole.corner, box, strict=True)]
        pieces.append(Piece(of=region, corner=(corner[0], corner[1], corner[2]), mask=labels[box] == number))
    return pieces


def resolve(
    reference: Reference,
    regions: Sequence[Region | VolumeRegion],
    *,
    placed: bool = True,
    midline: float | None = None,
) -> Resolved:
    """Finds what a reference means.

    Args:
        reference: From `parse_reference`.
        regions: What was found, all on one grid; `Reference.names` says what is needed.
        placed: Whether directions of the grid are directions of the body (not for a photograph or a projection).
        midline: As `body_midline` gives it.
    """
    resolver = _Resolver(regions=[r for r in regions if r.mask.any()], placed=placed, midline=midline)
    pieces: list[Piece] = []
    for target in reference.targets:
        for region in (r for r in resolver.regions if same_name(r.label, target.name)):
            found = split(region) if reference.each else [whole] if (whole := _whole(region)) else []
            pieces += resolver.on_side(found, target.side) if target.side else found
    if reference.each:
        pieces = _distinct(pieces)
    for selector in reference.selectors:
        pieces = resolver.select(pieces, selector)
    notes = list(dict.fromkeys(resolver.notes))
    if not pieces and not notes:
        notes = [f'Nothing was found for "{reference.text}".']
    if len(pieces) > 1 and reference.each and not reference.plural:
        notes.append(f"There are {len(pieces)}; the largest comes first.")
    return Resolved(pieces=tuple(pieces), notes=tuple(notes))


def _distinct(pieces: list[Piece]) -> list[Piece]:
    """The largest first, each place once: one lesion may have been found under several names."""
    kept: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: -piece.voxels):
        others = (other for other in kept if other.of is not piece.of)
        if not any(_overlap(piece, other) > piece.voxels / 2 for other in others):
            kept.append(piece)
    return kept


def _overlap(one: Piece, other: Piece) -> int:
    """Voxels that both have."""
    low = np.maximum(one.corner, other.corner)
    high = np.minimum(np.add(one.corner, one.mask.shape), np.add(other.corner, other.mask.shape))
    if (low >= high).any():
        return 0
    parts = [
        piece.mask[tuple(slice(a, b) for a, b in zip(low - piece.corner, high - piece.corner, strict=True))]
        for piece in (one, other)
    ]
    return int(np.count_nonzero(parts[0] & parts[1]))


def midline_between(regions: Sequence[Region | VolumeRegion]) -> float | None:
    """The middle between counterparts: sides that have names, or the two pieces of a paired organ.

    Two lesions, or two vessels, may well lie on one side of the body and are no counterparts.

    Returns:
        x in LPS mm; None where there are none.
    """
    wholes = [_whole(region) for region in regions]
    named = laterality.anchored_midline({w.of.label.lower(): w.centroid for w in wholes if w is not None})
    if named is not None:
        return named
    for region in regions:
        if any(same_name(region.label, organ) for organ in laterality.PAIRED):
            parts = [(piece.voxels, piece.coordinate(0)) for piece in split(region)[:2]]
            middle = laterality.pair_midline([(voxels, float(x.min()), float(x.max())) for voxels, x in parts])
            if middle is not None:
                return middle
    return None


@dataclass(kw_only=True)
class _Resolver:
    """Applies selectors and collects what there is to say."""

    regions: list[Region | VolumeRegion]
    placed: bool
    midline: float | None

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def select(self, pieces: list[Piece], selector: Selector) -> list[Piece]:
        match selector:
            case OnSide(side=side):
                return self.on_side(pieces, side)
            case Inside(place=Place(names=(), part="left" | "right" as side, text=text)):
                self.notes.append(f"No structure with a {text} is known here; the {side} side of the body is taken.")
                return self.on_side(pieces, side)
            case Inside(place=place):
                hosts = self.hosts(place)
                return [piece for piece in pieces if any(self.is_inside(piece, host, place.part) for host in hosts)]
            case Near(place=place, farthest=farthest, count=count):
                surfaces = [host.surface() for host in self.hosts(place)]
                if not surfaces:
                    return []
                tree = cKDTree(np.concatenate(surfaces))
                far = {id(piece): float(tree.query(piece.surface())[0].min()) for piece in pieces}
                return sorted(pieces, key=lambda piece: far[id(piece)], reverse=farthest)[:count]
            case Ranked():
                return self.ranked(pieces, selector)

    def on_side(self, pieces: list[Piece], side: Side) -> list[Piece]:
        """What lies on a side; an organ that lies on both is cut in the middle, a lesion is left out."""
        if not pieces or not self.has_directions(pieces[0].frame):
            return []
        midline = self.midline if self.midline is not None else midline_between(self.regions)
        if midline is None:
            self.notes.append(laterality.ONE_SIDED)
            return []
        halves = (self.half(piece, side, midline) for piece in pieces)
        return [half for half in halves if half is not None]

    def half(self, piece: Piece, side: Side, midline: float) -> Piece | None:
        """What of a piece lies on a side, whole components where they do not lie on both."""
        x = laterality.coordinates(piece.frame, 0, piece.corner, piece.mask.shape)
        here = (x > midline) == (side == "left")
        labels = _components(piece.mask)
        shares = ndimage.mean(here, labels, np.arange(1, labels.max() + 1))
        whole, both = shares >= laterality.ONE_SIDE_SHARE, abs(shares - 0.5) < laterality.ONE_SIDE_SHARE - 0.5
        kept = np.concatenate(([False], whole))[labels]
        name = piece.of.label
        if both.any() and is_lesion(name):
            self.notes.append(f"A {name} in the middle of the body is on neither side.")
        elif both.any():
            kept |= np.concatenate(([False], both))[labels] & here
            self.notes.append(f"The {name} lies on both sides of the middle; it is cut there.")
        return replace(piece, mask=kept) if kept.any() else None

    def has_directions(self, frame: Frame) -> bool:
        if self.placed and frame.physical:
            return True
        self.notes.append(laterality.NO_ORIENTATION)
        return False

    def hosts(self, place: Place) -> list[Piece]:
        """The structures of a place."""
        found = [
            whole
            for region in self.regions
            if any(same_name(region.label, name) for name in place.names) and (whole := _whole(region))
        ]
        if not found:
            self.notes.append(f"The {place.text} was not found, so nothing can be said to lie in it or near it.")
        if place.part is not None and found:
            if not self.has_directions(found[0].frame):
                return []
            names = " and ".join(dict.fromkeys(piece.of.label for piece in found))
            self.notes.append(f"The {names} has no parts of its own here; the {place.part} half is taken for one.")
        return self.on_side(found, place.side) if place.side else found

    def is_inside(self, piece: Piece, host: Piece, part: Direction | None) -> bool:
        if part is not None:
            axis, sign = _TOWARDS[part]
            extent = host.coordinate(axis)
            if sign * (piece.centroid[axis] - (float(extent.min()) + float(extent.max())) / 2) < 0:
                return False
        return inside_share(piece, host) >= INSIDE_SHARE

    def ranked(self, pieces: list[Piece], rank: Ranked) -> list[Piece]:
        if rank.by == "size":
            ordered = sorted(pieces, key=lambda piece: piece.voxels, reverse=not rank.reverse)
        elif pieces and not self.has_directions(pieces[0].frame):
            return []
        else:
            axis, sign = _TOWARDS[rank.by]
            ordered = sorted(pieces, key=lambda piece: sign * float(piece.centroid[axis]), reverse=not rank.reverse)
        end = None if rank.count is None else rank.skip + rank.count
        if end is not None and 0 < len(ordered) < end:
            self.notes.append(f"Only {len(ordered)} {'was' if len(ordered) == 1 else 'were'} found.")
        return ordered[rank.skip : end]


def inside_share(piece: Piece, host: Piece) -> float:
    """Which part of a piece's surface lies in a structure, its holes counted in, or close to it.

    A mask of an organ often leaves its lesions out, as holes or as notches; so it is the surface that counts, and a
    margin of `INSIDE_MARGIN_MM` (pixels where there is no spacing).
    """
    shell = piece.shell()
    filled = sitk.GetArrayFromImage(
        sitk.BinaryFillhole(sitk.GetImageFromArray(np.pad(host.mask, 1).astype(np.uint8)), True)
    )
    local = shell - np.array(host.corner) + 1
    reachable = ((local >= 0) & (local < filled.shape)).all(axis=1)
    covered = np.zeros(len(shell), dtype=bool)
    covered[reachable] = filled[tuple(local[reachable].T)] > 0
    if covered.mean() < INSIDE_SHARE:
        margin = max(INSIDE_MARGIN_MM, float(np.linalg.norm(host.frame.spacing))) * 1.001
        away, _ = cKDTree(host.surface()).query(host.frame.to_lps(shell[~covered]), distance_upper_bound=margin)
        covered[~covered] = np.isfinite(away)
    return float(covered.mean())


def _components(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """``mask`` with its connected components numbered from 1, the largest first."""
    labels = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    numbered: NDArray[np.uint32] = sitk.GetArrayFromImage(sitk.RelabelComponent(labels, sortByObjectSize=True))
    return numbered


def _whole(region: Region | VolumeRegion) -> Piece | None:
    """All of a region, in its box; None where it is empty."""
    mask = region.mask[None] if isinstance(region, Region) else region.mask
    box = _box(mask)
    if box is None:
        return None
    return Piece(of=region, corner=(box[0].start, box[1].start, box[2].start), mask=mask[box])


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    found: Iterable[tuple[slice, slice, slice]] = ndimage.find_objects(mask.view(np.uint8))
    return next(iter(found), None)
