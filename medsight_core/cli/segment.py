"""`medsight segment`: from a path and something drawn or said to masks, on a slice or throughout a volume.

Everything that can be wrong with the input is found before the model is loaded. What is drawn goes to an interactive
session, words go to the language model; what words found on a slice can be followed through the volume as well.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import typer
from numpy.typing import NDArray

from medsight_core import events
from medsight_core.backend import SegmentRequest, Stroke
from medsight_core.cli.ask import is_plan, timed
from medsight_core.cli.backends import Chosen, bring, open_backend
from medsight_core.cli.group import say
from medsight_core.cli.prompts import Drawn, Pixel, parse_pixels, parse_slices, place_prompt
from medsight_core.errors import InputError
from medsight_core.regions import Answer, Prompt, Question, Region, VolumeRegion

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

NIFTI_ENDING: Final = ".nii.gz"
DRAWN_IN_WORDS: Final = "Segment this."
"""What stands for the question where nothing was said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strokes:
    """What was drawn, as it was typed.

    Attributes:
        points, negatives, boxes, scribbles, lassos: One text per mark.
        mask: A file with a mask on the grid of the slice or of the scan.
    """

    points: Sequence[str] = ()
    negatives: Sequence[str] = ()
    boxes: Sequence[str] = ()
    scribbles: Sequence[str] = ()
    lassos: Sequence[str] = ()
    mask: Path | None = None

    def parse(self) -> list[tuple[Drawn, tuple[Pixel, ...], bool]]:
        """Kind, pixels, and whether it says "here", in the order in which they are applied: corrections come last.

        Raises:
            InputError: One has another form.
        """
        order: tuple[tuple[Drawn, str, Sequence[str]], ...] = (
            ("lasso", "lasso", self.lassos),
            ("box", "box", self.boxes),
            ("scribble", "scribble", self.scribbles),
            ("point", "point", self.points),
            ("point", "negative", self.negatives),
        )
        return [
            (kind, parse_pixels(kind, text, option=f"--{option}"), option != "negative")
            for kind, option, given in order
            for text in given
        ]


