"""What `medsight ask` shows: the answer as it comes, with grounded words in their region's colour, then the regions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medsight_core.cli.group import printable
from medsight_core.regions import Region, VolumeRegion
from medsight_core.terminology import display_colours


class AnswerView:
    """The answer on stdout while it is written.

    On a terminal the text is drawn anew as it grows, because words get their colour only once their region is known.
    Into a pipe or a file the text goes as it comes, plain.

    Args:
        console: For stdout.
        silent: Show nothing (with ``--json``).
    """

    def __init__(self, console: Console, *, silent: bool = False) -> None:
        self._console = console
        self._silent = silent
        self._text = ""
        self._regions: list[Region | VolumeRegion] = []
        self._busy = ""
        self._live: Live | None = None

    def __enter__(self) -> AnswerView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._busy = ""
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()
        elif self._text and not self._silent:
            self._console.file.write("\n")

    def write(self, text: str) -> None:
        """More of the answer."""
        text = printable(text)
        self._text += text
        self._busy = ""
        if self._silent:
            return
        if self._console.is_terminal:
            self._draw()
        else:
            self._console.file.write(text)
            self._console.file.flush()

    def found(self, region: Region | VolumeRegion) -> None:
        """A region: its words take its colour."""
        self._regions.append(region)
        self._draw()

    def busy(self, what: str) -> None:
        """What is being done, in a dim line below the answer."""
        self._busy = what
        if self._text:
            self._draw()

    def _draw(self) -> None:
        if self._silent or not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Live(
                console=self._console, refresh_per_second=15, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(self._render())

    def _render(self) -> Group:
        answer = coloured_answer(self._text, self._regions)
        return Group(answer, Text(self._busy, style="dim")) if self._busy else Group(answer)


def coloured_answer(text: str, regions: Sequence[Region | VolumeRegion]) -> Text:
    """The answer with every grounded stretch in the colour of its region."""
    answer = Text(text)
    colours = display_colours(region.label for region in regions)
    for region, colour in zip(regions, colours, strict=True):
        if region.span.end <= len(text):
            answer.stylize(f"bold underline {colour.hex}", region.span.start, region.span.end)
    return answer


def region_table(regions: Sequence[Region | VolumeRegion]) -> Table:
    """Number, label, code, score and area or volume of each region."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("Label")
    table.add_column("Code", style="dim")
    table.add_column("Score")
    flat = {isinstance(region, Region) for region in regions}
    table.add_column("Size" if len(flat) > 1 else "Volume" if flat == {False} else "Area", justify="right")
    colours = display_colours(region.label for region in regions)
    for number, (region, colour) in enumerate(zip(regions, colours, strict=True), start=1):
        table.add_row(
            str(number),
            Text.assemble(("■ ", colour.hex), printable(region.label or region.code)),
            Text(region.code),
            Text.assemble(
                (f"{region.score:.2f} ", ""), (region.certainty, "yellow" if region.certainty == "uncertain" else "dim")
            ),
            region.area_text if isinstance(region, Region) else region.volume_text,
        )
    return table


@contextmanager
def status(what: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Says on stderr what takes a while, if somebody is looking; gives a function that says it anew."""
    if quiet or not sys.stderr.isatty():
        yield lambda words: None
        return
    with Console(stderr=True).status(what, spinner="dots") as spinner:
        yield lambda words: spinner.update(printable(words))
