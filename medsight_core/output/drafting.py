"""Puts the draft of a report together: sentences about each structure in the words of a template, and an impression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from medsight_core.evidence import Evidence, Finding
from medsight_core.imaging.volume import Volume
from medsight_core.measure import Measurements
from medsight_core.naming import is_lesion, same_name
from medsight_core.output.draft import Draft, Reply, Section, Sentence, Structure
from medsight_core.output.draft_template import ReportTemplate, SectionPlan
from medsight_core.output.key_image import Shown
from medsight_core.questioning import resting_text, slices_text
from medsight_core.regions import Answer, VolumeRegion
from medsight_core.terminology import display_colours, normal_words

OVERLAP = 0.25
"""From this share of the smaller one on, that two structures lie over each other is worth a word."""


def make_draft(
    volume: Volume,
    evidence: Evidence,
    template: ReportTemplate,
    *,
    named: Sequence[str] = (),
    answers: Sequence[tuple[str, Answer]] = (),
    warnings: Sequence[str] = (),
) -> Draft:
    """Puts a report together.

    Args:
        volume: The scan.
        evidence: What was looked for and found in it; its slices are those of the scan as it was acquired.
        template: What the report looks like. A structure that it names and nobody looked for is said to be unassessed.
        named: Structures that a person asked for. One that is missing gets a sentence of its own, as those of the
            template do; of all others that are missing there is a list.
        answers: Questions that were asked of the volume.
        warnings: To stand beside the report.
    """
    asked = tuple(dict.fromkeys((*named, *template.names)))
    names = tuple(dict.fromkeys((*asked, *evidence.names)))
    shown: list[Shown] = []
    structures: list[Structure] = []
    found = [one for one in (_finding(evidence, name) for name in names) if one is not None]
    colours = display_colours(one.name for one in found)
    colour_of = {one.name: colour.rgb for one, colour in zip(found, colours, strict=True)}
    for name in names:
        finding = _finding(evidence, name)
        here = None
        if finding is not None and any(one.name == finding.name for one in structures):
            continue  # asked for twice, under two names
        if finding is not None and finding.region is not None and finding.measurements is not None:
            here = Shown(
                number=len(shown) + 1,
                region=finding.region,
                measured=finding.measurements,
                colour=colour_of[finding.name],
            )
            shown.append(here)
        sentence = _about(name if finding is None else finding.name, finding, here, evidence, template)
        structures.append(Structure(name=name if finding is None else finding.name, sentence=sentence, shown=here))
    replies = tuple(_reply(question, answer) for question, answer in answers)
    plans = [*template.sections]
    if replies and not any(plan.kind == "questions" for plan in plans):
        plans.append(SectionPlan(kind="questions", title="Questions"))
    told = [one for one in structures if one.shown is not None or _is_among(one.name, asked)]
    silent = [one.name for one in structures if one not in told]
    sections = [_section(plan, told, silent, replies, volume, evidence, template) for plan in plans]
    modality = volume.modality if volume.modality != "unknown" else "Scan"
    return Draft(
        title=template.title or f"{modality} report",
        volume=volume,
        evidence=evidence,
        sections=tuple(one for one in sections if one.sentences or one.structures or one.replies),
        shown=tuple(shown),
        warnings=tuple(dict.fromkeys((*warnings, *overlaps(shown)))),
    )


def overlaps(shown: Sequence[Shown]) -> Iterator[str]:
    """A sentence for each two structures that claim the same place, of which one must be wrong there.

    Where one is a kind of the other by name ("anterior hippocampus", "hippocampus"), they may.
    """
    for one, other in combinations(shown, 2):
        words = [set(normal_words(each.region.label)) for each in (one, other)]
        if words[0] <= words[1] or words[1] <= words[0] or is_lesion(one.region.label) != is_lesion(other.region.label):
            continue
        less = min((one, other), key=lambda each: each.measured.voxels)
        share = np.count_nonzero(one.region.mask & other.region.mask) / less.measured.voxels
        if share >= OVERLAP:
            names = f"{_spelt(one.region.label)['Name']} ({one.number}) and {other.region.label} ({other.number})"
            yield f"{names} lie over each other: {share:.0%} of the {less.region.label} is both; one of them is wrong."


def _finding(evidence: Evidence, name: str) -> Finding | None:
    """What is known of a name, spelt as it is, else of a name for the same thing."""
    exact = next((finding for finding in evidence.findings if finding.name == name), None)
    return exact or evidence.finding(name)


def _section(
    plan: SectionPlan,
    structures: Sequence[Structure],
    silent: Sequence[str],
    replies: tuple[Reply, ...],
    volume: Volume,
    evidence: Evidence,
    template: ReportTemplate,
) -> Section:
    def section(**content: Any) -> Section:
        return Section(kind=plan.kind, title=plan.title, **content)

    match plan.kind:
        case "technique":
            return section(sentences=tuple(_technique(volume, evidence)))
        case "findings":
            if plan.structures:
                return section(structures=tuple(one for one in structures if _is_among(one.name, plan.structures)))
            text = template.say("missing", names=", ".join(silent))
            missing = Sentence(text=text, basis="slices", slices=evidence.slices)
            return section(structures=tuple(structures), sentences=(missing,) if silent else ())
        case "impression":
            return section(sentences=tuple(_impression(structures, silent, evidence, template)))
        case "questions":
            return section(replies=replies)
        case "text":
            return section(sentences=(Sentence(text=plan.text, basis="template"),) if plan.text else ())


def _is_among(name: str, names: Sequence[str]) -> bool:
    return any(name == other or same_name(name, other) for other in names)


def _technique(volume: Volume, evidence: Evidence) -> Iterator[Sentence]:
    slices, rows, columns = volume.array.shape[:3]
    frame = volume.slice_frame(volume.middle)
    modality = volume.modality if volume.modality != "unknown" else "Image of unknown modality"
    text = f"{modality}, {slices} slice{'s' if slices > 1 else ''} of {columns} × {rows} pixels"
    if frame.physical:
        text += f", pixels of {frame.spacing[1]:.3g} × {frame.spacing[2]:.3g} mm"
        text += f", {frame.spacing[0]:.3g} mm from slice to slice" if slices > 1 else ""
    else:
        text += ", of unknown size"
    yield Sentence(text=f"{text}.", basis="file")
    settings, model = evidence.provenance.settings, evidence.provenance.model
    plane = str(settings.get("plane", "acquired"))
    if plane == "acquired":
        read = "All slices were" if len(evidence.slices) == slices else f"{slices_text(evidence.slices)} alone were"
        text = f"{read[:1].upper()}{read[1:]} looked at by {model}; slices count from 0."
        yield Sentence(text=text, basis="slices", slices=evidence.slices)
        return
    first, end = settings.get("slices", (0, 0))
    text = f"{end - first} {plane} slices were looked at by {model}; slices count from 0, and where no plane is named "
    text += "they are those that were acquired."
    yield Sentence(text=text, basis="slices", slices=tuple(range(first, end)), plane=plane)


def _about(
    name: str, finding: Finding | None, shown: Shown | None, evidence: Evidence, template: ReportTemplate
) -> Sentence:
    """The sentence about one structure."""
    spelt = _spelt(name)
    if finding is None:
        return Sentence(text=template.say("unknown", **spelt), basis="nothing")
    if shown is None:
        read = tuple(finding.presence) or evidence.slices
        return Sentence(text=template.say("absent", **spelt), basis="slices", slices=tuple(sorted(read)))
    words = found_words(shown.region, shown.measured, evidence.modality)
    return Sentence(
        text=template.say("present", **spelt, **words),
        basis="slices",
        slices=covered(shown.region),
        number=shown.number,
    )


def _impression(
    structures: Sequence[Structure], silent: Sequence[str], evidence: Evidence, template: ReportTemplate
) -> Iterator[Sentence]:
    looked = [one for one in structures if one.sentence.basis == "slices"]
    abnormal = [one for one in looked if is_lesion(one.name)]
    normal = [one for one in looked if one not in abnormal]
    missing = [one.name for one in normal if one.shown is None]
    unseen = [one.name for one in abnormal if one.shown is None]
    for one in abnormal:
        if one.shown is not None:
            words = found_words(one.shown.region, one.shown.measured, evidence.modality)
            text = template.say("abnormal", **_spelt(one.name), **words)
            yield Sentence(text=text, basis="slices", slices=one.sentence.slices, number=one.shown.number)
    if any(one.shown is not None for one in abnormal):
        missing += unseen
    elif unseen or any(map(is_lesion, silent)):
        names = ", ".join([*unseen, *filter(is_lesion, silent)])
        yield Sentence(text=template.say("no_abnormal", names=names), basis="slices", slices=evidence.slices)
    else:
        yield Sentence(text=template.say("no_abnormal_asked"), basis="nothing")
    found = [one for one in normal if one.shown is not None]
    if found:
        slices = sorted({k for one in found for k in one.sentence.slices})
        text = template.say("structures", names=", ".join(one.name for one in found))
        yield Sentence(text=text, basis="slices", slices=tuple(slices))
    if missing:
        text = template.say("missing", names=", ".join(missing))
        yield Sentence(text=text, basis="slices", slices=evidence.slices)
    yield Sentence(text=template.say("rest"), basis="nothing")


def _spelt(name: str) -> dict[str, str]:
    return {"name": name, "Name": name[:1].upper() + name[1:]}


def _reply(question: str, answer: Answer) -> Reply:
    settings = answer.provenance.settings
    if settings.get("answered_from") == "evidence":
        slices, plane = settings.get("slices", ()), "acquired"
    else:  # in words of the model, which read these
        slices, plane = settings.get("slices_read", ()), str(settings.get("plane", "acquired"))
    rests = tuple(int(k) for k in slices)
    sentence = Sentence(
        text=answer.text.removesuffix(resting_text(rests)),  # which the sentence says itself
        basis="slices" if rests else "nothing",
        slices=rests,
        plane="" if plane == "acquired" else plane,
    )
    return Reply(question=question, answer=sentence, notes=answer.warnings)


def covered(region: VolumeRegion) -> tuple[int, ...]:
    """The slices with a part of a region."""
    return tuple(int(k) for k in np.flatnonzero(region.mask.any(axis=(1, 2))))


def found_words(region: VolumeRegion, measured: Measurements, modality: str) -> dict[str, str]:
    """What was measured, in words, by the names of a template's placeholders."""
    longest, across, unit = measured.diameter, measured.perpendicular, measured.unit
    deep = region.mask.shape[0] > 1  # an image by itself has no volume
    volume = (region.volume_text if measured.physical else f"{measured.voxels:,} voxels") if deep else ""
    extent = f"{longest.length_mm:.1f} × {across.length_mm:.1f} {unit}"
    values = values_text(measured, modality)
    pieces = f"{measured.components} separate pieces" if measured.components > 1 else ""
    cut = "cut off by the end of the scan" if is_cut_off(region, measured) else ""
    diameters = f"longest diameter {longest.length_mm:.1f} {unit} on slice {longest.slice_index}"
    diameters += f", {across.length_mm:.1f} {unit} across"
    parts = (f"volume {volume}" if volume else "", diameters, f"mean {values}" if values else "", pieces, cut)
    return {
        "slices": slices_text(covered(region)),
        "certainty": region.certainty,
        "score": f"{region.score:.2f}",
        "size": "; ".join(part for part in parts if part),
        "extent": extent,
        "volume": volume or "not measured",
        "diameter": f"{longest.length_mm:.1f} {unit}",
        "perpendicular": f"{across.length_mm:.1f} {unit}",
        "values": values or "not measured",
        "pieces": pieces or "one piece",
    }


def is_cut_off(region: VolumeRegion, measured: Measurements) -> bool:
    """Whether a region reaches the first or the last slice, beyond which there may be more of it."""
    last = region.mask.shape[0] - 1
    return last > 0 and (measured.slices[0] == 0 or measured.slices[1] == last)


def values_text(measured: Measurements, modality: str) -> str:
    """Mean and standard deviation; empty where there are no values."""
    if measured.mean is None:
        return ""
    spread = "" if measured.sd is None else f" ± {measured.sd:.0f}"
    return f"{measured.mean:.0f}{spread}{' HU' if modality == 'CT' else ''}"
