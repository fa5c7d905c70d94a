"""`medsight info`: what a scan is and how it will be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from medsight_core.cli.group import printable
from medsight_core.errors import InputError

if TYPE_CHECKING:
    from medsight_core.geometry import Frame
    from medsight_core.imaging.volume import Volume

_KINDS = {"dicom": "DICOM", "nifti": "NIfTI", "nrrd": "NRRD", "image": "photograph or exported picture"}
_AXES = (("right", "left"), ("front", "back"), ("feet", "head"))
"""Where LPS x, y and z come from and go to."""


def run_info(*, scan: Path, series: str | None, resample: bool, as_json: bool) -> None:
    """Runs the command.

    Args:
        scan: File or folder.
        series: Which of several series.
        resample: As for `medsight_core.imaging.volume.open_volume`.
        as_json: Print JSON and nothing else.

    Raises:
        InputError: The scan cannot be read; with several series to choose from, the sentence lists them.
    """
    if not os.path.lexists(scan):
        raise InputError("missing_path", f"There is no file or folder {scan}.", "Check the path.")
    from medsight_core.imaging.volume import open_volume

    facts = describe(open_volume(scan, series=series, resample=resample))
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(facts)


def describe(volume: Volume) -> dict[str, Any]:
    """What `medsight info` tells, ready for ``json.dumps``."""
    from medsight_core.imaging.burned_in import burned_in_risk

    source, frame = volume.source, volume.slice_frame(volume.middle)
    return {
        "kind": source.kind,
        "modality": volume.modality,
        "dicom_modality": source.dicom_modality,
        "description": source.description or None,
        "series_uid": source.series_uid,
        "files": len(source.paths),
        "slices": volume.n_slices,
        "default_slice": volume.middle,
        "rows": frame.shape[1],
        "columns": frame.shape[2],
        "colour": volume.is_colour,
        "dtype": str(volume.array.dtype),
        "spacing_mm": frame.spacing.round(6).tolist() if frame.physical else None,
        "origin_lps_mm": frame.origin.round(4).tolist() if frame.physical else None,
        "orientation": orientation(frame) if volume.has_place else None,
        "window": _window(volume),
        "photometric": source.photometric,
        "regular": volume.frame is not None,
        "problem": _problem(volume),
        "burned_in": burned_in_risk(volume),
        "warnings": list(volume.warnings),
    }


def _window(volume: Volume) -> dict[str, Any]:
    """What turns the values of the slice shown first into grey, and where that comes from."""
    from medsight_core.imaging.windowing import grey_scale

    if volume.is_colour:
        return {"centre": None, "width": None, "from": "colours as they are"}
    scale = grey_scale(volume, volume.middle)
    centre, width = scale.window or (None, None)
    return {"centre": centre, "width": width, "from": scale.origin}


def _problem(volume: Volume) -> dict[str, str] | None:
    problem = volume.problem
    if problem is None:
        return None
    return {"code": problem.code, "sentence": problem.sentence, "remedy": problem.remedy}


def orientation(frame: Frame) -> str:
    """In which directions of the body columns, rows and slices go, such as "columns to the left, rows to the back"."""
    said = []
    for name, axis in (("columns", 2), ("rows", 1), ("slices", 0)):
        vector = frame.direction[:, axis]
        main = int(np.argmax(np.abs(vector)))
        said.append(f"{name} to the {_AXES[main][int(vector[main] > 0)]}")
    oblique = bool((np.abs(frame.direction).max(axis=0) < 0.999).any())
    return ", ".join(said) + (" (oblique)" if oblique else "")


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(facts):
        table.add_row(name, Text(printable(value)))
    Console(highlight=False).print(table)


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    pixels = f"{facts['columns']} × {facts['rows']} pixels" + (", colour" if facts["colour"] else f", {facts['dtype']}")
    slices = facts["slices"]
    spacing = facts["spacing_mm"]
    lines = [
        ("Source", f"{_KINDS[facts['kind']]}, {facts['files']} file{'s' if facts['files'] > 1 else ''}"),
        ("Modality", facts["modality"] + (f" (DICOM {facts['dicom_modality']})" if facts["dicom_modality"] else "")),
        ("Image", pixels),
        ("Slices", "1" if slices == 1 else f"0 to {slices - 1}; {facts['default_slice']} where --slice is not given"),
    ]
    if spacing is None:
        lines.append(("Spacing", "not known: areas are given in pixels"))
    else:
        between = f"; {spacing[0]:.4g} mm between slices" if slices > 1 and facts["regular"] else ""
        lines.append(("Spacing", f"{spacing[1]:.4g} mm between rows, {spacing[2]:.4g} mm between columns{between}"))
    if facts["orientation"]:
        lines.append(("Orientation", facts["orientation"]))
    window = facts["window"]
    grey = "" if window["centre"] is None else f"centre {window['centre']:g}, width {window['width']:g}, from "
    lines.append(("Display", grey + window["from"]))
    if facts["description"]:
        lines.append(("Description", f"“{facts['description']}”"))
    if facts["series_uid"]:
        lines.append(("Series", facts["series_uid"]))
    if facts["problem"]:
        lines.append(("Problem", f"{facts['problem']['sentence']} {facts['problem']['remedy']}".strip()))
    if facts["burned_in"]:
        lines.append(("Before sending", facts["burned_in"]))
    problem = facts["problem"]["sentence"] if facts["problem"] else None
    lines.extend(("Please note", sentence) for sentence in facts["warnings"] if sentence != problem)
    return lines
