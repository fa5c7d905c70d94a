"""What happens while an answer is made: the one stream that engine, server, client and viewers share.

A stream is any number of `TextDelta`, `RegionFound`, `Progress` and `Warning`, then exactly one `Done` or `Failed`. The
deltas together are `Answer.text`; a region is announced after the words it grounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medsight_core.errors import MedSightError
from medsight_core.regions import Answer, Region, VolumeRegion


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the text a person reads; no codes or markup in it."""

    text: str


@dataclass(frozen=True, slots=True)
class RegionFound:
    """A region with its mask, complete: on one slice, or throughout a volume."""

    region: Region | VolumeRegion


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` steps of ``what``; a total of 0 means that it is not known."""

    done: int
    total: int
    what: str


@dataclass(frozen=True, slots=True)
class Warning:
    """A plain sentence that belongs beside the answer."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream that went well."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a stream that did not."""

    code: str
    sentence: str
    remedy: str = ""

    def error(self) -> MedSightError:
        """The failure as an exception."""
        return MedSightError(self.code, self.sentence, self.remedy)


Event = TextDelta | RegionFound | Progress | Warning | Done | Failed


def fold(events: Iterable[Event]) -> Answer:
    """Reads a stream to its end and gives its answer.

    Raises:
        MedSightError: The stream ended with `Failed`, or with neither `Done` nor `Failed`.
    """
    for event in events:
        match event:
            case Done(answer):
                return answer
            case Failed():
                raise event.error()
    raise MedSightError("stream_ended", "The answer broke off before it was complete.", "Ask again.")