def run_segment(
    *,
    scan: Path,
    said: str | None,
    strokes: Strokes,
    slice_index: int | None,
    series: str | None,
    resample: bool,
    volume: bool,
    slices: str | None,
    chosen: Chosen,
    out: Path,
    nifti: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Runs the command; see `medsight_core.cli.segment` for the arguments."""
    drawn = strokes.parse()
    _check_request(said, drawn, strokes, volume=volume, slices=slices)
    extent = None if slices is None else parse_slices(slices)
    for path in (scan, *([strokes.mask] if strokes.mask else [])):
        if not os.path.lexists(path):
            raise InputError("missing_path", f"There is no file or folder {path}.", "Check the path.")
    chosen.check()
    from medsight_core.output.folder import check_folder

    label_map = out if out.name.lower().endswith(NIFTI_ENDING) else None
    folder = out if label_map is None else out.with_name(out.name[: -len(NIFTI_ENDING)])
    check_folder(folder)
    from medsight_core.cli.console import status

    timings: dict[str, float] = {}
    hush = quiet or as_json
    with status("Reading the scan", quiet=hush), timed(timings, "read_scan"):
        from medsight_core.imaging.volume import open_volume

        read = open_volume(scan, series=series, resample=resample)
        k = _default_slice(read, extent) if slice_index is None else slice_index
        question = Question(text=_question(said), volume=read, slice_index=k)
        frame = read.slice_frame(k)
        prompts = [place_prompt(kind, pixels, frame, positive=positive) for kind, pixels, positive in drawn]
        if strokes.mask is not None:
            prompts.insert(0, Prompt(kind="mask", mask=_read_mask(strokes.mask, read, k)))
        question = replace(question, prompts=tuple(prompts))
        if volume:
            from medsight_core.inference.propagation import check_range

            check_range(extent, [k] if prompts else [], read)
        request = SegmentRequest(
            volume=read,
            slice_index=k,
            strokes=tuple(Stroke(slice_index=k, prompt=prompt) for prompt in prompts),
            text=said or "",
            whole=volume,
            slices=extent,
        )
    with status("Loading the model", quiet=hush), timed(timings, "load_model"):
        backend = open_backend(chosen)
    bring(backend, read, chosen, quiet=hush)
    with status("Segmenting", quiet=hush) as tell, timed(timings, "segment"):
        announce = (lambda sentence: None) if hush else say
        answer = events.fold(_told(backend.segment(request), tell, announce))
    provenance = replace(answer.provenance, timings={**timings, **answer.provenance.timings})
    warnings = tuple(dict.fromkeys((*read.warnings, *answer.warnings)))
    answer = replace(answer, provenance=provenance, warnings=warnings)
    with timed(timings, "write"):
        from medsight_core.output.segmented import best_slice, write_segmented

        if not prompts and slice_index is None:
            question = replace(question, slice_index=best_slice(answer, k))
        written = write_segmented(question, answer, folder, nifti=nifti or label_map is not None)
        made = _move_label_map(written.folder, written.files, label_map)
    if as_json:
        typer.echo(json.dumps({**written.content, "out": str(folder)}, indent=2, ensure_ascii=False))
        return
    _epilogue(answer, written.content["warnings"], quiet=quiet)
    if not quiet:
        names = {"read_scan": "scan", "load_model": "model", "segment": "masks", "write": "files"}
        spent = ", ".join(f"{names[name]} {seconds:.1f} s" for name, seconds in timings.items())
        say(f"{answer.provenance.model} · {spent} · Research use only.")
        sys.stdout.write(f"Written to {folder}/: {', '.join(made)}\n")
        if label_map is not None and label_map.exists():
            sys.stdout.write(f"Written: {label_map}\n")


def _check_request(
    said: str | None,
    drawn: Sequence[tuple[Drawn, tuple[Pixel, ...], bool]],
    strokes: Strokes,
    *,
    volume: bool,
    slices: str | None,
) -> None:
    """Makes sure that there is something to be segmented."""
    if said is not None and not said.strip():
        raise InputError("empty_question", "The words of --prompt are empty.", 'Say what, such as "left kidney".')
    if said is None and not drawn and strokes.mask is None:
        raise InputError(
            "nothing_asked", "Nothing says what to segment.",
            'Point with --point X,Y (or --box, --scribble, --lasso, --mask), or say it with --prompt "left kidney".',
        )  # fmt: skip
    if said is None and strokes.mask is None and not any(positive for _, _, positive in drawn):
        raise InputError(
            "nothing_to_remove", "--negative alone says only what is not meant.", "Add a --point on the structure."
        )
    if slices is not None and not volume:
        raise InputError(
            "slices_without_volume", "--slices bounds a volume, and only one slice was asked for.", "Add --volume."
        )
    if len(strokes.lassos) + (strokes.mask is not None) > 1:
        raise InputError(
            "bad_prompt", "Only one outline or mask can say what is meant.", "Correct it with --point and --negative."
        )


def _question(said: str | None) -> str:
    """Words for the language model: a whole sentence as it is, a mere name within one."""
    if said is None:
        return DRAWN_IN_WORDS
    words = said.strip()
    return words if words[-1] in ".?!" else f"Segment the {words.removeprefix('the ')} in this image."


def _default_slice(volume: Volume, slices: range | None) -> int:
    return volume.middle if not slices or slices[0] <= volume.middle <= slices[-1] else slices[len(slices) // 2]


def _read_mask(path: Path, volume: Volume, k: int) -> NDArray[np.bool_]:
    """What a file marks on slice ``k``: a picture of the slice, or a label map of the scan."""
    from medsight_core.imaging.volume import open_volume

    marks = open_volume(path)
    inside: NDArray[np.bool_] = np.asarray(marks.array > 0)
    if marks.is_colour:
        inside = np.asarray(inside.any(axis=3))
    wanted = volume.array.shape[1:3]
    if inside.shape[1:] != wanted or len(inside) not in (1, volume.n_slices):
        raise InputError(
            "bad_prompt",
            f"The mask has shape {' x '.join(map(str, inside.shape))}, the scan {volume.n_slices} x {wanted[0]} x "
            f"{wanted[1]}.",
            "Give a mask of the slice, or a label map on the grid of the scan.",
        )
    if len(inside) > 1 and not marks.require_frame().is_close(volume.require_frame()):
        raise InputError("other_grid", "The mask lies elsewhere in the patient than the scan.", "Resample it first.")
    mask: NDArray[np.bool_] = inside[0] if len(inside) == 1 else inside[k]
    if not mask.any():
        raise InputError("bad_prompt", f"The mask marks nothing on slice {k}.", "Choose its slice with --slice.")
    return mask


def _told(
    stream: Iterator[events.Event], tell: Callable[[str], None], announce: Callable[[str], None]
) -> Iterator[events.Event]:
    """Passes events on and tells how far the work is; what a volume will cost is announced beforehand."""
    for event in stream:
        if isinstance(event, events.Progress):
            if is_plan(event):
                announce(event.what)
            else:
                tell(f"{event.what} {event.done}/{event.total}" if event.total else event.what)
        yield event


def _move_label_map(folder: Path, files: Sequence[str], wanted: Path | None) -> list[str]:
    """Brings the NIfTI label map where ``-o NAME.nii.gz`` wants it; returns what stays in the folder."""
    from medsight_core.output.folder import NIFTI_LABELS, NIFTI_SEGMENTATION

    if wanted is None or NIFTI_SEGMENTATION not in files:
        return list(files)
    os.replace(folder / NIFTI_SEGMENTATION, wanted)
    os.replace(folder / NIFTI_LABELS, wanted.with_name(wanted.name[: -len(NIFTI_ENDING)] + ".json"))
    return [name for name in files if name not in (NIFTI_SEGMENTATION, NIFTI_LABELS)]


def _epilogue(answer: Answer, warnings: Sequence[str], *, quiet: bool) -> None:
    """The table of what was found, and what should be known beside it."""
    from rich.console import Console

    from medsight_core.cli.console import region_table

    found: list[Region | VolumeRegion] = [*answer.regions, *answer.volume_regions]
    if found:
        Console(highlight=False).print(region_table(found))
    else:
        sys.stdout.write("No region was found, so there is no mask.\n")
    for sentence in () if quiet else warnings:
        say(f"warning: {sentence}")
