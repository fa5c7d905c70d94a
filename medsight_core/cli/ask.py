"""`medsight ask`: from a path and a question to a folder of results.

Everything that can be wrong with the input is found before the model is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medsight_core import events
from medsight_core.backend import Whole
from medsight_core.cli.backends import Chosen, bring, open_backend
from medsight_core.cli.group import say
from medsight_core.cli.prompts import Drawn, parse_pixels, parse_slices, place_prompts
from medsight_core.errors import InputError
from medsight_core.regions import Answer, Question, Region, VolumeRegion

if TYPE_CHECKING:
    from medsight_core.cli.console import AnswerView
    from medsight_core.imaging.volume import Volume
    from medsight_core.output.writer import Written


def whole_volume(
    *, volume: bool, plane: str, slices: str | None, exact: bool, shown: int | None = None
) -> Whole | None:
    """What the options say about a whole volume; None where a slice is asked about.

    An option that makes sense for a volume alone means one.

    Raises:
        InputError: bad_range, unknown_plane.
    """
    if not (volume or exact or plane != "acquired" or slices is not None):
        return None
    from medsight_core.imaging.planes import check_plane

    chosen = None if slices is None else parse_slices(slices)
    return Whole(plane=check_plane(plane), slices=chosen, exact=exact, shown=shown)


def run_ask(
    *,
    scan: Path,
    text: str,
    slice_index: int | None,
    series: str | None,
    resample: bool,
    points: Sequence[str],
    boxes: Sequence[str],
    scribbles: Sequence[str],
    chosen: Chosen,
    out: Path,
    as_json: bool,
    quiet: bool,
    whole: Whole | None = None,
    nifti: bool = False,
) -> None:
    """Runs the command; see `medsight_core.cli.ask` for the arguments."""
    if not text.strip():
        raise InputError(
            "empty_question", "The question is empty.", 'Ask in plain words, such as "Where is the liver?".'
        )
    drawn: list[tuple[Drawn, tuple[tuple[float, float], ...]]] = []
    kinds: tuple[tuple[Drawn, Sequence[str]], ...] = (("point", points), ("box", boxes), ("scribble", scribbles))
    for kind, given in kinds:
        drawn.extend((kind, parse_pixels(kind, one)) for one in given)
    if whole is not None and drawn:
        raise InputError(
            "prompt_on_volume",
            "A point, box or scribble lies on one slice; it does not go with a question about the whole volume.",
            "Segment what it points at with: medsight segment SCAN --point X,Y --volume",
        )
    if not os.path.lexists(scan):
        raise InputError("missing_path", f"There is no file or folder {scan}.", "Check the path.")
    chosen.check()
    from medsight_core.output.writer import check_folder

    check_folder(out)
    timings: dict[str, float] = {}
    # These wait for something heavy to be imported, so they come after the cheap questions.
    from rich.console import Console

    from medsight_core.cli.console import AnswerView, status
    from medsight_core.imaging.volume import open_volume

    hush = quiet or as_json
    with status("Reading the scan", quiet=hush), timed(timings, "read_scan"):
        volume = open_volume(scan, series=series, resample=resample)
        if whole is not None:
            _check_whole(whole, volume)
        # A slice of another plane than the scan's own says nothing about which of its own slices to show.
        own = whole is None or whole.plane == "acquired"
        k = volume.middle if slice_index is None or not own else slice_index
        # Question and prompts check themselves against the scan.
        question = Question(text=text.strip(), volume=volume, slice_index=k)
        question = replace(question, prompts=tuple(place_prompts(drawn, volume.slice_frame(k))))
    with status("Loading the model", quiet=hush), timed(timings, "load_model"):
        backend = open_backend(chosen)
    bring(backend, volume, chosen, quiet=hush)
    with timed(timings, "ask"), AnswerView(Console(highlight=False), silent=as_json) as view, ExitStack() as waiting:
        tell = waiting.enter_context(status("Looking", quiet=hush))
        warnings = list(volume.warnings)
        stream = backend.ask(question, whole=whole)
        answer = events.fold(_watch(stream, view, waiting, warnings, tell, quiet=hush))
    answer = _complete(answer, warnings, timings)
    with timed(timings, "write"):
        from medsight_core.output.writer import write_answer

        written = write_answer(question, answer, out, nifti=nifti)
    if as_json:
        typer.echo(json.dumps({**written.answer, "out": str(out)}, indent=2, ensure_ascii=False))
        return
    if not quiet:
        _epilogue(answer, written, out, timings)


def _check_whole(whole: Whole, volume: Volume) -> None:
    """Finds what cannot be asked of this volume before the model is loaded."""
    from medsight_core.imaging.planes import check_slices, check_volume, reformat

    check_volume(volume)
    check_slices(whole.slices, reformat(volume, whole.plane))


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Notes how many seconds its body took."""
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start


def _watch(
    stream: Iterator[events.Event],
    view: AnswerView,
    waiting: ExitStack,
    warnings: list[str],
    tell: Callable[[str], None],
    *,
    quiet: bool,
) -> Iterator[events.Event]:
    """Passes events on, shows them on the way and collects what they warn of."""
    for event in stream:
        match event:
            case events.TextDelta(text):
                waiting.close()  # two animations on one terminal would overwrite each other
                view.write(text)
            case events.RegionFound(region):
                waiting.close()
                view.found(region)
            case events.Warning(sentence):
                warnings.append(sentence)
            case events.Progress(done, total, what) if not quiet:
                if is_plan(event):
                    say(what)
                    continue
                words = f"{what} {done}/{total}" if done else what
                tell(words)  # before there is an answer
                view.busy(words)  # below it
            case _:
                pass
        yield event


def is_plan(step: events.Progress) -> bool:
    """Whether a step says in a sentence what all of the work will cost, before it begins."""
    return not step.done and step.what.endswith(".")


def _complete(answer: Answer, warnings: Sequence[str], timings: Mapping[str, float]) -> Answer:
    """Adds what was said on the way, by the reader of the scan first, and how long this command took."""
    provenance = replace(answer.provenance, timings={**timings, **answer.provenance.timings})
    said = tuple(dict.fromkeys((*warnings, *answer.warnings)))
    return replace(answer, warnings=said, provenance=provenance)


def _epilogue(answer: Answer, written: Written, out: Path, timings: Mapping[str, float]) -> None:
    from rich.console import Console

    from medsight_core.cli.console import region_table

    console = Console(highlight=False)
    regions: tuple[Region | VolumeRegion, ...] = (*answer.regions, *answer.volume_regions)
    if regions:
        console.print()
        console.print(region_table(regions))
        console.print()
    else:
        console.print("No region was found, so there is no mask.", style="dim")
    for sentence in _warnings(written.answer):
        say(f"warning: {sentence}")
    names = {"read_scan": "scan", "load_model": "model", "ask": "answer", "write": "files"}
    spent = ", ".join(f"{names[name]} {seconds:.1f} s" for name, seconds in timings.items())
    say(f"{answer.provenance.model} · {spent} · Research use only.")
    shown = [name for name in written.files if "/" not in name]
    sys.stdout.write(f"Written to {out}/: {', '.join(shown)}\n")


def _warnings(content: Mapping[str, Any]) -> list[str]:
    return list(content["warnings"])
