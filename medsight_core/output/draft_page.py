"""A report draft as one self-contained page and as Markdown.

As on the page of an answer, nothing is loaded from anywhere and everything that comes from a scan, a template, a
question or a model is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from medsight_core.output.draft import Draft, Section, Sentence, Structure
from medsight_core.output.drafting import covered, is_cut_off, values_text
from medsight_core.output.folder import KEY_IMAGES, slug
from medsight_core.output.key_image import KeyImage, Shown, key_image
from medsight_core.output.overlay import RESEARCH_USE
from medsight_core.output.report import data_uri, value_text
from medsight_core.questioning import slices_text

Images = Mapping[int, KeyImage]
"""A key image per region, by its number."""


def key_images(draft: Draft) -> dict[int, KeyImage]:
    """The key image of every region of a draft, by its number."""
    return {one.number: key_image(draft.volume, (one,), one.measured.diameter.slice_index) for one in draft.shown}


def image_name(shown: Shown) -> str:
    """The file of a key image, as the Markdown refers to it."""
    return f"{KEY_IMAGES}/{shown.number:02d}_{slug(shown.region.label)}.jpg"


def draft_page(draft: Draft, images: Images) -> str:
    """The whole page as text, to be saved as UTF-8."""
    folder = files("medsight_core.output")
    script = (folder / "draft.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    origin = draft.evidence.provenance
    return Template((folder / "draft.html").read_text(encoding="utf-8")).substitute(
        script=script,
        script_hash=f"sha256-{digest}",
        title=escape(draft.title),
        banner=escape(draft.banner),
        subtitle=escape(f"MedSIGHT · {origin.model}"),
        warnings=_warnings(draft.warnings),
        sections="\n".join(_section(section, draft, images) for section in draft.sections),
        provenance="".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _provenance(draft)),
        notice=RESEARCH_USE,
    )


def _section(section: Section, draft: Draft, images: Images) -> str:
    heading = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    match section.kind:
        case "findings":
            found = [one for one in section.structures if one.shown is not None]
            rest = [one for one in section.structures if one.shown is None]
            absent = "".join(f"<li>{_sentence(one.sentence, draft)}</li>" for one in rest)
            body = _table([one.shown for one in found if one.shown is not None], draft)
            body += "".join(_finding(one, draft, images) for one in found)
            body += f'<ul class="absent">{absent}</ul>' if absent else ""
            body += "".join(f"<p>{_sentence(sentence, draft)}</p>" for sentence in section.sentences)
        case "impression":
            items = "".join(f"<li>{_sentence(sentence, draft)}</li>" for sentence in section.sentences)
            body = f'<div class="box"><ol>{items}</ol></div>'
        case "questions":
            body = "".join(
                f'<div class="reply"><b>{escape(one.question)}</b>{_sentence(one.answer, draft)}'
                + "".join(f"<small>{escape(note)}</small>" for note in one.notes)
                + "</div>"
                for one in section.replies
            )
        case _:
            body = "".join(f"<p>{_sentence(sentence, draft)}</p>" for sentence in section.sentences)
    return f'<section class="{section.kind}">{heading}{body}</section>'


def _sentence(sentence: Sentence, draft: Draft) -> str:
    number = ""
    if sentence.number is not None:
        number = f"{_number(draft.shown[sentence.number - 1], link=True)} "
    kind = "basis" if sentence.basis in ("slices", "file") else "basis none"
    return f'{number}{escape(sentence.text)} <span class="{kind}">[{escape(sentence.note)}]</span>'


def _number(shown: Shown, *, link: bool = False) -> str:
    colour = 'style="--c: {} {} {}"'.format(*shown.colour)
    if link:
        return f'<a class="num" href="#region-{shown.number}" {colour}>{shown.number}</a>'
    return f'<span class="num" {colour}>{shown.number}</span>'


def _table(shown: Sequence[Shown], draft: Draft) -> str:
    """All measurements of a section at a glance."""
    if not shown:
        return ""
    modality = draft.evidence.modality
    heads = ["", "Structure", *_columns(draft)]
    head = "".join(f"<th{' class=r' if place > 1 else ''}>{name}</th>" for place, name in enumerate(heads))
    rows = "".join(
        f"<tr><td>{_number(one, link=True)}</td><td>{escape(one.region.label)}</td>"
        + "".join(f'<td class="r">{escape(value)}</td>' for value in _cells(one, modality, draft))
        + "</tr>"
        for one in shown
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _columns(draft: Draft) -> list[str]:
    length = "mm" if draft.volume.slice_frame(draft.volume.middle).physical else "pixels"
    unit = " (HU)" if draft.evidence.modality == "CT" else ""
    return ["Volume", f"Longest × across ({length})", f"Mean ± SD{unit}", "Slices", "Score"]


def _cells(shown: Shown, modality: str, draft: Draft) -> list[str]:
    measured = shown.measured
    first, last = measured.slices
    return [
        shown.region.volume_text if draft.volume.n_slices > 1 else "–",
        f"{measured.diameter.length_mm:.1f} × {measured.perpendicular.length_mm:.1f}",
        values_text(measured, modality).removesuffix(" HU") or "–",
        str(first) if first == last else f"{first}–{last}",
        f"{shown.region.score:.2f}",
    ]


def _finding(structure: Structure, draft: Draft, images: Images) -> str:
    shown = structure.shown
    assert shown is not None
    label = escape(shown.region.label)
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _measurements(shown, draft)
    )
    image = images[shown.number]
    caption = f"{shown.number} · {shown.region.label} · slice {image.slice_index}"
    width, height = image.scan.size
    heading = f"<h3>{_number(shown)}{label[:1].upper()}{label[1:]}</h3>"
    return (
        f'<article class="finding" id="region-{shown.number}"><div>{heading}'
        f"<p>{_sentence(_unnumbered(structure.sentence), draft)}</p><table>{rows}</table></div>"
        f'<div><button type="button" class="key" data-ratio="{width / height:.4f}" title="Enlarge">'
        f'<span class="stage"><img src="{data_uri(image.scan, photograph=True)}" alt="Slice {image.slice_index}">'
        f'<img class="marks" src="{data_uri(image.marks)}" alt="Mask and diameters of {label}"></span>'
        f"<small>{escape(caption)}</small></button></div></article>"
    )


def _unnumbered(sentence: Sentence) -> Sentence:
    return Sentence(text=sentence.text, basis=sentence.basis, slices=sentence.slices)


def _measurements(shown: Shown, draft: Draft) -> Iterator[tuple[str, str]]:
    measured, region = shown.measured, shown.region
    if draft.volume.n_slices > 1:
        yield "Volume", region.volume_text + (", cut off" if is_cut_off(region, measured) else "")
    longest, across = measured.diameter, measured.perpendicular
    yield "Longest diameter", f"{longest.length_mm:.1f} {measured.unit}, slice {longest.slice_index}"
    yield "At right angles to it", f"{across.length_mm:.1f} {measured.unit}"
    values = values_text(measured, draft.evidence.modality)
    if values:
        yield "Mean ± SD", values
        yield "Range", f"{measured.minimum:.0f} to {measured.maximum:.0f}"
    yield "Lies on", slices_text(covered(region))
    if region.key_slices:
        yield "Rests on", slices_text(region.key_slices)
    if measured.components > 1:
        yield "Separate pieces", str(measured.components)
    yield "Score", f"{region.score:.2f}, {region.certainty}"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in warnings)
    return f'<section><h2>Please note</h2><ul class="warnings">{items}</ul></section>'


def _provenance(draft: Draft) -> Iterator[tuple[str, str]]:
    origin = draft.evidence.provenance
    yield "Model", origin.model
    yield "Checkpoint digest", origin.digest
    for name, value in origin.settings.items():
        yield name.replace("_", " ").capitalize(), value_text(value)
    if origin.timings:
        yield "Time", ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in origin.timings.items())


def draft_markdown(draft: Draft) -> str:
    """The same in Markdown; pictures are files beside it."""
    lines = [f"# {_plain(draft.title)}", "", f"**{_plain(draft.banner)}**", ""]
    if draft.warnings:
        lines += ["## Please note", "", *(f"- {_plain(sentence)}" for sentence in draft.warnings), ""]
    for section in draft.sections:
        lines += [f"## {_plain(section.title)}", ""] if section.title else []
        lines += [*_section_lines(section, draft), ""]
    lines += ["---", f"{RESEARCH_USE} Every sentence says what it rests on.", ""]
    return "\n".join(lines)


def _section_lines(section: Section, draft: Draft) -> Iterator[str]:
    match section.kind:
        case "findings":
            yield from _markdown_table([one.shown for one in section.structures if one.shown is not None], draft)
            for one in section.structures:
                if one.shown is None:
                    yield f"- {_markdown_sentence(one.sentence)}"
                else:
                    yield from ("", _markdown_sentence(one.sentence), "")
                    words = f"{_plain(one.name)}, slice {one.shown.measured.diameter.slice_index}"
                    yield from (f"![{words}]({image_name(one.shown)})", "")
            yield from (f"- {_markdown_sentence(sentence)}" for sentence in section.sentences)
        case "impression":
            yield from (f"{n}. {_markdown_sentence(one)}" for n, one in enumerate(section.sentences, start=1))
        case "questions":
            for reply in section.replies:
                yield from (f"**{_plain(reply.question)}**", "", _markdown_sentence(reply.answer), "")
                yield from (f"- {_plain(note)}" for note in reply.notes)
                yield ""
        case _:
            for sentence in section.sentences:
                yield from (_markdown_sentence(sentence), "")


def _markdown_sentence(sentence: Sentence) -> str:
    number = "" if sentence.number is None else f"**({sentence.number})** "
    return f"{number}{_plain(sentence.text)} *\\[{_plain(sentence.note)}\\]*"


def _markdown_table(shown: Sequence[Shown], draft: Draft) -> Iterator[str]:
    if not shown:
        return
    yield "| # | Structure | " + " | ".join(_columns(draft)) + " |"
    yield "|--:|---|" + "--:|" * len(_columns(draft))
    for one in shown:
        cells = " | ".join(_cells(one, draft.evidence.modality, draft))
        yield f"| {one.number} | {_plain(one.region.label)} | {cells} |"
    yield ""


def _plain(text: str) -> str:
    """Text as one line in which no mark means anything to Markdown, or to the HTML that it becomes."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&$])", r"\\\1", " ".join(text.split()))
