"""A report about a volume that nobody has verified, as values: sections of sentences that say what they rest on.

Every sentence has a `Basis`. Only one that rests on slices was read from the scan; the others say plainly that they
come from the file, from the template, or from nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from medsight_core.evidence import Evidence, Finding
from medsight_core.imaging.volume import Volume
from medsight_core.output.draft_template import Kind
from medsight_core.output.key_image import Shown
from medsight_core.questioning import slices_text
from medsight_core.regions import VolumeRegion

Basis = Literal["slices", "file", "template", "nothing"]

FORMAT_VERSION: Final = 1

_NO_EVIDENCE: Final[Mapping[Basis, str]] = {
    "file": "from the file, not from the model",
    "template": "fixed text, not read from the scan",
    "nothing": "no evidence was looked at",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """One sentence of a draft.

    Attributes:
        text: What it says.
        basis: Where that comes from.
        slices: What it rests on, where that is slices of the scan.
        number: Of the region that it is about.
        plane: What these slices are called, where they are not those of the scan as it was acquired.
    """

    text: str
    basis: Basis
    slices: tuple[int, ...] = ()
    number: int | None = None
    plane: str = ""

    @property
    def note(self) -> str:
        """What it rests on, in words."""
        if self.basis != "slices":
            return _NO_EVIDENCE[self.basis]
        return f"{self.plane} {slices_text(self.slices)}".strip()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Structure:
    """What a report says of one structure.

    Attributes:
        name: What was looked for.
        sentence: About it.
        shown: What was found of it; None where it was not found.
    """

    name: str
    sentence: Sentence
    shown: Shown | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A question about the volume, its answer, and what should be known beside it."""

    question: str
    answer: Sentence
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """A part of a draft; what of it is filled follows from its kind."""

    kind: Kind
    title: str
    sentences: tuple[Sentence, ...] = ()
    structures: tuple[Structure, ...] = ()
    replies: tuple[Reply, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """A report that nobody has verified.

    Attributes:
        title: Of the report.
        volume: The scan.
        evidence: What was looked for and found in it.
        sections: In their order.
        shown: What was found, in the order of its numbers, from 1.
        warnings: Plain sentences that belong beside it.
    """

    title: str
    volume: Volume
    evidence: Evidence
    sections: tuple[Section, ...]
    shown: tuple[Shown, ...]
    warnings: tuple[str, ...]

    @property
    def banner(self) -> str:
        """What stands above everything."""
        return f"Draft by {self.evidence.provenance.model} - not verified - research use"

    @property
    def regions(self) -> tuple[VolumeRegion, ...]:
        """The regions, in the order of their numbers."""
        return tuple(one.region for one in self.shown)

    def to_json(self) -> dict[str, Any]:
        """Everything but pictures and masks, ready for ``json.dumps``."""
        frame = self.volume.slice_frame(self.volume.middle)
        return {
            "format": "medsight-report",
            "version": FORMAT_VERSION,
            "banner": self.banner,
            "verified": False,
            "title": self.title,
            "sections": [_section_json(section) for section in self.sections],
            "regions": [
                {"number": one.number, **one.region.to_json(), "measurements": one.measured.to_json()}
                for one in self.shown
            ],
            "looked_for": [
                {"name": finding.name, "found": finding.region is not None, "presence": _presence(finding)}
                for finding in self.evidence.findings
            ],
            "slices_looked_at": list(self.evidence.slices),
            "warnings": list(self.warnings),
            "source": {
                "kind": self.volume.source.kind,
                "modality": self.volume.modality,
                "shape": list(self.volume.array.shape[:3]),
                "spacing": frame.spacing.tolist() if frame.physical else None,
            },
            **self.evidence.provenance.to_json(),
        }


def _presence(finding: Finding) -> dict[str, float]:
    return {str(k): round(float(value), 4) for k, value in sorted(finding.presence.items())}


def _section_json(section: Section) -> dict[str, Any]:
    content: dict[str, Any] = {"kind": section.kind, "title": section.title}
    if section.sentences:
        content["sentences"] = [_sentence_json(sentence) for sentence in section.sentences]
    if section.structures:
        content["structures"] = [{"name": one.name, **_sentence_json(one.sentence)} for one in section.structures]
    if section.replies:
        content["answers"] = [
            {"question": one.question, **_sentence_json(one.answer), "notes": list(one.notes)}
            for one in section.replies
        ]
    return content


def _sentence_json(sentence: Sentence) -> dict[str, Any]:
    return {
        "text": sentence.text,
        "basis": sentence.basis,
        "slices": list(sentence.slices),
        "region": sentence.number,
    }
