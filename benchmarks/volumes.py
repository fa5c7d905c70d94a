"""A question about a volume beside a bare pass of encoder and perceiver over its slices, on this machine, in turns.

    python benchmarks/volumes.py [--scan FILE_OR_FOLDER] [--slices 60] [--repeats 3] [--threads 2] [--clock wall|cpu]
                                 [--question TEXT] [--model DIR] [--json FILE]

Every slice has to be perceived once, whatever is asked; reading key slices, drawing and joining should hardly count.
Measured as well: how long it takes to stop, and the largest memory of the process. Without a scan it is a bright
ellipsoid in noise, 512 x 512 pixels a slice, in which a model may find nothing; a real scan costs more, for something
is drawn. Two things are timed in turns, as in `engine.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from engine import CLOCKS, QUESTION, Figure, in_turns, random_mini, table

from medsight_core.errors import CheckpointError
from medsight_core.events import Failed, fold
from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Source, Volume, open_volume
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.inference.looking import Looker
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.regions import Answer

SIDE = 512


def ellipsoid(slices: int) -> Volume:
    """A CT with something bright in it."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:slices, :SIDE, :SIDE]
    inside = ((z - slices / 2) / (0.4 * slices)) ** 2 + ((y - 260) / 150) ** 2 + ((x - 180) / 120) ** 2 < 1
    array = np.empty((slices, SIDE, SIDE), np.int16)
    for k in range(slices):
        array[k] = rng.normal(-20, 25, (SIDE, SIDE)) + 120 * inside[k]
    frame = Frame.from_affine(np.diag([2.0, 0.8, 0.8, 1.0])[[2, 1, 0, 3]], array.shape)
    return Volume(
        array=array,
        frame=frame,
        slice_frames=tuple(frame.slice(k) for k in range(slices)),
        modality="CT",
        source=Source(kind="nifti", paths=(Path("scan.nii"),)),
    )


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
        self.plan = self.volumes.plan(scan, slices=slices).sentence
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
    parser = argparse.ArgumentParser(description="Measure questions about volumes.")
    parser.add_argument("--scan", type=Path, help="what is asked about; default: an ellipsoid in noise")
    parser.add_argument("--slices", type=int, default=60, help="of the ellipsoid, or at most of the scan")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--model", type=Path, help="checkpoint; default: medsight-mini, else random weights")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="for torch")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with --threads 1, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder, what = open_checkpoint(given.model).folder, ""
        except CheckpointError:
            if given.model is not None:
                raise
            folder, what = random_mini(Path(scratch) / "random-mini"), " (random weights: medsight-mini is not here)"
        scan = ellipsoid(given.slices) if given.scan is None else open_volume(given.scan)
        slices = range(min(given.slices, scan.n_slices))
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
    machine = {
        "model": folder.name + what,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": given.threads,
        "torch": torch.__version__,
        "repeats": given.repeats,
        "clock": given.clock,
        "scan": "x".join(map(str, scan.array.shape)),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(bench.plan)
    print(table(figures))
    if given.json is not None:
        content = {"machine": machine, "figures": [asdict(figure) for figure in figures]}
        given.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
