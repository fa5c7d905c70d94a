"""The page of an answer: one self-contained HTML file in which words and masks point at each other.

No network, no other files: pictures are data URIs, and a content security policy lets nothing else in. Everything that
comes from a scan, a question or a model is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from medsight_core.output.overlay import (
    RESEARCH_USE,
    Colour,
    badge_place,
    canvas_size,
    region_colours,
    region_layer,
    slice_picture,
)
from medsight_core.output.sheet import Sheet, make_sheet
from medsight_core.regions import Answer, Question, Region, VolumeRegion


def report_page(question: Question, answer: Answer) -> str:
    """The whole page as text, to be saved as UTF-8."""
    folder = files("medsight_core.output")
    script = (folder / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    regions: tuple[Region | VolumeRegion, ...] = (*answer.regions, *answer.volume_regions)
    colours = region_colours(regions)
    scan = _scan_words(question)
    if answer.volume_regions:
        sheet = make_sheet(question, answer.volume_regions)
        (width, height), picture = sheet.size, sheet.scan()
        layers = _sheet_layers(sheet, colours)
    else:
        (width, height), picture = canvas_size(question), slice_picture(question)
        layers = _layers(question, answer.regions, colours)
    return Template((folder / "report.html").read_text(encoding="utf-8")).substitute(
        script=script,
        script_hash=f"sha256-{digest}",
        title=escape(f"{question.text.strip()[:80]} · MedSIGHT"),
        notice=RESEARCH_USE,
        subtitle=escape(scan),
        width=width,
        height=height,
        picture=data_uri(picture),
        picture_words=escape(f"The scan: {scan}"),
        caption=escape(scan),
        layers="\n".join(layers),
        question=escape(question.text.strip()),
        answer="".join(_words(answer, colours)),
        warnings=_warnings(answer.warnings),
        regions=_table(regions, colours),
        provenance="".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _provenance(question, answer)
        ),
    )


def data_uri(picture: Image.Image, *, photograph: bool = False) -> str:
    """A picture as text for a page: lossless, but for one in colour without transparency, or where it is asked for."""
    memory = io.BytesIO()
    channels = np.asarray(picture)[..., :3]
    colour = picture.mode == "RGB" and (photograph or bool((channels != channels[..., :1]).any()))
    if colour:  # a photograph: lossless it would weigh megabytes and look the same
        picture.save(memory, "JPEG", quality=90)
    else:
        (picture.convert("L") if picture.mode == "RGB" else picture).save(memory, "PNG", optimize=False)
    return f"data:image/{'jpeg' if colour else 'png'};base64,{base64.b64encode(memory.getvalue()).decode()}"


def _channels(colour: Colour) -> str:
    return "{} {} {}".format(*colour)


def _style(colour: Colour) -> str:
    return f'style="--c: {_channels(colour)}"'


def _layers(question: Question, regions: Sequence[Region], colours: Sequence[Colour]) -> Iterator[str]:
    size = canvas_size(question)
    marks: list[str] = []
    for number, (region, colour) in enumerate(zip(regions, colours, strict=True), start=1):
        place = badge_place(region.mask, size)
        if place is None or region.slice_index != question.slice_index:
            continue
        yield (
            f'<img class="layer" data-region="{number}" data-area="{region.area_pixels}" '
            f'src="{data_uri(region_layer(region.mask, colour, size))}" alt="Mask {number}: {escape(region.label)}">'
        )
        left, top = place[0] / size[0], place[1] / size[1]
        marks.append(
            f'<span class="mark" data-region="{number}" aria-hidden="true" '
            f'style="--c: {_channels(colour)}; left: {left:.2%}; top: {top:.2%}">{number}</span>'
        )
    yield from marks


def _sheet_layers(sheet: Sheet, colours: Sequence[Colour]) -> Iterator[str]:
    marks: list[str] = []
    for number, (region, colour) in enumerate(zip(sheet.regions, colours, strict=True), start=1):
        yield (
            f'<img class="layer" data-region="{number}" data-area="{region.voxels}" '
            f'src="{data_uri(sheet.layer(number, colour))}" alt="Mask {number}: {escape(region.label)}">'
        )
        for x, y in sheet.badges(number):
            marks.append(
                f'<span class="mark" data-region="{number}" aria-hidden="true" style="--c: {_channels(colour)}; '
                f'left: {x / sheet.size[0]:.2%}; top: {y / sheet.size[1]:.2%}">{number}</span>'
            )
    yield from marks


def _words(answer: Answer, colours: Sequence[Colour]) -> Iterator[str]:
    """The text with a button around every stretch that one and the same set of regions grounds."""
    regions: tuple[Region | VolumeRegion, ...] = (*answer.regions, *answer.volume_regions)
    spans = [region.span for region in regions]
    cuts = sorted({0, len(answer.text), *(s.start for s in spans), *(s.end for s in spans)})
    for start, end in pairwise(cuts):
        here = [n for n, span in enumerate(spans, start=1) if span.start <= start and end <= span.end]
        text = escape(answer.text[start:end])
        if not here:
            yield text
            continue
        numbers = " ".join(map(str, here))
        yield (
            f'<button type="button" class="word" data-regions="{numbers}" aria-pressed="false" '
            f"{_style(colours[here[0] - 1])}>{text}<sup>{', '.join(map(str, here))}</sup></button>"
        )


def _table(regions: Sequence[Region | VolumeRegion], colours: Sequence[Colour]) -> str:
    if not regions:
        return '<p class="none">No region was found, so there is no mask.</p>'
    rows = "".join(
        f"<tr {_style(colour)}><td>{number}</td>"
        f'<td><button type="button" class="name" data-regions="{number}" aria-pressed="false">'
        f"{escape(region.label or region.code)}</button></td>"
        f"<td><code>{escape(region.code)}</code></td>"
        f'<td class="score"><b>{region.certainty}</b> {region.score:.2f}'
        f'<span class="meter"><i style="width: {region.score:.0%}"></i></span></td>'
        f"<td>{region.size_text}</td></tr>"
        for number, (region, colour) in enumerate(zip(regions, colours, strict=True), start=1)
    )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("#", "Label", "Code", "Score", "Area" if isinstance(regions[0], Region) else "Volume")
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in warnings)
    return f'<section class="card"><h2>Please note</h2><ul class="warnings">{items}</ul></section>'


def _scan_words(question: Question) -> str:
    volume = question.volume
    _, rows, columns = volume.slice_frame(question.slice_index).shape
    modality = volume.modality if volume.modality != "unknown" else "Image of unknown modality"
    place = f", slice {question.slice_index} of 0–{volume.n_slices - 1}" if volume.n_slices > 1 else ""
    return f"{modality}, {columns} × {rows} pixels{place}"


def _provenance(question: Question, answer: Answer) -> Iterator[tuple[str, str]]:
    origin = answer.provenance
    yield "Model", origin.model
    yield "Checkpoint digest", origin.digest
    frame = question.volume.slice_frame(question.slice_index)
    spacing = f"{frame.spacing[1]:.4g} × {frame.spacing[2]:.4g} mm (row × column)" if frame.physical else "not known"
    yield "Pixel spacing", spacing
    for name, value in origin.settings.items():
        yield name.replace("_", " ").capitalize(), value_text(value)
    if origin.timings:
        yield "Time", ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in origin.timings.items())
    yield "As generated", answer.raw


def value_text(value: Any) -> str:
    """A setting as a person reads it."""
    if isinstance(value, list | tuple):
        return " ".join(map(value_text, value)) or "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
