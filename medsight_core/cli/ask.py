"""`medsight ask`: from a path and a question to a folder of results.

Everything that can be wrong with the input is found before the model is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from medsight_core import events
from medsight_core.cli.group import say
from medsight_core.cli.prompts import parse_pixels, place_prompts
from medsight_core.errors import CheckpointError, InputError, MedSightError
from medsight_core.regions import Answer, PromptKind, Question

if TYPE_CHECKING:
    from medsight_core.cli.console import AnswerView
    from medsight_core.output.writer import Written


class Asks(Protocol):
    """What this command needs of an engine."""

    def ask(self, question: Question, /) -> Iterator[events.Event]:
        """Answers one question."""
        ...


def load_engine(model: Path | None, device: str) -> Asks:
    """The engine, with the built-in model where none is named."""
    # Read when transformers is first imported; its notices are not for the person who asks.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from medsight_core.inference.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)  # a damaged one is named before torch is imported, which takes seconds
    try:
        from medsight_core.inference.engine import Engine
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("medsight_core"):
            raise
        raise MedSightError(
            "model_not_installed",
            f"The model needs {error.name}, which is not installed.",
            "Install it with: pip install 'medsight[model]'.",
        ) from error
    engine: Asks = Engine.from_pretrained(checkpoint, device=device)
    return engine


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
    model: Path | None,
    out: Path,
    as_json: bool,
    device: str,
    quiet: bool,
) -> None:
    """Runs the command; see `medsight_core.cli.ask` for the arguments."""
    if not text.strip():
        raise InputError(
            "empty_question", "The question is empty.", 'Ask in plain words, such as "Where is the liver?".'
        )
    drawn: list[tuple[PromptKind, tuple[tuple[float, float], ...]]] = []
    kinds: tuple[tuple[PromptKind, Sequence[str]], ...] = (("point", points), ("box", boxes), ("scribble", scribbles))
    for kind, given in kinds:
        drawn.extend((kind, parse_pixels(kind, one)) for one in given)
    if not os.path.lexists(scan):
        raise InputError("missing_path", f"There is no file or folder {scan}.", "Check the path.")
    if model is not None and not model.is_dir():
        raise CheckpointError(
            "missing_checkpoint", f"--model takes a folder with a MedSIGHT checkpoint; {model} is not a folder."
        )
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
        k = volume.middle if slice_index is None else slice_index
        # Question and prompts check themselves against the scan.
        question = Question(text=text.strip(), volume=volume, slice_index=k)
        question = replace(question, prompts=tuple(place_prompts(drawn, volume.slice_frame(k))))
    with status("Loading the model", quiet=hush), timed(timings, "load_model"):
        engine = load_engine(model, device)
    with timed(timings, "ask"), AnswerView(Console(highlight=False), silent=as_json) as view, ExitStack() as waiting:
        waiting.enter_context(status("Looking", quiet=hush))
        warnings = list(volume.warnings)
        answer = events.fold(_watch(engine.ask(question), view, waiting, warnings, quiet=hush))
    answer = _complete(answer, warnings, timings)
    with timed(timings, "write"):
        from medsight_core.output.writer import write_answer

        written = write_answer(question, answer, out)
    if as_json:
        typer.echo(json.dumps({**written.answer, "out": str(out)}, indent=2, ensure_ascii=False))
        return
    if not quiet:
        _epilogue(answer, written, out, timings)


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Notes how many seconds its body took."""
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start


def _watch(
    stream: Iterator[events.Event], view: AnswerView, waiting: ExitStack, warnings: list[str], *, quiet: bool
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
                view.busy(f"{what} {done}/{total}" if total else what)
            case _:
                pass
        yield event


def _complete(answer: Answer, warnings: Sequence[str], timings: Mapping[str, float]) -> Answer:
    """Adds what was said on the way, by the reader of the scan first, and how long this command took."""
    provenance = replace(answer.provenance, timings={**timings, **answer.provenance.timings})
    said = tuple(dict.fromkeys((*warnings, *answer.warnings)))
    return replace(answer, warnings=said, provenance=provenance)


def _epilogue(answer: Answer, written: Written, out: Path, timings: Mapping[str, float]) -> None:
    from rich.console import Console

    from medsight_core.cli.console import region_table

    console = Console(highlight=False)
    if answer.regions:
        console.print()
        console.print(region_table(answer.regions))
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
