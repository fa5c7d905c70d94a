"""A scan, and a backend that answers as it is told; for what only the conversation around it is about."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medsight_core.backend import Handle, Info, SegmentRequest, Whole
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.regions import Answer, Provenance, Question, Region, Span

ROWS, COLUMNS = 24, 32


def scan(slices: int = 5) -> Volume:
    """An oblique volume."""
    affine = np.array([[0.6, 0.0, 0.5, -40.0], [0.0, 1.4, 0.0, 12.0], [3.2, 0.0, -0.09375, 7.0], [0, 0, 0, 1.0]])
    frame = Frame.from_affine(affine, (slices, ROWS, COLUMNS))
    return Volume(
        array=np.arange(slices * ROWS * COLUMNS, dtype=np.int16).reshape(slices, ROWS, COLUMNS),
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(slices)),
        modality="CT",
        source=Source(kind="nifti", paths=()),
    )


def region(volume: Volume, k: int, span: Span, label: str, *, column: int = 4) -> Region:
    """A square on a slice."""
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[5:12, column : column + 6] = True
    frame = volume.slice_frame(k)
    return Region(code="[C0_16]", label=label, span=span, score=0.87, slice_index=k, mask=mask, frame=frame)


def answer(volume: Volume, k: int, text: str = "The liver and the spleen.", *, words: Sequence[str] = ()) -> Answer:
    """A sentence, with a region for each of its words that are named."""
    regions, raw = [], text
    for place, word in enumerate(words):
        start = text.index(word)
        regions.append(region(volume, k, Span(start, start + len(word)), word, column=4 + 9 * place))
        raw = raw.replace(word, f"<p>{word}</p>[C0_16]")
    origin = Provenance(model="scripted", digest="sha256:1", settings={"a": 1}, timings={"decode": 0.125})
    return Answer(text=text, raw=raw, regions=tuple(regions), warnings=("Mind the gap.",), provenance=origin)


def events_of(made: Answer) -> list[Event]:
    """As a backend streams it."""
    cut = len(made.text) // 2
    return [
        Progress(0, 2, "Looking at the image"),
        TextDelta(made.text[:cut]),
        TextDelta(made.text[cut:]),
        *map(RegionFound, made.regions),
        Done(made),
    ]


class Scripted:
    """A backend that says what it is told, and notes what it was asked."""

    def __init__(self, reply: Callable[[Volume, int], Sequence[Event]]) -> None:
        self.reply = reply
        self.asked: list[tuple[Question, Whole | None]] = []
        self.segmented: list[SegmentRequest] = []
        self.cancel: threading.Event | None = None

    def info(self) -> Info:
        return Info(version="1", protocol=1, model="scripted", digest="1", device="cpu", dtype="float32")

    def open(self, volume: Volume, *, on_progress: Callable[[Progress], None] = lambda progress: None) -> Handle:
        return Handle(volume=volume)

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        self.asked.append((question, whole))
        self.cancel = cancel
        return iter(self.reply(question.volume, question.slice_index))

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        self.segmented.append(request)
        return iter(self.reply(request.volume, request.slice_index))

    def close(self) -> None:
        pass


def says(text: str = "The liver and the spleen.", *words: str) -> Callable[[Volume, int], list[Event]]:
    """A reply that is always the same."""
    return lambda volume, k: events_of(answer(volume, k, text, words=words))


def fails(code: str = "interrupted", *before: Event) -> Callable[[Volume, int], list[Any]]:
    """A reply that breaks off."""
    return lambda volume, k: [*before, Failed(code, "It broke off.", "Ask again.")]
