"""One answer while it is made, and one that was read without being drawn."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from medsight_core.inference.decoding import Step, WrittenCode
from medsight_core.inference.inputs import Inputs
from medsight_core.inference.transcript import Mention, Transcript
from medsight_core.regions import Answer, Provenance, Question, Region

Given = TypeVar("Given")
Made = TypeVar("Made")


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
        tokens: Read and written; see `Provenance`.
    """

    question: Question
    text: str
    raw: str
    mentions: tuple[Mention, ...]
    codes: tuple[WrittenCode, ...]
    warnings: tuple[str, ...]
    tokens: Mapping[str, int]


@dataclass(slots=True, kw_only=True, eq=False)
class Reply:
    """One answer while it is made.

    Attributes:
        transcript: Its words and the codes among them.
        codes: Those whose masks are not drawn yet.
        drawn: How many codes of the transcript are drawn.
        regions: What was drawn.
        warnings: What was said beside it.
        written: Tokens so far.
        ended: The model ended it itself.
    """

    transcript: Transcript
    codes: list[WrittenCode] = field(default_factory=list)
    drawn: int = 0
    regions: list[Region] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    written: int = 0
    ended: bool = False

    def warn(self, *sentences: str) -> list[str]:
        """Notes sentences; returns those that are new."""
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.warnings]
        self.warnings += new
        return new

    def note(self, step: Step) -> None:
        """Takes the codes of a step of the decode loop; they go with the words before."""
        self.codes += step.codes

    def read(self, step: Step) -> Iterator[str]:
        """Takes the token of a step; yields text for the reader."""
        self.ended = self.ended or step.ended
        if step.token is not None:
            self.written += 1
            yield from self.transcript.feed(step.token)

    def tokens(self, made: Inputs) -> dict[str, int]:
        """How many were read and written; see `Provenance`."""
        return {"prompt": len(made.input_ids), "completion": self.written}

    def cut_off(self, limit: int, *, stopped: bool) -> Iterator[str]:
        """The sentence about an answer that did not end by itself."""
        if not self.ended:
            why = "stopped before it was complete" if stopped else f"cut off after {limit} tokens"
            yield f"The answer was {why}."

    def reading(self, made: Inputs) -> Reading:
        """The text as it stands, ended."""
        deque(self.transcript.finish(), maxlen=0)
        sentences = (*made.warnings, *self.cut_off(made.limit, stopped=False))
        return Reading(
            question=made.question,
            text=self.transcript.text,
            raw=self.transcript.raw,
            mentions=tuple(self.transcript.mentions),
            codes=tuple(self.codes),
            warnings=tuple(dict.fromkeys(sentences)),
            tokens=self.tokens(made),
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


def finish(work: Generator[object, None, Made]) -> Made:
    """Takes all steps of a piece of work at once; gives what it made."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            made: Made = end.value
            return made


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

    def over(self, name: str, work: Generator[Given, None, Made]) -> Generator[Given, None, Made]:
        """Times what a generator does between its steps, which it passes on."""
        while True:
            with self(name):
                try:
                    given = next(work)
                except StopIteration as end:
                    made: Made = end.value
                    return made
            yield given
