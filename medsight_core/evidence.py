"""What is known of a scan after its structures were looked for: the ground on which questions about it are answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medsight_core.errors import InputError
from medsight_core.geometry import Frame
from medsight_core.laterality import body_midline
from medsight_core.measure import Measurements, measure
from medsight_core.naming import same_name
from medsight_core.regions import Provenance, VolumeRegion
from medsight_core.resolving import Piece, midline_between

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """One structure that was looked for.

    Attributes:
        name: As the model calls it.
        region: Where it is; None where it was not found.
        presence: How likely each slice that was read shows it, 0 to 1, by slice; empty where that is not known.
        measurements: Of the region.
    """

    name: str
    region: VolumeRegion | None
    presence: Mapping[int, float] = field(default_factory=dict)
    measurements: Measurements | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What was looked for in a volume and what was found.

    Attributes:
        findings: One for each name that was looked for.
        known: All names that the model knows.
        slices: The slices that were read, ascending.
        modality: Of the volume.
        values: ``(slices, rows, columns)`` of the volume; None for colours, which are not measured.
        placed: Whether directions of its grid are directions of the body.
        midline: x of the middle of the body in LPS mm; None where neither it nor a pair of organs is in view.
        provenance: Of the survey.
    """

    findings: tuple[Finding, ...]
    known: tuple[str, ...]
    slices: tuple[int, ...]
    modality: str
    values: NDArray[Any] | None
    placed: bool
    midline: float | None
    provenance: Provenance

    @classmethod
    def gather(
        cls,
        volume: Volume,
        regions: Mapping[str, VolumeRegion | None],
        *,
        provenance: Provenance,
        known: Sequence[str] = (),
        slices: Iterable[int] | None = None,
        presence: Mapping[str, Mapping[int, float]] | None = None,
    ) -> Evidence:
        """Measures what a survey found.

        Args:
            volume: The scan.
            regions: What was looked for, and where it is; None where it was not found.
            provenance: Of the survey.
            known: All names that the model knows, where they are more than were looked for.
            slices: The slices that were read; all where it is not said.
            presence: See `Finding.presence`, by name.

        Raises:
            InputError: bad_region: a region lies on another grid than the volume.
        """
        shape = volume.array.shape[:3]
        values = None if volume.is_colour else volume.array
        findings = []
        for name, region in regions.items():
            if region is not None and region.mask.shape != shape:
                raise InputError(
                    "bad_region",
                    f"The region {name} has a grid of {region.mask.shape}, the scan one of {shape}.",
                    "Look for it in this scan.",
                )
            found = region if region is not None and region.mask.any() else None
            measured = None if found is None else measure(found.mask, found.frame, values=values)
            seen = dict((presence or {}).get(name, {}))
            findings.append(Finding(name=name, region=found, presence=seen, measurements=measured))
        placed = volume.has_place
        frame = volume.frame
        middle = None
        if frame is not None and placed:
            middle = None if values is None else body_midline(values, frame, modality=volume.modality)
            if middle is None:
                middle = midline_between([finding.region for finding in findings if finding.region is not None])
        return cls(
            findings=tuple(findings),
            known=tuple(dict.fromkeys((*known, *regions))),
            slices=tuple(sorted(set(range(volume.n_slices) if slices is None else slices))),
            modality=volume.modality,
            values=values,
            placed=placed,
            midline=middle,
            provenance=provenance,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What was looked for."""
        return tuple(finding.name for finding in self.findings)

    @property
    def regions(self) -> tuple[VolumeRegion, ...]:
        """What was found, under the names it was looked for."""
        return tuple(finding.region for finding in self.findings if finding.region is not None)

    def finding(self, name: str) -> Finding | None:
        """What is known of a structure; None where it was not looked for."""
        return next((finding for finding in self.findings if same_name(finding.name, name)), None)

    def measure(self, piece: Piece) -> Measurements:
        """Measures a part of a region."""
        first = piece.corner[0]
        box = tuple(slice(at, at + size) for at, size in zip(piece.corner, piece.mask.shape, strict=True))
        frame = Frame(
            shape=(piece.mask.shape[0], piece.mask.shape[1], piece.mask.shape[2]),
            origin=piece.frame.to_lps(piece.corner),
            spacing=piece.frame.spacing,
            direction=piece.frame.direction,
            physical=piece.frame.physical,
        )
        values = None if self.values is None else self.values[box]
        return measure(piece.mask, frame, values=values, first_slice=first)
