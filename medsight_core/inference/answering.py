"""One question while it is answered: looked at, read, written, drawn."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medsight_core.events import Done, Event, Progress, RegionFound, TextDelta, Warning
from medsight_core.inference.decoding import Prefilled, Slots, Step, Text
from medsight_core.inference.faults import is_out_of_memory
from medsight_core.inference.grounding import decode_masks, ground
from medsight_core.inference.inputs import Inputs
from medsight_core.inference.reply import Stopwatch
from medsight_core.model import ImageFeatures

if TYPE_CHECKING:
    from medsight_core.inference.engine import Engine


class Answering:
    """One question while it is answered.

    Args:
        engine: Who answers.
        made: The question made ready.
        cancel: When it is set, the answer ends after the token that is being written and says that it was stopped.
    """

    def __init__(self, engine: Engine, made: Inputs, *, cancel: threading.Event | None = None) -> None:
        self.made = made
        self.watch = Stopwatch("encode", "prefill", "decode", "masks")
        self._engine = engine
        self._cancel = cancel
        self._reply = engine.reply()
        self._features: ImageFeatures | None = None

    @property
    def stopped(self) -> bool:
        """Whether whoever asked wants no more."""
        return self._cancel is not None and self._cancel.is_set()

    def prepare(self) -> Generator[Event | None, None, Prefilled]:
        """Looks and reads, a pass of the model at each step."""
        engine, made = self._engine, self.made
        yield Progress(0, 2, "Looking at the image")
        yield from map(Warning, self._reply.warn(*made.warnings))
        self._features = yield from self.watch.over("encode", engine.perceived.see(made))
        yield Progress(1, 2, "Reading the question")
        with self.watch("prefill"):
            embeds = engine.embed(made, self._features)
        prompt = yield from self.watch.over("prefill", engine.prefixes.prefill(made, embeds))
        yield Progress(2, 2, "Answering")
        return prompt

    def take(self, step: Step) -> Iterator[Event]:
        """Events of a step of the decode loop; after the last one the answer is done."""
        # The words that a step brings come behind the masks of the codes that the step before wrote.
        self._reply.note(step)
        if not self._engine.draws_together:
            yield from self._draw()
        yield from map(TextDelta, self._reply.read(step))
        if step.last:
            yield from map(TextDelta, self._reply.transcript.finish())
            yield from self._draw()
            yield from map(Warning, self._reply.warn(*self._reply.cut_off(self.made.limit, stopped=self.stopped)))
            tokens = self._reply.tokens(self.made)
            yield Done(self._reply.answer(self._engine.provenance(self.made.limit, self.watch, tokens)))

    def _draw(self) -> Iterator[Event]:
        """Masks of the codes that have none yet."""
        reply, made = self._reply, self.made
        if not reply.codes or self._features is None:
            return
        codes, reply.codes = reply.codes, []
        with self.watch("masks"):
            logits = self._decode([code.state for code in codes], self._features)
        for code, drawn in zip(codes, logits, strict=True):
            mention = reply.transcript.mentions[reply.drawn]
            reply.drawn += 1
            with self.watch("masks"):
                region = ground(
                    drawn,
                    mention=mention,
                    probability=code.probability,
                    transform=made.transform,
                    slice_index=made.question.slice_index,
                    frame=made.frame,
                )
            if region is None:
                sentence = f'The answer points at "{mention.label}" ({mention.code}), but its mask is empty.'
                yield from map(Warning, reply.warn(sentence))
            else:
                reply.regions.append(region)
                yield RegionFound(region)

    def _decode(self, states: list[Tensor], features: ImageFeatures) -> list[NDArray[np.float32]]:
        """Mask logits; where memory does not suffice, once more without what is kept between questions."""
        try:
            return decode_masks(self._engine.model, states, features)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._engine.clear()
        return decode_masks(self._engine.model, states, features)


class Writing:
    """Answers that are written together.

    Args:
        slots: The decode loop.
    """

    def __init__(self, slots: Slots) -> None:
        self.failed = False
        """The last step did."""
        self._slots = slots
        self._owners: dict[Text, Answering] = {}

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def answerings(self) -> list[Answering]:
        """What is being written, in the order in which it joined."""
        return list(self._owners.values())

    def join(self, prompts: Sequence[tuple[Answering, Prefilled]]) -> list[tuple[Answering, Step]]:
        """Takes answers in; each gets its first word at once."""
        start = time.perf_counter()
        joined = self._slots.join([prompt for _, prompt in prompts], limits=[one.made.limit for one, _ in prompts])
        spent = time.perf_counter() - start
        steps = []
        for (answering, _), (text, first) in zip(prompts, joined, strict=True):
            answering.watch.seconds["prefill"] += spent
            steps += [(answering, step) for step in first]
            if not first[-1].last:
                self._owners[text] = answering
        return steps

    def step(self) -> list[tuple[Answering, Step]]:
        """The next word of every answer; where some are to stop, the last step of these instead."""
        steps: list[tuple[Answering, Step]] = []
        for text, answering in list(self._owners.items()):
            if answering.stopped and (last := self._slots.cut(text)) is not None:
                steps.append((self._owners.pop(text), last))
        if steps:
            return steps
        start = time.perf_counter()
        made = self._slots.step()
        spent = time.perf_counter() - start
        for answering in self._owners.values():
            answering.watch.seconds["decode"] += spent
        for text, step in made:
            steps.append((self._owners[text], step))
            if step.last:
                del self._owners[text]
        return steps

    def leave(self, answering: Answering) -> None:
        """Lets go of an answer in the middle of it."""
        for text in [text for text, one in self._owners.items() if one is answering]:
            self._slots.leave(text)
            del self._owners[text]

    def halve(self) -> Writing:
        """Gives the later half of the answers away, so that both need less memory at once."""
        other = Writing(self._slots.halve())
        other.failed = self.failed
        for text in list(self._owners)[len(self._owners) // 2 :]:
            other._owners[text] = self._owners.pop(text)
        return other
