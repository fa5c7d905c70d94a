"""`medsight chat`: a conversation about a scan at the terminal, with any backend.

What is typed is a question, or a command that begins with a slash. Nothing is written to disk but by /show and /export.
Through a pipe each line is taken as if it had been typed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from medsight_core.backend import Stroke, Whole
from medsight_core.chat import Asked, Conversation, Turn, put
from medsight_core.chat.markdown import place_of, to_markdown
from medsight_core.chat.suggestions import suggestions
from medsight_core.cli.answering import follow
from medsight_core.cli.backends import Chosen, bring, open_backend
from medsight_core.cli.console import region_table, status
from medsight_core.cli.group import printable, say
from medsight_core.cli.prompts import Drawn, parse_pixels, parse_slices, place_prompt
from medsight_core.errors import InputError, MedSightError
from medsight_core.regions import Answer, Question

if TYPE_CHECKING:
    from medsight_core.backend import Backend
    from medsight_core.imaging.volume import Volume

TRANSCRIPT: Final = "conversation.md"


def run_chat(
    *,
    scan: Path,
    slice_index: int | None,
    series: str | None,
    resample: bool,
    chosen: Chosen,
    out: Path,
) -> None:
    """Runs the command; see `medsight_core.cli.chat` for the arguments."""
    if not os.path.lexists(scan):
        raise InputError("missing_path", f"There is no file or folder {scan}.", "Check the path.")
    chosen.check()
    from medsight_core.imaging.volume import open_volume
    from medsight_core.output.folder import check_folder

    check_folder(out)
    with status("Reading the scan", quiet=False):
        volume = open_volume(scan, series=series, resample=resample)
        k = volume.middle if slice_index is None else slice_index
        volume.slice_frame(k)
    with status("Loading the model", quiet=False):
        backend = open_backend(chosen)
    try:
        bring(backend, volume, chosen, quiet=False)
        Chat(backend=backend, volume=volume, slice_index=k, out=out).run()
    finally:
        backend.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something that can be typed after a slash.

    Attributes:
        form: What goes with it.
        meaning: For /help.
        run: Does it, with what was typed behind it.
    """

    form: str
    meaning: str
    run: Callable[[str], None]


