"""One answer while it is made, and one that was read without being drawn."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from medsight_core.inference.decoding import Step, WrittenCode
from medsight_core.inference.inputs import Inputs
from medsight_core.inference.transcript import Mention, Transcript
from medsight_core.regions import Answer, Provenance, Question, Region


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What the model wrote about one slice, before any mask is drawn.

    Attributes:
        question: As it was asked.
        text: What a person reads.
        raw: As generated.
        mentions: Its region codes with their words.
        codes: The same codes with the states that masks are decoded from.
        warnings: Plain sentences that belong beside it.
    """

    question: Question
    text: str
    raw: str
    mentions: tuple[Mention, ...]
    codes: tuple[WrittenCode, ...]
    warnings: tuple[str, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Reply:
    """One answer while it is made.

    Attributes:
        transcript: Its words and the codes among them.
        codes: Those whose masks are not drawn yet.
        drawn: How many codes of the transcript are drawn.
        regions: What was drawn.
        warnings: What was said beside it.
        ended: The model ended it itself.
    """

    transcript: Transcript
    codes: list[WrittenCode] = field(default_factory=list)
    drawn: int = 0
    regions: list[Region] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ended: bool = False

    def warn(self, *sentences: str) -> list[str]:
        """Notes sentences; returns those that are new."""
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.warnings]
        self.warnings += new
        return new

    def note(self, step: Step, row: int) -> None:
        """Takes the codes of a step of the decode loop that belong to this row; they go with the words before."""
        self.codes += [code for code in step.codes if code.row == row]

    def read(self, step: Step, row: int) -> Iterator[str]:
        """Takes the token of a step in this row; yields text for the reader."""
        if step.tokens:
            token = step.tokens[row]
            if token is None:
                self.ended = True
            else:
                yield from self.transcript.feed(token)

    def cut_off(self, limit: int, *, stopped: bool) -> Iterator[str]:
        """The sentence about an answer that did not end by itself."""
        if not self.ended:
            why = "stopped before it was complete" if stopped else f"cut off after {limit} tokens"
            yield f"The answer was {why}."

    def reading(self, made: Inputs, limit: int) -> Reading:
        """The text as it stands, ended."""
        deque(self.transcript.finish(), maxlen=0)
        sentences = (*made.warnings, *self.cut_off(limit, stopped=False))
        return Reading(
            question=made.question,
            text=self.transcript.text,
            raw=self.transcript.raw,
            mentions=tuple(self.transcript.mentions),
            codes=tuple(self.codes),
            warnings=tuple(dict.fromkeys(sentences)),
        )

    def answer(self, provenance: Provenance) -> Answer:
        """The answer as it stands."""
        return Answer(
            text=self.transcript.text,
            raw=self.transcript.raw,
            regions=tuple(self.regions),
            warnings=tuple(self.warnings),
            provenance=provenance,
        )


class Stopwatch:
    """Adds up how long named pieces of work took; what a consumer does between events does not count.

    Args:
        names: Of the pieces.
    """

    def __init__(self, *names: str) -> None:
        self.seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times its body."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
