"""An answer that goes on where another attempt at it broke off.

Decoding is greedy, so a second model with the same weights writes the same answer again; whoever reads it is told only
what was not told before.
"""

from __future__ import annotations

from collections.abc import Iterator

from medsight_core.events import Done, Event, Failed, RegionFound, TextDelta, Warning


class Told:
    """What the reader of one answer was told, over all attempts at it."""

    def __init__(self) -> None:
        self._text = ""
        self._regions: list[tuple[str, str]] = []
        self._sentences: set[str] = set()

    def rest(self, events: Iterator[Event]) -> Iterator[Event]:
        """What an attempt adds to what was told.

        Args:
            events: Of the attempt, from its beginning.

        Returns:
            Events; `Failed` where the attempt says something else than the one before did.
        """
        text, regions = "", 0
        for event in events:
            match event:
                case TextDelta(more):
                    text += more
                    shorter = min(len(text), len(self._text))
                    if text[:shorter] != self._text[:shorter]:
                        yield _differs()
                        return
                    new = text[len(self._text) :]
                    if new:
                        self._text = text
                        yield TextDelta(new)
                case RegionFound(region):
                    regions += 1
                    if regions > len(self._regions):
                        self._regions.append((region.code, region.label))
                        yield event
                    elif self._regions[regions - 1] != (region.code, region.label):
                        yield _differs()
                        return
                case Warning(sentence):
                    if sentence not in self._sentences:
                        self._sentences.add(sentence)
                        yield event
                case Done() | Failed():
                    yield event
                    return
                case _:
                    yield event


def _differs() -> Failed:
    return Failed(
        "interrupted", "The process that was answering died, and another one answers differently.", "Ask again."
    )
