"""A question about a volume beside a bare pass of encoder and perceiver over its slices, on this machine, in turns.

    python benchmarks/volumes.py [--scan FILE_OR_FOLDER] [--slices 60] [--repeats 3] [--threads 2] [--clock wall|cpu]
                                 [--question TEXT] [--model DIR] [--json FILE]

Every slice has to be perceived once, whatever is asked; reading key slices, drawing and joining should hardly count.
Measured as well: how long it takes to stop, and the largest memory of the process. Without a scan it is a bright
ellipsoid in noise, 512 x 512 pixels a slice, in which a model may find nothing; a real scan costs more, for something
is drawn. Two things are timed in turns, as in `engine.py`.
"""

from __future__ import annotations

import resource
import statistics
import threading
import time
from pathlib import Path

import torch
from common import CLOCKS, QUESTION, Figure, bright_ct, checkpoint, in_turns, machine, options, show

from medsight_core.events import Failed, fold
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.looking import Looker
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.regions import Answer


class Bench:
    """One model, one scan.

    Args:
        folder: The checkpoint.
        scan: The scan.
        slices: Which of its slices.
        question: What is asked.
    """

    def __init__(self, *, folder: Path, scan: Volume, slices: range, question: str) -> None:
        self.engine = Engine.from_pretrained(folder, device="cpu")
        self.volumes = VolumeEngine(self.engine)
        self.looker = Looker(model=self.engine.model, features=self.engine.features)
        self.scan, self.slices, self.question = scan, slices, question
        self.plan = self.volumes.plan(scan, question, slices=slices).sentence
        self.answer: Answer | None = None

    def ask(self) -> None:
        """The whole way, from pixels to joined masks."""
        self.volumes.forget(self.scan)
        self.answer = fold(self.volumes.ask(self.question, self.scan, slices=self.slices))

    def look(self) -> None:
        """Encoder and perceiver alone."""
        for k in self.slices:
            self.looker.look(self.scan, [k])

    def stop(self, repeats: int) -> Figure:
        """How long it takes to stop, in the middle of looking."""
        seconds = []
        for repeat in range(repeats):
            self.volumes.forget(self.scan)
            cancel, when = threading.Event(), [0.0]

            def stop(cancel: threading.Event = cancel, when: list[float] = when) -> None:
                when[0] = time.perf_counter()
                cancel.set()

            timer = threading.Timer(0.5 + 0.13 * repeat, stop)  # at no particular moment
            timer.start()
            for event in self.volumes.ask(self.question, self.scan, slices=self.slices, cancel=cancel):
                if isinstance(event, Failed):
                    seconds.append(time.perf_counter() - when[0])
            timer.cancel()
        value = statistics.median(seconds) if seconds else float("nan")
        spread = (min(seconds), max(seconds)) if seconds else (value, value)
        return Figure(name="time to stop (s)", ratio=value, spread=spread, goal="≤ 1", detail=f"{len(seconds)} times")


def main() -> None:
    """Measures, prints the table, writes JSON where asked."""
    parser = options("Measure questions about volumes.", repeats=3)
    parser.add_argument("--scan", type=Path, help="what is asked about; default: an ellipsoid in noise")
    parser.add_argument("--slices", type=int, default=60, help="of the ellipsoid, or at most of the scan")
    parser.add_argument("--question", default=QUESTION)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scan = bright_ct(given.slices) if given.scan is None else open_volume(given.scan)
    slices = range(min(given.slices, scan.n_slices))
    with checkpoint(given.model) as (folder, model):
        bench = Bench(folder=folder, scan=scan, slices=slices, question=given.question)
        asked, looked = in_turns(bench.ask, bench.look, given.repeats, CLOCKS[given.clock])
    ratios = [look / ask for ask, look in zip(asked, looked, strict=True)]
    assert bench.answer is not None
    timings = ", ".join(f"{name} {seconds:.2f}" for name, seconds in bench.answer.provenance.timings.items())
    figures = [
        Figure(
            name=f"volume slices/s ÷ encoder-and-perceiver-only slices/s, {len(slices)} slices",
            ratio=statistics.median(ratios),
            spread=(min(ratios), max(ratios)),
            goal="≥ 0.8",
            detail=f"{statistics.median(asked):.2f} s and {statistics.median(looked):.2f} s; of the last: {timings} s",
        ),
        bench.stop(given.repeats),
        Figure(
            name="peak memory of the process (MiB)",
            ratio=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            spread=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,) * 2,
            goal="≤ 4096 for 300 slices of 512 x 512",
            detail=f"{len(bench.answer.volume_regions)} structures drawn, scan of {scan.array.nbytes / 2**20:.0f} MiB",
        ),
    ]
    measured_on = machine(given, model, scan="x".join(map(str, scan.array.shape)))
    show(figures, measured_on, lines=[bench.plan], file=given.json)


if __name__ == "__main__":
    main()
