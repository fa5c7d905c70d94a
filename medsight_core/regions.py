"""The values of a conversation about a scan: question, prompt, region, answer.

Plain frozen values. Arrays in them are read-only views, and two values that hold arrays are equal only if they are the
same object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsight_core.errors import InputError, MedSightError

if TYPE_CHECKING:
    from medsight_core.geometry import Frame
    from medsight_core.imaging.volume import Volume

PromptKind = Literal["point", "box", "scribble", "mask"]
Certainty = Literal["certain", "likely", "uncertain"]

CERTAIN = 0.8
"""A region with at least this score is called certain."""
LIKELY = 0.5
"""A region with at least this score is called likely; below it, uncertain."""


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _certainty(score: float) -> Certainty:
    if score >= CERTAIN:
        return "certain"
    return "likely" if score >= LIKELY else "uncertain"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prompt:
    """A point, box, scribble or mask that a person drew.

    Attributes:
        kind: What was drawn.
        points: (n, 3) float64, LPS mm: one point; two opposite corners of a box; two or more of a scribble; none for a
            mask.
        positive: False where the person says "not this".
        mask: (rows, columns) bool on the slice's own grid, for a mask only.
    """

    kind: PromptKind
    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))
    positive: bool = True
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise InputError(
                "bad_prompt", f"A {self.kind} needs finite points of shape (n, 3) in LPS mm, got {points.shape}."
            )
        least, most = {"point": (1, 1), "box": (2, 2), "scribble": (2, None), "mask": (0, 0)}[self.kind]
        if len(points) < least or (most is not None and len(points) > most):
            wanted = f"{least} or more" if most is None else str(least)
            raise InputError("bad_prompt", f"A {self.kind} has {wanted} points, got {len(points)}.")
        if (self.kind == "mask") != (self.mask is not None):
            raise InputError("bad_prompt", "A prompt of kind mask, and only that one, comes with a mask.")
        object.__setattr__(self, "points", _read_only(points))
        if self.mask is not None:
            mask = np.asarray(self.mask, dtype=bool)
            if mask.ndim != 2 or not mask.any():
                raise InputError("bad_prompt", f"A mask prompt is one non-empty slice, got shape {mask.shape}.")
            object.__setattr__(self, "mask", _read_only(mask))


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` up to, not including, ``end`` of `Answer.text`; empty where no words are grounded."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise MedSightError("bad_span", f"A span needs 0 <= start <= end, got {self.start} and {self.end}.")

    def of(self, text: str) -> str:
        """The words the span covers."""
        return text[self.start : self.end]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Region:
    """A region code as it occurred in an answer, with its mask on the source slice.

    Attributes:
        code: Its name, such as ``"[C2_16]"``.
        label: What it is, such as ``"left lung"``.
        span: The words of `Answer.text` that it grounds.
        score: How sure the model is, 0 to 1.
        slice_index: The slice the mask lies on, from 0.
        mask: (rows, columns) bool on the source slice's own grid.
        frame: Where that slice lies in the patient; its shape is (1, rows, columns).
    """

    code: str
    label: str
    span: Span
    score: float
    slice_index: int
    mask: NDArray[np.bool_]
    frame: Frame

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask, dtype=bool)
        if (1, *mask.shape) != tuple(self.frame.shape):
            raise MedSightError(
                "bad_region", f"The mask of {self.code} is {mask.shape}, its slice is {tuple(self.frame.shape)}."
            )
        if not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise MedSightError("bad_region", f"A score lies between 0 and 1, got {self.score} for {self.code}.")
        if self.slice_index < 0:
            raise MedSightError("bad_region", f"A slice index counts from 0, got {self.slice_index} for {self.code}.")
        object.__setattr__(self, "mask", _read_only(mask))

    @property
    def area_pixels(self) -> int:
        """How many pixels the mask covers."""
        return int(np.count_nonzero(self.mask))

    @property
    def area_mm2(self) -> float | None:
        """Area of the mask in mm²; None where the source has no spacing."""
        return self.area_pixels * float(self.frame.pixel_area) if self.frame.physical else None

    @property
    def area_text(self) -> str:
        """The area as a person reads it: mm², or pixels where the source has no spacing."""
        area = self.area_mm2
        if area is None:
            return f"{self.area_pixels:,} pixels"
        return f"{area:,.0f} mm²" if area >= 100 else f"{area:.1f} mm²"

    @property
    def size_text(self) -> str:
        """How large it is, as a person reads it."""
        return self.area_text

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """First column, first row, last column, last row that the mask covers (all included); None if it is empty."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])

    @property
    def certainty(self) -> Certainty:
        """The score in one word."""
        return _certainty(self.score)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels, ready for ``json.dumps``."""
        area = self.area_mm2
        return {
            "code": self.code,
            "label": self.label,
            "span": [self.span.start, self.span.end],
            "score": round(self.score, 4),
            "certainty": self.certainty,
            "slice": self.slice_index,
            "area_mm2": None if area is None else round(area, 2),
            "area_pixels": self.area_pixels,
            "box": None if self.box is None else list(self.box),
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VolumeRegion:
    """A structure throughout a volume: what several slices of a scan say of one label, joined.

    Attributes:
        code: The region code that it was decoded from, such as ``"[C2_16]"``.
        label: What it is, such as ``"left lung"``.
        span: The words of `Answer.text` that it grounds.
        score: How sure the model is, 0 to 1.
        mask: (slices, rows, columns) bool on the volume's own grid, as it was read.
        frame: Where that grid lies in the patient, of the mask's shape.
        key_slices: The slices that it rests on, from 0, along the first axis of the grid, ascending.
    """

    code: str
    label: str
    span: Span
    score: float
    mask: NDArray[np.bool_]
    frame: Frame
    key_slices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask, dtype=bool)
        if mask.shape != tuple(self.frame.shape):
            raise MedSightError(
                "bad_region", f"The mask of {self.code} is {mask.shape}, its volume is {tuple(self.frame.shape)}."
            )
        if not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise MedSightError("bad_region", f"A score lies between 0 and 1, got {self.score} for {self.code}.")
        outside = [k for k in self.key_slices if not 0 <= k < len(mask)]
        if outside:
            raise MedSightError("bad_region", f"{self.code} rests on slice {outside[0]}, its volume has {len(mask)}.")
        object.__setattr__(self, "mask", _read_only(mask))
        object.__setattr__(self, "key_slices", tuple(sorted(set(self.key_slices))))

    @property
    def voxels(self) -> int:
        """How many voxels the mask covers."""
        return int(np.count_nonzero(self.mask))

    @property
    def volume_mm3(self) -> float | None:
        """Volume of the mask in mm³; None where the source has no spacing."""
        return self.voxels * float(np.prod(self.frame.spacing)) if self.frame.physical else None

    @property
    def volume_text(self) -> str:
        """The volume as a person reads it: ml or mm³, or voxels where the source has no spacing."""
        volume = self.volume_mm3
        if volume is None:
            return f"{self.voxels:,} voxels"
        return f"{volume / 1000:,.1f} ml" if volume >= 1000 else f"{volume:,.0f} mm³"

    @property
    def size_text(self) -> str:
        """How large it is, as a person reads it."""
        return self.volume_text

    @property
    def slices(self) -> tuple[int, int] | None:
        """First and last slice with a voxel inside; None if the mask is empty."""
        covered = np.flatnonzero(self.mask.any(axis=(1, 2)))
        return (int(covered[0]), int(covered[-1])) if len(covered) else None

    @property
    def certainty(self) -> Certainty:
        """The score in one word."""
        return _certainty(self.score)

    def on_slice(self, volume: Volume, k: int) -> Region | None:
        """The part on one slice, in that slice's own frame; None where there is none.

        Args:
            volume: The scan that the region belongs to.
            k: The slice, from 0.

        Raises:
            InputError: slice_out_of_range.
        """
        frame = volume.slice_frame(k)
        mask = self.mask[k]
        if not mask.any():
            return None
        return Region(
            code=self.code,
            label=self.label,
            span=self.span,
            score=self.score,
            slice_index=k,
            mask=mask,
            frame=frame,
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the voxels, ready for ``json.dumps``."""
        volume, slices = self.volume_mm3, self.slices
        return {
            "code": self.code,
            "label": self.label,
            "span": [self.span.start, self.span.end],
            "score": round(self.score, 4),
            "certainty": self.certainty,
            "key_slices": list(self.key_slices),
            "slices": None if slices is None else list(slices),
            "volume_mm3": None if volume is None else round(volume, 2),
            "voxels": self.voxels,
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Question:
    """What a person asks of a scan.

    Attributes:
        text: The question in plain words.
        volume: The scan.
        slice_index: The slice that is asked about, from 0.
        prompts: What the person drew on it.
        history: Earlier turns: (question, answer as generated, with codes).
    """

    text: str
    volume: Volume
    slice_index: int
    prompts: tuple[Prompt, ...] = ()
    history: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError(
                "empty_question", "The question is empty.", 'Ask in plain words, such as "Where is the liver?".'
            )
        count = self.volume.n_slices
        if not 0 <= self.slice_index < count:
            legal = "the only slice is 0" if count == 1 else f"slices are 0 to {count - 1}"
            raise InputError("slice_out_of_range", f"There is no slice {self.slice_index} in this scan: {legal}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an answer came from.

    Attributes:
        model: The model's name.
        digest: Digest of its checkpoint.
        settings: What generation was told (token limit, thresholds, device ...).
        timings: Seconds per step.
        tokens: What the language model read ("prompt") and wrote ("completion"); empty where it was not asked.
    """

    model: str
    digest: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {
            "model": self.model,
            "digest": self.digest,
            "settings": dict(self.settings),
            "timings": {name: round(seconds, 4) for name, seconds in self.timings.items()},
            "tokens": dict(self.tokens),
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Answer:
    """What the model said, what it showed, and where that came from.

    Attributes:
        text: What a person reads, without codes and markup; spans of regions refer to it.
        raw: The text as generated, with codes; goes into the history of the next question.
        regions: In the order in which the text names them.
        warnings: Plain sentences that belong beside the answer.
        provenance: Model, digest, settings, timings.
        volume_regions: Structures throughout the volume, where a whole volume was asked about.
    """

    text: str
    raw: str
    regions: tuple[Region, ...]
    warnings: tuple[str, ...]
    provenance: Provenance
    volume_regions: tuple[VolumeRegion, ...] = ()

    def __post_init__(self) -> None:
        regions: tuple[Region | VolumeRegion, ...] = (*self.regions, *self.volume_regions)
        for region in regions:
            if region.span.end > len(self.text):
                raise MedSightError(
                    "bad_span",
                    f"{region.code} grounds characters up to {region.span.end} of a text of {len(self.text)}.",
                )

    def to_json(self) -> dict[str, Any]:
        """Everything but the masks' pixels, ready for ``json.dumps``."""
        return {
            "text": self.text,
            "raw": self.raw,
            "regions": [region.to_json() for region in self.regions],
            "volume_regions": [region.to_json() for region in self.volume_regions],
            "warnings": list(self.warnings),
            **self.provenance.to_json(),
        }
