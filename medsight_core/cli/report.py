"""`medsight report`: from a scan to the draft of a report about all of it.

Everything that can be wrong with the input is found before the model is loaded. Structures are looked for by name on
every slice, without the language model; questions are answered from what was found, and only one of another kind goes
to the language model.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medsight_core import events
from medsight_core.cli.ask import timed
from medsight_core.cli.backends import load_engine
from medsight_core.cli.group import printable, say
from medsight_core.cli.prompts import parse_slices
from medsight_core.errors import InputError
from medsight_core.inference.checkpoint import locate
from medsight_core.inference.running import Running

if TYPE_CHECKING:
    from medsight_core.evidence import Evidence
    from medsight_core.imaging.planes import Plane
    from medsight_core.imaging.volume import Volume
    from medsight_core.inference.volumes import VolumeEngine
    from medsight_core.output.draft import Draft
    from medsight_core.output.draft_template import ReportTemplate
    from medsight_core.regions import Answer


def run_report(
    *,
    scan: Path,
    template: Path | None,
    structures: Sequence[str],
    plane: str,
    slices: str | None,
    questions: Sequence[str],
    series: str | None,
    resample: bool,
    model: Path | None,
    out: Path,
    as_json: bool,
    running: Running,
    quiet: bool,
) -> None:
    """Runs the command; see `medsight_core.cli.report` for the arguments."""
    named = parse_names(structures)
    if any(not question.strip() for question in questions):
        raise InputError(
            "empty_question", "A question of --ask is empty.", 'Ask in plain words, such as "How large is the liver?".'
        )
    chosen = None if slices is None else parse_slices(slices)
    if not os.path.lexists(scan):
        raise InputError("missing_path", f"There is no file or folder {scan}.", "Check the path.")
    if model is not None:
        locate(model)
    from medsight_core.output.folder import check_folder

    check_folder(out)
    from medsight_core.output.draft_template import ReportTemplate, read_template

    wording = ReportTemplate() if template is None else read_template(template)
    timings: dict[str, float] = {}
    hush = quiet or as_json
    from medsight_core.cli.console import status

    with status("Reading the scan", quiet=hush), timed(timings, "read_scan"):
        volume = _open(scan, series=series, resample=resample, plane=plane, slices=chosen)
    cut: Plane = plane  # type: ignore[assignment]  # it was cut in that plane, so there is such a plane
    with status("Loading the model", quiet=hush), timed(timings, "load_model"):
        engine: Any = load_engine(model, running)
        from medsight_core.inference.volumes import VolumeEngine

        volumes = VolumeEngine(engine)
        names = _names(named, wording, questions, volumes.classes, volumes.taught(volume))
    with _progress(quiet=hush) as tell, timed(timings, "survey"):
        survey = volumes.survey(volume, names, plane=cut, slices=chosen, on_progress=tell)
    with status("Measuring", quiet=hush), timed(timings, "measure"):
        from medsight_core.inference.referring import evidence_of

        found: Evidence = evidence_of(volume, survey)
        provenance = replace(found.provenance, timings={**timings, **found.provenance.timings})
        evidence = replace(found, provenance=provenance)
    with _progress(quiet=hush) as tell, timed(timings, "answer"):
        answers = list(_answers(questions, evidence, volumes, volume, plane=cut, slices=chosen, tell=tell))
    from medsight_core.output.draft_writer import write_draft
    from medsight_core.output.drafting import make_draft

    # How masks were joined is told with the provenance, what belongs to an answer beside it.
    joining = survey.provenance.settings.get("joining", ())
    said = (*volume.warnings, *(sentence for sentence in survey.warnings if sentence not in joining))
    draft = make_draft(volume, evidence, wording, named=named, answers=answers, warnings=said)
    with status("Writing", quiet=hush), timed(timings, "write"):
        written = write_draft(draft, out)
    if as_json:
        typer.echo(json.dumps({**written.answer, "out": str(out)}, indent=2, ensure_ascii=False))
        return
    _print(draft)
    if not quiet:
        for sentence in written.answer["warnings"]:
            say(f"warning: {sentence}")
        spent = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in timings.items())
        say(f"{draft.banner} · {spent}")
        shown = [name for name in written.files if "/" not in name]
        sys.stdout.write(f"Written to {out}/: {', '.join(shown)}\n")


def parse_names(given: Sequence[str]) -> tuple[str, ...]:
    """Names that were given one by one or with commas between them.

    Raises:
        InputError: bad_structures: something was given, and no name was in it.
    """
    names = tuple(dict.fromkeys(name for text in given for part in text.split(",") if (name := " ".join(part.split()))))
    if given and not names:
        raise InputError(
            "bad_structures", "--structures names nothing.", 'Name structures, such as --structures "liver, spleen".'
        )
    return names


def _open(scan: Path, *, series: str | None, resample: bool, plane: str, slices: range | None) -> Volume:
    """Reads the scan and makes sure that it can be cut and read as was asked."""
    from medsight_core.imaging.planes import check_slices, check_volume, reformat
    from medsight_core.imaging.volume import open_volume

    volume = open_volume(scan, series=series, resample=resample)
    check_volume(volume)
    check_slices(slices, reformat(volume, plane))  # type: ignore[arg-type]  # which refuses any other word
    return volume


def _names(
    named: Sequence[str],
    template: ReportTemplate,
    questions: Sequence[str],
    known: Sequence[str],
    taught: Sequence[str],
) -> list[str] | None:
    """What to look for: what was asked for, else what the template names, else (None) all that was taught.

    What questions speak of is looked for as well. A template may name what this model was not taught to find in such a
    scan: the report says that it was not assessed.

    Args:
        named: What was asked for.
        template: Of the report.
        questions: Of `--ask`.
        known: All that the model knows by name.
        taught: What of it the model was taught to find in such a scan.

    Raises:
        InputError: unknown_structure.
    """
    from medsight_core.inference.presence import named_classes
    from medsight_core.inference.surveying import classes_of

    if named:
        wanted = classes_of(named, known)
    elif template.names:
        wanted = {}
        for name in template.names:
            try:
                found = classes_of([name], taught)[name]
                wanted[name] = tuple(known.index(taught[number]) for number in found)
            except InputError:
                continue
        if not wanted:
            raise InputError(
                "unknown_structure",
                f"The model knows none of the structures of the template; it knows {', '.join(taught)}.",
                "Name some of these in the template, or with --structures.",
            )
    else:
        return None
    covered = {number for numbers in wanted.values() for number in numbers}
    spoken_of = {known.index(taught[n]) for question in questions for n in named_classes(question, taught)}
    return [*wanted, *(known[number] for number in sorted(spoken_of - covered))]


def _answers(
    questions: Sequence[str],
    evidence: Evidence,
    volumes: VolumeEngine,
    volume: Volume,
    *,
    plane: Plane,
    slices: range | None,
    tell: Callable[[events.Progress], None],
) -> Iterator[tuple[str, Answer]]:
    from medsight_core.questioning import answer_from_evidence

    history: list[tuple[str, str]] = []
    for given in questions:
        question = given.strip()
        answer = answer_from_evidence(question, evidence, history=history)
        if answer is None:
            answer = events.fold(
                _told(volumes.ask(question, volume, plane=plane, slices=slices, history=history), tell)
            )
        history.append((question, answer.text))
        yield question, answer


def _told(stream: Iterator[events.Event], tell: Callable[[events.Progress], None]) -> Iterator[events.Event]:
    for event in stream:
        if isinstance(event, events.Progress):
            tell(event)
        yield event


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[events.Progress], None]]:
    """A bar on stderr, if somebody is looking; gives the function that moves it."""
    if quiet or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Looking", total=None)
        yield lambda progress: bar.update(
            task, completed=progress.done, total=progress.total or None, description=printable(progress.what)
        )


def _print(draft: Draft) -> None:
    """The short form: what was found, what was answered, the impression."""
    from rich.console import Console

    from medsight_core.cli.console import region_table

    lines = [draft.banner, ""]
    for section in draft.sections:
        for reply in section.replies:
            lines += [reply.question, f"  {reply.answer.text} [{reply.answer.note}]"]
        if section.kind == "impression":
            lines += [f"{n}. {one.text} [{one.note}]" for n, one in enumerate(section.sentences, start=1)]
    sys.stdout.write(printable("\n".join(lines)) + "\n\n")
    if draft.shown:
        console = Console(highlight=False)
        console.print(region_table(draft.regions))
        console.print()
    else:
        sys.stdout.write("No region was found, so there is no mask.\n")
