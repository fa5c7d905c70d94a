"""Answers questions about a volume from the evidence of a survey, without the model: every number is a measurement.

`understanding` says which questions these are. Every answer says on which slices it rests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from medsight_core import laterality
from medsight_core.errors import InputError
from medsight_core.evidence import Evidence
from medsight_core.measure import Measurements
from medsight_core.naming import is_lesion
from medsight_core.referring import Inside, Near, Reference, parse_reference
from medsight_core.regions import Answer, Span, VolumeRegion
from medsight_core.resolving import INSIDE_SHARE, Piece, Resolved, inside_share, resolve, split
from medsight_core.understanding import Kind, bare, measured_kind, never_taught, unknown_in

LONGEST_LIST: Final = 8
"""Pieces that an answer tells one by one."""

MOST_SHOWN: Final = 24
"""Regions that are shown at once; each takes as much memory as the mask of the whole scan."""


def answer_from_evidence(
    question: str, evidence: Evidence, *, history: Sequence[tuple[str, str]] = ()
) -> Answer | None:
    """Answers a question about a volume.

    Args:
        question: In plain words.
        evidence: What was looked for and found.
        history: Earlier turns (question, answer); "it" is what the last of them spoke of.

    Returns:
        The answer, with the regions that it speaks of and, among the settings of its provenance, the slices that it
        rests on; None where the question is of another kind, and the model must be asked.
    """
    measured = measured_kind(question, history)
    return None if measured is None else answer_measured(*measured, evidence)


def answer_measured(kind: Kind, phrase: str, evidence: Evidence) -> Answer:
    """Answers what `measured_kind` understood.

    Args:
        kind: What is asked.
        phrase: What it is asked of; "" for the only thing that was found.
        evidence: What was looked for and found.
    """
    if phrase:
        return _about(kind, phrase, evidence)
    found = [finding.name for finding in evidence.findings if finding.region is not None]
    if len(found) == 1:
        return _about(kind, found[0], evidence)
    listed = f"I found {', '.join(found)}." if found else "I found nothing."
    return _Text(evidence).say(f"It is not clear what is meant. {listed}").answer(())


def show_reference(reference: Reference, evidence: Evidence) -> Answer:
    """Shows what a reference means: "the largest lesion", "all organs".

    Args:
        reference: From `parse_reference`.
        evidence: In which its `Reference.names` were looked for.

    Returns:
        An answer with a region for each piece, `MOST_SHOWN` at most; what could not be decided is said in it.
    """
    text = _Text(evidence)
    resolved = resolve(reference, evidence.regions, placed=evidence.placed, midline=evidence.midline)
    pieces = resolved.pieces[:MOST_SHOWN]
    for number, piece in enumerate(pieces):
        text.say("; " if number else "").name(piece).say(_brief(piece, evidence))
    more = len(resolved.pieces) - len(pieces)
    text.say(f"; and {more} more, which are not shown." if more else "." if pieces else "")
    for note in resolved.notes:
        text.say(f" {note}" if text.text else note)
    return text.answer(_resting(pieces) if pieces else evidence.slices)


def _about(kind: Kind, phrase: str, evidence: Evidence) -> Answer:
    text = _Text(evidence)
    looked = f"I looked for {', '.join(evidence.names) or 'nothing'}."
    try:
        reference = parse_reference(phrase, evidence.known)
    except InputError as error:
        if error.code != "unknown_structure":
            return text.say(str(error)).answer(())
        return text.say(f"{never_taught(unknown_in(error, phrase), evidence.modality)} {looked}").answer(())
    targets = tuple(target for target in reference.targets if evidence.finding(target.name) is not None)
    if not targets:
        return text.say(f"I did not look for {bare(phrase)}. {looked}").answer(())
    places = [s.place for s in reference.selectors if isinstance(s, Inside | Near) and s.place.names]
    for place in places:
        if all(evidence.finding(name) is None for name in place.names):
            return text.say(f"I did not look for the {place.text}, so I cannot say what lies in it.").answer(())
    reference = replace(reference, targets=targets)
    if kind == "count" and len(targets) == 1 and not reference.selectors and targets[0].side is None:
        reference = replace(reference, each=True, plural=True)
    resolved = resolve(reference, evidence.regions, placed=evidence.placed, midline=evidence.midline)
    if not resolved.pieces:
        return _nothing(kind, reference, resolved, text)
    pieces = resolved.pieces
    if kind == "presence":
        text.say("Yes: " if len(pieces) == 1 else f"Yes, {len(pieces)}: ")
    elif kind == "count":
        text.say(f"{len(pieces)}: ")
    for number, piece in enumerate(pieces[:LONGEST_LIST]):
        text.say("; " if number else "").name(piece).say(_SAY[kind](piece, evidence))
    more = len(pieces) - LONGEST_LIST
    text.say(f"; and {more} more." if more > 0 else ".")
    for note in resolved.notes:
        text.say(f" {note}")
    if kind == "where" and evidence.placed and evidence.midline is None:
        text.say(" Left and right are not told, because the middle of the body is not in view.")
    elif kind == "where" and not evidence.placed:
        text.say(f" {laterality.NO_ORIENTATION}")
    return text.answer(_resting(pieces))


def _nothing(kind: Kind, reference: Reference, resolved: Resolved, text: _Text) -> Answer:
    """The answer where nothing is left of what was asked for."""
    evidence = text.evidence
    names = ", ".join(target.name for target in reference.targets)
    absent = all(not _found(evidence, target.name) for target in reference.targets)
    if reference.kinds and absent and all(is_lesion(target.name) for target in reference.targets):
        # "No" would speak of all lesions that there are.
        many = "the only kind" if len(reference.targets) == 1 else "the only kinds"
        text.say(f"None was found of {many} that could be looked for: {names}. Any other is not excluded.")
        return text.answer(evidence.slices)
    text.say("0. " if kind == "count" and absent else "No. " if kind == "presence" and absent else "")
    notes = [note for note in resolved.notes if not note.startswith(("No ", "None "))]
    if absent or not notes:
        text.say(f"I looked for {names} and found none{'' if absent else ' of this kind'}.")
    else:
        text.say(" ".join(notes))
    return text.answer(evidence.slices)


def _found(evidence: Evidence, name: str) -> bool:
    finding = evidence.finding(name)
    return finding is not None and finding.region is not None


def _size(piece: Piece, evidence: Evidence) -> str:
    measured = evidence.measure(piece)
    return f", {_volume(measured)}, {_diameters(measured)}, {_span(piece)}"


def _brief(piece: Piece, evidence: Evidence) -> str:
    return f", {_volume(evidence.measure(piece))}, {_span(piece)}"


def _where(piece: Piece, evidence: Evidence) -> str:
    said = []
    if evidence.placed and evidence.midline is not None:
        side = laterality.side_at(piece.coordinate(0), evidence.midline)
        said.append("across the middle of the body" if side == "middle" else f"on the {side} side of the body")
    if is_lesion(piece.of.label):
        hosts = (part for region in evidence.regions if not is_lesion(region.label) for part in split(region)[:1])
        inside = [host.of.label for host in hosts if inside_share(piece, host) >= INSIDE_SHARE]
        said += [f"in the {', '.join(inside)}"] if inside else []
    return "".join(f", {words}" for words in [*said, _span(piece)])


def _slices(piece: Piece, evidence: Evidence) -> str:
    return f", {_span(piece)}"


def _density(piece: Piece, evidence: Evidence) -> str:
    measured = evidence.measure(piece)
    if measured.mean is None:
        return ", which has no values that could be measured"
    unit = " HU" if evidence.modality == "CT" else " in the scan's own values"
    spread = "" if measured.sd is None else f" ± {measured.sd:.1f}"
    return f", mean {measured.mean:.1f}{spread}{unit}, {_span(piece)}"


_SAY: Final = {
    "presence": _brief,
    "count": _brief,
    "size": _size,
    "where": _where,
    "slices": _slices,
    "density": _density,
}


def _volume(measured: Measurements) -> str:
    if measured.volume_mm3 is None or measured.volume_ml is None:
        return f"{measured.voxels:,} voxels"
    return f"{measured.volume_ml:,.1f} ml" if measured.volume_ml >= 1 else f"{measured.volume_mm3:,.0f} mm³"


def _diameters(measured: Measurements) -> str:
    longest, across = measured.diameter, measured.perpendicular
    return (
        f"longest diameter {longest.length_mm:.1f} {measured.unit} on slice {longest.slice_index} and "
        f"{across.length_mm:.1f} {measured.unit} across"
    )


def _own_slices(piece: Piece) -> tuple[int, ...]:
    return tuple(piece.corner[0] + k for k, plane in enumerate(piece.mask) if plane.any())


def _resting(pieces: Sequence[Piece]) -> tuple[int, ...]:
    return tuple(sorted({k for piece in pieces for k in _own_slices(piece)}))


def _span(piece: Piece) -> str:
    return slices_text(_own_slices(piece))


def resting_text(slices: Sequence[int]) -> str:
    """The last sentence of an answer: which slices it rests on."""
    return f" This rests on {slices_text(slices)}." if slices else ""


def slices_text(slices: Sequence[int]) -> str:
    """Slices as a person reads them: "slices 3 to 9 and 12"."""
    runs: list[list[int]] = []
    for k in slices:
        if runs and k == runs[-1][-1] + 1:
            runs[-1].append(k)
        else:
            runs.append([k])
    said = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    joined = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}" if said else "none"
    return f"slice{'' if len(slices) == 1 else 's'} {joined}"


@dataclass
class _Text:
    """An answer as it is being written: text, and regions tied to its words."""

    evidence: Evidence

    def __post_init__(self) -> None:
        self.text = ""
        self.regions: list[VolumeRegion] = []

    def say(self, words: str) -> _Text:
        self.text += words
        return self

    def name(self, piece: Piece) -> _Text:
        """Writes what a piece is called, and ties the words to its mask."""
        region = piece.region()
        assert isinstance(region, VolumeRegion)
        start = len(self.text)
        self.text += region.label + (" (uncertain)" if region.certainty == "uncertain" else "")
        self.regions.append(replace(region, span=Span(start, start + len(region.label))))
        return self

    def answer(self, slices: Sequence[int]) -> Answer:
        """The answer, with the slices it rests on."""
        rests = resting_text(slices)
        provenance = self.evidence.provenance
        settings = {**provenance.settings, "answered_from": "evidence", "slices": list(slices)}
        return Answer(
            text=self.text + rests,
            raw=self.text + rests,
            regions=(),
            warnings=(),
            provenance=replace(provenance, settings=settings),
            volume_regions=tuple(self.regions),
        )
