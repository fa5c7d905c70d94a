"""What a conversation is made of: what was asked, what is coming back, and what a person makes of its findings.

All of them are values. A `Turn` takes an event and gives the turn that it has become, so an answer can be shown while
it is written, and going back is keeping the turn of before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from medsight_core.backend import SegmentRequest, Stroke, Whole
from medsight_core.errors import MedSightError
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, Warning
from medsight_core.regions import Answer, Provenance, Question, Region, VolumeRegion

if TYPE_CHECKING:
    from medsight_core.backend import Backend
    from medsight_core.imaging.volume import Volume

Kind = Literal["ask", "segment"]
State = Literal["running", "done", "stopped", "failed"]

STOPPED = "stopped"
"""Code of the failure of an answer that a person stopped."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """What a person asked for, without the scan.

    Attributes:
        kind: Answer a question, or segment something.
        text: The question, or the name of the thing; "" where it was only pointed at.
        slice_index: The slice that was looked at, from 0.
        strokes: What was drawn, oldest first.
        whole: That it is about the whole volume, and how.
    """

    kind: Kind
    text: str
    slice_index: int
    strokes: tuple[Stroke, ...] = ()
    whole: Whole | None = None

    def question(self, volume: Volume, history: tuple[tuple[str, str], ...] = ()) -> Question:
        """It as a question about a scan; `whole` goes beside it.

        Raises:
            InputError: See `Question`.
        """
        return Question(
            text=self.text,
            volume=volume,
            slice_index=self.slice_index,
            prompts=tuple(stroke.prompt for stroke in self.strokes),
            history=history,
        )

    def request(self, volume: Volume) -> SegmentRequest:
        """It as a request to segment something in a scan.

        Raises:
            InputError: See `SegmentRequest`.
        """
        return SegmentRequest(
            volume=volume,
            slice_index=self.slice_index,
            strokes=self.strokes,
            text=self.text,
            whole=self.whole is not None,
            slices=None if self.whole is None else self.whole.slices,
        )


class Piece(NamedTuple):
    """Some of an answer's text and the keys of the findings that it names, if any."""

    text: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finding:
    """A region as a person keeps it.

    Attributes:
        key: Its own for the whole conversation, such as "3.1": turn 3, first region.
        region: With its mask.
        name: What it is called: the model's label, until a person renames it.
        hidden: It is not shown now.
        deleted: It was thrown away; only undoing brings it back.
    """

    key: str
    region: Region | VolumeRegion
    name: str
    hidden: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """One question and its answer, complete or not.

    Attributes:
        number: Its own for the whole conversation, from 1.
        asked: What was asked for.
        text: What a person reads, so far.
        raw: As generated, with codes; "" until the answer is complete.
        findings: In the order in which they came.
        warnings: Plain sentences that belong beside the answer.
        progress: How far the work is, before and between words.
        state: "running" until the stream ends; then how it ended.
        failure: Why the answer is not complete.
        provenance: Of a complete answer.
    """

    number: int
    asked: Asked
    text: str = ""
    raw: str = ""
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    progress: Progress | None = None
    state: State = "running"
    failure: Failed | None = None
    provenance: Provenance | None = None

    @property
    def kept(self) -> tuple[Finding, ...]:
        """The findings that were not deleted."""
        return tuple(finding for finding in self.findings if not finding.deleted)

    @property
    def note(self) -> str:
        """What must stand beside an answer that is not complete; "" beside any other."""
        if self.failure is None:
            return ""
        if self.state == "stopped":
            return "Stopped before it was complete."
        words = f"{self.failure.sentence} {self.failure.remedy}".strip()
        return f"Interrupted: {words}" if self.text or self.findings else words

    def take(self, event: Event) -> Turn:
        """The turn after one more event; what comes after the end changes nothing."""
        if self.state != "running":
            return self
        match event:
            case TextDelta(text):
                return replace(self, text=self.text + text)
            case RegionFound(region):
                return replace(self, findings=(*self.findings, self._finding(len(self.findings), region)))
            case Progress():
                return replace(self, progress=event)
            case Warning(sentence):
                return replace(self, warnings=tuple(dict.fromkeys((*self.warnings, sentence))))
            case Failed(code):
                state: State = "stopped" if code == STOPPED else "failed"
                return replace(self, state=state, failure=event, progress=None)
            case Done(answer):
                return self._complete(answer)

    def answer(self) -> Answer | None:
        """A complete answer with the findings that were kept, by the names they were given; else None."""
        if self.provenance is None:
            return None
        named = [replace(finding.region, label=finding.name) for finding in self.kept]
        return Answer(
            text=self.text,
            raw=self.raw,
            regions=tuple(region for region in named if isinstance(region, Region)),
            warnings=self.warnings,
            provenance=self.provenance,
            volume_regions=tuple(region for region in named if isinstance(region, VolumeRegion)),
        )

    def pieces(self) -> list[Piece]:
        """The text so far, cut where what it names begins and ends."""
        end = len(self.text)
        spans = [(finding.key, finding.region.span) for finding in self.kept if finding.region.span.end <= end]
        cuts = sorted({0, end, *(cut for _, span in spans for cut in (span.start, span.end))})
        return [
            Piece(self.text[a:b], tuple(key for key, span in spans if span.start <= a and b <= span.end))
            for a, b in pairwise(cuts)
        ]

    def _finding(self, place: int, region: Region | VolumeRegion) -> Finding:
        return Finding(key=f"{self.number}.{place + 1}", region=region, name=region.label or region.code)

    def _complete(self, answer: Answer) -> Turn:
        """The answer as it ended; what a person did to a finding while it was written stays."""
        regions: tuple[Region | VolumeRegion, ...] = (*answer.regions, *answer.volume_regions)
        findings = [
            replace(self.findings[place], region=region) if place < len(self.findings) else self._finding(place, region)
            for place, region in enumerate(regions)
        ]
        return replace(
            self,
            text=answer.text,
            raw=answer.raw,
            findings=tuple(findings),
            warnings=tuple(dict.fromkeys((*self.warnings, *answer.warnings))),
            progress=None,
            state="done",
            provenance=answer.provenance,
        )


def put(
    asked: Asked,
    backend: Backend,
    volume: Volume,
    *,
    history: tuple[tuple[str, str], ...] = (),
    cancel: threading.Event | None = None,
) -> Iterator[Event]:
    """Asks a backend; may run in another thread than the conversation.

    Args:
        asked: What is asked for.
        backend: Who is asked.
        volume: The scan.
        history: Earlier turns, see `Conversation.history`.
        cancel: When it is set, the stream ends soon.

    Returns:
        Events up to `Done` or `Failed`; what is wrong with the request is a `Failed` as well.
    """
    try:
        if asked.kind == "segment":
            yield from backend.segment(asked.request(volume), cancel=cancel)
        else:
            yield from backend.ask(asked.question(volume, history), whole=asked.whole, cancel=cancel)
    except MedSightError as error:
        yield Failed(error.code, error.sentence, error.remedy)
