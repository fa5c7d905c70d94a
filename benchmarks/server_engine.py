"""Many questions at once beside one at a time, and a second question beside the first, on this machine, in turns.

    python benchmarks/server_engine.py [--model DIR] [--repeats 9] [--tokens 64] [--threads 2] [--clock wall|cpu]
        [--json FILE]

All goes through the `Scheduler`, as a server does it. Every question is about an image of its own. Writing is what a
batch makes cheaper: a step for eight texts costs little more than one for a single text. Looking is not: encoder and
perceiver are busy with one image alone, and each image costs what it costs. So throughput is measured twice, on images
that were looked at before, where every question reads other words than the one before it, and on images that nobody has
seen yet. Answers are written to ``--tokens`` tokens, whatever the model would say. Two things are timed in turns, as in
`engine.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import torch
from common import CLOCKS, Figure, checkpoint, in_turns, machine, options, show

from medsight_core.events import TextDelta, fold
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.scheduler import Scheduler
from medsight_core.regions import Question

SIDE, CLIENTS = 512, 16


def picture(seed: int) -> Volume:
    """A CT slice: a bright disc in noise, somewhere else for each seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    y, x = rng.uniform(SIDE / 4, SIDE * 3 / 4, 2)
    disc = (rows - y) ** 2 + (columns - x) ** 2 < (SIDE / 8) ** 2
    frame = Frame.from_affine(np.diag([3.0, 0.8, 0.8, 1.0])[[2, 1, 0, 3]], (1, SIDE, SIDE))
    return Volume(
        array=(rng.normal(0, 30, (1, SIDE, SIDE)) + 150 * disc).astype(np.int16),
        frame=frame,
        slice_frames=(frame,),
        modality="CT",
        source=Source(kind="nifti", paths=(Path("scan.nii"),)),
    )


class Bench:
    """One model behind one scheduler.

    Args:
        folder: The checkpoint.
        repeats: Of every measurement.
        tokens: Of every answer.
        clock: One of `CLOCKS`.
    """

    def __init__(self, *, folder: Path, repeats: int, tokens: int, clock: Callable[[], float]) -> None:
        self.repeats, self.tokens, self.clock = repeats, tokens, clock
        self.engine = Engine.from_pretrained(folder, device="cpu")
        head = self.engine.model.lm_head
        stops = self.engine.stop_ids

        def never_stop(module: object, given: object, logits: torch.Tensor) -> torch.Tensor:
            logits[..., list(stops)] = -torch.inf
            return logits

        head.register_forward_hook(never_stop)
        self.scheduler = Scheduler(self.engine)
        self.clients = ThreadPoolExecutor(CLIENTS)
        self.pictures = [picture(seed) for seed in range(CLIENTS)]
        self.numbers = count()

    def close(self) -> None:
        """Ends all threads."""
        self.scheduler.close()
        self.clients.shutdown()

    def ask(self, volume: Volume) -> str:
        """An answer to a question that was not asked before."""
        question = Question(text=f"Segment organ {next(self.numbers)} in this image.", volume=volume, slice_index=0)
        return fold(self.scheduler.ask(question, max_new_tokens=self.tokens)).raw

    def together(self, pictures: Sequence[Volume]) -> None:
        """As many clients as pictures, all at once."""
        list(self.clients.map(self.ask, pictures))

    def one_by_one(self, pictures: Sequence[Volume]) -> None:
        """One client after the other."""
        for volume in pictures:
            self.ask(volume)

    def throughput(self, what: str, goal: str, *, known: bool) -> Figure:
        """Tokens per second of all clients together ÷ of one at a time."""

        def run(way: Callable[[Sequence[Volume]], None]) -> Callable[[], None]:
            def go() -> None:
                if not known:
                    self.engine.clear()
                way(self.pictures)

            return go

        a, b = in_turns(run(self.together), run(self.one_by_one), self.repeats, self.clock)
        ratios = [y / x for x, y in zip(a, b, strict=True)]
        written = CLIENTS * self.tokens
        return Figure(
            name=f"tokens/s of {CLIENTS} questions at once ÷ one at a time, {what}",
            ratio=statistics.median(ratios),
            spread=(min(ratios), max(ratios)),
            goal=goal,
            detail=f"{written / statistics.median(a):.0f} and {written / statistics.median(b):.0f} tokens/s, "
            f"{self.tokens} tokens each",
        )

    def first_token(self) -> Figure:
        """Time to the first words of a second question on a slice ÷ of the first one."""
        volume = self.pictures[0]

        def wait() -> float:
            question = Question(text=f"Segment organ {next(self.numbers)} in this image.", volume=volume, slice_index=0)
            start = self.clock()
            stream = self.scheduler.ask(question, max_new_tokens=2)
            for event in stream:
                if isinstance(event, TextDelta):
                    spent = self.clock() - start
                    fold(stream)
                    return spent
            return self.clock() - start

        first, second = [], []
        for _ in range(self.repeats + 1):
            self.engine.clear()
            first.append(wait())
            second.append(wait())
        ratios = [y / x for x, y in zip(first[1:], second[1:], strict=True)]
        return Figure(
            name="first words of a second question on a slice ÷ of the first",
            ratio=statistics.median(ratios),
            spread=(min(ratios), max(ratios)),
            goal="≤ 0.25",
            detail=f"{statistics.median(second[1:]):.4f} s and {statistics.median(first[1:]):.4f} s",
        )

    def handing_over(self) -> Figure:
        """Time of a question alone through the scheduler ÷ through the engine in this thread."""
        volume = self.pictures[0]

        def direct() -> None:
            question = Question(text=f"Segment organ {next(self.numbers)} in this image.", volume=volume, slice_index=0)
            fold(self.engine.ask(question, max_new_tokens=self.tokens))

        a, b = in_turns(lambda: self.ask(volume), direct, 3 * self.repeats, self.clock)
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        return Figure(
            name="one question through the scheduler ÷ through the engine",
            ratio=statistics.median(ratios),
            spread=(min(ratios), max(ratios)),
            goal="≤ 1.05",
            detail=f"{statistics.median(a):.4f} s and {statistics.median(b):.4f} s",
        )

    def shares(self) -> str:
        """Where the time of a question about a new image goes."""
        self.engine.clear()
        question = Question(text="Segment the liver in this image.", volume=self.pictures[0], slice_index=0)
        spent = self.engine.answer(question, max_new_tokens=self.tokens).provenance.timings
        return ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in spent.items())


def main() -> None:
    """Measures, prints the table, writes JSON where asked."""
    parser = options("Measure many questions at once beside one at a time.", repeats=9)
    parser.add_argument("--tokens", type=int, default=64, help="of every answer")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with checkpoint(given.model) as (folder, name):
        bench = Bench(folder=folder, repeats=given.repeats, tokens=given.tokens, clock=CLOCKS[given.clock])
        try:
            figures = [
                bench.throughput("images that were looked at before", "≥ 3", known=True),
                bench.throughput("images that nobody has seen yet", "reported", known=False),
                bench.first_token(),
                bench.handing_over(),
            ]
            shares = bench.shares()
        finally:
            bench.close()
    show(figures, machine(given, name), lines=[f"A question about a new image: {shares}"], file=given.json)


if __name__ == "__main__":
    main()