class Chat:
    """One conversation at the terminal.

    Args:
        backend: Who is asked.
        volume: The scan.
        slice_index: The slice to begin with.
        out: Folder for pictures.
    """

    def __init__(self, *, backend: Backend, volume: Volume, slice_index: int, out: Path) -> None:
        self._backend = backend
        self._volume = volume
        self._slice = slice_index
        self._out = out
        self._whole: Whole | None = None
        self._fresh = False  # the next mark begins another structure
        self._conversation = Conversation()
        self._console = Console(highlight=False)
        self._said: set[str] = set()
        self._over = False
        self._commands: Mapping[str, Command] = {
            "slice": Command(form="N", meaning="go to slice N, counted from 0", run=self._go_to_slice),
            "volume": Command(
                form="[PLANE] [A:B] [exact]", meaning="ask about the whole volume; /slice goes back", run=self._go_whole
            ),
            "point": Command(form="X,Y", meaning="segment what lies there", run=self._drawer("point")),
            "negative": Command(
                form="X,Y", meaning="this does not belong to it", run=self._drawer("point", positive=False)
            ),
            "box": Command(form="X0,Y0,X1,Y1", meaning="segment what is in it", run=self._drawer("box")),
            "scribble": Command(form="X,Y;X,Y;...", meaning="segment what it runs over", run=self._drawer("scribble")),
            "new": Command(form="", meaning="the next mark begins another structure", run=self._begin_another),
            "segment": Command(
                form="[WORDS]", meaning="segment what is named, or what is marked; throughout after /volume",
                run=self._segment,
            ),
            "retry": Command(form="", meaning="ask again what failed or was stopped", run=self._retry),
            "undo": Command(form="", meaning="take the last step back", run=self._undo),
            "redo": Command(form="", meaning="make it again", run=self._redo),
            "clear": Command(form="", meaning="forget the conversation", run=self._clear),
            "show": Command(form="", meaning="write a picture of the last answer", run=self._show),
            "export": Command(
                form="DIR", meaning="write the last answer with its masks, and the conversation", run=self._export
            ),
            "help": Command(form="", meaning="this list", run=self._help),
            "quit": Command(form="", meaning="leave (also Ctrl-D)", run=self._quit),
        }  # fmt: skip

    def run(self) -> None:
        """Talks until the person leaves, or the input ends."""
        self._greet()
        for line in self._lines():
            self._take(line)
            if self._over:
                return

    def _take(self, line: str) -> None:
        """One line: a command or a question."""
        words = line.strip()
        if not words:
            return
        try:
            if words.startswith("/"):
                name, _, rest = words[1:].partition(" ")
                self._command(name.lower()).run(rest.strip())
            else:
                self._put(self._conversation.ask(words, slice_index=self._slice, whole=self._whole))
        except MedSightError as error:
            say(f"error: {error}")

    def _command(self, name: str) -> Command:
        """A command by its name, or by as much of it as tells it from the others."""
        if name in self._commands:
            return self._commands[name]
        like = [known for known in self._commands if name and known.startswith(name)]
        if len(like) == 1:
            return self._commands[like[0]]
        what = f"/{name} may be /{', /'.join(like)}" if like else f"There is no command /{name}"
        raise InputError("unknown_command", f"{what}.", "/help lists them; a question needs no slash.")

    def _lines(self) -> Iterator[str]:
        typed = sys.stdin.isatty()
        if typed:
            with suppress(ImportError):
                import readline  # noqa: F401  # from now on `input` edits lines and brings back earlier ones
        while True:
            prompt = self._prompt()
            try:
                if typed:
                    yield input(prompt)
                    continue
                line = sys.stdin.readline()
                if not line:
                    return
                self._print(f"{prompt}{line.rstrip()}")  # so that what comes out reads as a conversation
                yield line
            except EOFError:
                self._print("")
                return
            except KeyboardInterrupt:
                if not typed:
                    raise
                self._print("\n(/quit or Ctrl-D leaves)")

    def _prompt(self) -> str:
        if self._whole is not None:
            return f"{place_of(Asked(kind='ask', text='', slice_index=self._slice, whole=self._whole))}> "
        marks = 0 if self._fresh else len(self._conversation.marks)
        drawn = f", {marks} mark{'s' if marks > 1 else ''}" if marks else ""
        return f"slice {self._slice}{drawn}> "

    def _greet(self) -> None:
        info, volume = self._backend.info(), self._volume
        slices, rows, columns = volume.array.shape[:3]
        extent = f"{slices} slices of {columns} x {rows}" if slices > 1 else f"{columns} x {rows} pixels"
        self._print(f"{volume.modality}, {extent}. {info.model} on {info.device}. Research use only.")
        for sentence in volume.warnings:
            self._warn(sentence)
        self._print("Ask in plain words; /help lists what else there is. You could begin with:")
        for text in suggestions(volume.modality, info.classes):
            self._print(f"  {text}")

    def _put(self, asked: Asked) -> None:
        """Asks, shows the answer while it is written, and what belongs beside it."""
        self._fresh = False
        cancel = threading.Event()
        history = self._conversation.history(asked.slice_index)
        stream = put(asked, self._backend, self._volume, history=history, cancel=cancel)
        turn = follow(stream, self._conversation, self._console, cancel)
        found = [replace(finding.region, label=finding.name) for finding in turn.kept]
        if found:
            self._console.print(region_table(found))
        elif turn.state == "done":
            self._console.print("No region was found.", style="dim")
        for sentence in turn.warnings:
            self._warn(sentence)
        if turn.state == "failed":
            say(f"error: {turn.note}")
            say("/retry asks again.")
        elif turn.note:
            say(turn.note)

    def _warn(self, sentence: str) -> None:
        """Says what should be known, once."""
        if sentence not in self._said:
            self._said.add(sentence)
            say(f"note: {sentence}")

    def _go_to_slice(self, words: str) -> None:
        if not words.isdecimal():
            raise InputError(
                "bad_slice", f"/slice takes a number from 0 to {self._volume.n_slices - 1}; got {words[:40]!r}."
            )
        self._volume.slice_frame(int(words))
        self._slice, self._whole = int(words), None

    def _go_whole(self, words: str) -> None:
        from medsight_core.imaging.planes import check_plane, check_slices, check_volume, reformat

        check_volume(self._volume)
        whole = Whole(shown=self._slice)
        for word in words.split():
            if ":" in word:
                whole = replace(whole, slices=parse_slices(word))
            elif word == "exact":
                whole = replace(whole, exact=True)
            else:
                # A slice of another plane than the scan's own says nothing about which of its own is looked at.
                whole = replace(whole, plane=check_plane(word), shown=None)
        check_slices(whole.slices, reformat(self._volume, whole.plane))
        self._whole = whole

    def _drawer(self, kind: Drawn, *, positive: bool = True) -> Callable[[str], None]:
        name = kind if positive else "negative"

        def draw(words: str) -> None:
            pixels = parse_pixels(kind, words, option=f"/{name}")
            prompt = place_prompt(kind, pixels, self._volume.slice_frame(self._slice), positive=positive)
            stroke = Stroke(slice_index=self._slice, prompt=prompt)
            self._put(self._conversation.mark(stroke, refine=not self._fresh))

        return draw

    def _begin_another(self, words: str) -> None:
        self._fresh = True

    def _segment(self, words: str) -> None:
        self._put(self._conversation.segment(words, slice_index=self._slice, whole=self._whole))

    def _retry(self, words: str) -> None:
        self._put(self._conversation.retry())

    def _undo(self, words: str) -> None:
        self._conversation.undo()
        self._say_where()

    def _redo(self, words: str) -> None:
        self._conversation.redo()
        self._say_where()

    def _clear(self, words: str) -> None:
        self._conversation.clear()
        self._print("The conversation is empty; /undo brings it back.")

    def _say_where(self) -> None:
        last = self._conversation.last
        if last is None:
            self._print("The conversation is empty.")
        else:
            self._print(f"The last turn is: {last.asked.text or 'what was marked'} ({place_of(last.asked)})")

    def _complete(self) -> tuple[Turn, Question, Answer]:
        """The last complete answer, with its question.

        Raises:
            InputError: no_answer.
        """
        for turn in reversed(self._conversation.turns):
            answer = turn.answer()
            if answer is not None:
                text = turn.asked.text or "Segment what is marked."
                return turn, replace(turn.asked, text=text).question(self._volume), answer
        raise InputError("no_answer", "There is no complete answer yet.", "Ask something first.")

    def _show(self, words: str) -> None:
        from medsight_core.output.overlay import overlay
        from medsight_core.output.sheet import make_sheet

        turn, question, answer = self._complete()
        if answer.volume_regions:
            picture = make_sheet(question, answer.volume_regions).picture()
        else:
            picture = overlay(question, answer.regions)
        path = self._out / f"answer-{turn.number}.png"
        with _writing(path):
            self._out.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        self._print(f"Written: {path}")

    def _export(self, words: str) -> None:
        from medsight_core.output.writer import write_answer

        if not words:
            raise InputError("bad_output", "/export takes a folder to write into.", "Say /export liver")
        turn, question, answer = self._complete()
        folder = Path(words).expanduser()
        written = write_answer(question, answer, folder)
        with _writing(folder / TRANSCRIPT):
            (folder / TRANSCRIPT).write_text(to_markdown(self._conversation.turns), encoding="utf-8")
        for sentence in written.answer["warnings"]:
            self._warn(sentence)
        names = [name for name in written.files if "/" not in name]
        self._print(f"Written to {folder}/: {', '.join([*names, TRANSCRIPT])} (answer {turn.number})")

    def _help(self, words: str) -> None:
        width = max(len(f"/{name} {command.form}") for name, command in self._commands.items())
        for name, command in self._commands.items():
            usage = f"/{name} {command.form}".ljust(width)
            self._console.print(Text.assemble((usage, "bold"), f"  {command.meaning}"), soft_wrap=True)
        self._print("X,Y is column,row in pixels from 0. Ctrl-C stops an answer; the up key brings back earlier lines.")

    def _quit(self, words: str) -> None:
        self._over = True

    def _print(self, words: str) -> None:
        self._console.print(Text(printable(words)), soft_wrap=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError("bad_output", f"{path} cannot be written: {error.strerror or error}.") from error
