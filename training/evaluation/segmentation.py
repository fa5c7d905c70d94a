"""Asks the questions and scores the answers.

What is measured is the product. An image is opened by `medsight_core.imaging`, as `medsight ask` opens it; nothing from
the manifest but the question, and for a point prompt one point, reaches the engine; masks are compared on the grid of
the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medsight_core.geometry import Frame, GridTransform
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.regions import Answer, Prompt, Question
from training.evaluation.manifest import read_mask
from training.evaluation.metrics import Mask, diagnosis_recall, dice, interior_point
from training.evaluation.questions import Case


class Answers(Protocol):
    """What is evaluated: the engine, or anything that answers as it does."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def answer_batch(self, questions: list[Question]) -> list[Answer]: ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Outcome:
    """A case, what was answered and how good it was.

    Attributes:
        case: What was asked.
        text: The answer as a person reads it.
        codes: The region codes that occurred, in order.
        area: Pixels of the union of their masks, on the grid of the truth ("text", "point") or of the image.
        dice: For "text" and "point".
        recall: For "diagnosis".
        seconds: Time of the batch by its number of questions.
        packed: The union as `numpy.packbits` gives it, for the pictures; for "text" only.
    """

    case: Case
    text: str
    codes: tuple[str, ...]
    area: int
    dice: float | None = None
    recall: float | None = None
    seconds: float = 0.0
    packed: NDArray[np.uint8] | None = None

    def prediction(self, shape: tuple[int, int]) -> Mask:
        """The union of the masks, (rows, columns) bool; ``shape`` is that of the truth."""
        if self.packed is None:
            return np.zeros(shape, dtype=bool)
        return np.unpackbits(self.packed, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def run(
    engine: Answers,
    cases: Sequence[Case],
    root: Path,
    *,
    batch: int = 8,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Asks everything, in order.

    Args:
        engine: Who answers.
        cases: Those of one image should stand together: an image is opened once while they last.
        root: Folder that the manifest's paths start from.
        batch: Questions per call of the engine.
        on_progress: Told after each batch how many questions it had.
    """
    outcomes: list[Outcome] = []
    for group in _batches(_questions(cases, root), batch):
        started = time.perf_counter()
        answers = engine.answer_batch([question for _, question in group])
        seconds = (time.perf_counter() - started) / len(group)
        for (case, question), answer in zip(group, answers, strict=True):
            outcomes.append(_score(case, question, answer, root, seconds))
        on_progress(len(group))
    return outcomes


def _questions(cases: Iterable[Case], root: Path) -> Iterator[tuple[Case, Question]]:
    name, volume = "", None
    for case in cases:
        if volume is None or case.row.image != name:
            name, volume = case.row.image, open_volume(root / case.row.image)
        prompts = (_click(case, volume, root),) if case.kind == "point" else ()
        yield case, Question(text=case.wording, volume=volume, slice_index=volume.middle, prompts=prompts)


def _click(case: Case, volume: Volume, root: Path) -> Prompt:
    """The point where a person would click: the innermost one of the truth, as a place in the image."""
    assert case.row.mask is not None  # a "point" case has one
    truth = read_mask(root / case.row.mask)
    row, column = interior_point(truth)
    return Prompt(kind="point", points=places_on(volume.slice_frame(volume.middle), [(column, row)], truth.shape))


def places_on(frame: Frame, xy: Sequence[tuple[float, float]], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Pixels (column, row) of a mask of ``shape`` as places in the image, ``(n, 3)`` LPS mm."""
    grid = GridTransform.resize((shape[0], shape[1]), (frame.shape[1], frame.shape[2]))
    x, y = grid.points(np.array(xy, dtype=np.float64)).T
    return frame.to_lps(np.stack([np.zeros(len(x)), y, x], axis=1))


def on_grid(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """A mask on a grid of ``shape`` that shows the same picture."""
    if mask.shape == shape:
        return mask
    resized = GridTransform.resize((mask.shape[0], mask.shape[1]), (shape[0], shape[1]))
    return np.asarray(resized.image(mask.astype(np.float32)) >= 0.5)


def _batches(items: Iterable[tuple[Case, Question]], size: int) -> Iterator[list[tuple[Case, Question]]]:
    group: list[tuple[Case, Question]] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _score(case: Case, question: Question, answer: Answer, root: Path, seconds: float) -> Outcome:
    shape = question.volume.slice_frame(question.slice_index).shape[1:]
    union: Mask = np.zeros(shape, dtype=bool)
    for region in answer.regions:
        if region.slice_index == question.slice_index:
            union |= region.mask
    overlap = recall = None
    if case.kind in ("text", "point"):
        assert case.row.mask is not None
        truth = read_mask(root / case.row.mask)
        union = on_grid(union, truth.shape)
        overlap = dice(union, truth)
    elif case.kind == "diagnosis":
        recall = diagnosis_recall(case.row.diagnosis or "", answer.text)
    return Outcome(
        case=case,
        text=answer.text,
        codes=tuple(region.code for region in answer.regions),
        area=int(np.count_nonzero(union)),
        dice=overlap,
        recall=recall,
        seconds=seconds,
        packed=np.packbits(union) if case.kind == "text" else None,
    )
