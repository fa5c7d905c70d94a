"""A click beside the mask that it needs, on this machine, in turns.

    python benchmarks/interaction.py [--model DIR] [--repeats 15] [--threads 2] [--clock wall|cpu] [--json FILE]

A second click on a slice runs the perceiver once over features that are there already; all else (drawing the raster,
bringing the mask back, naming its code) should hardly count. So a click through `Session` is measured beside the bare
pass of perceiver and head, and a slice that a region is followed to beside encoder, perceiver and head: a region is
looked for in two ways, so perceiver and head run twice. Two things are timed in turns, as in `engine.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CLOCKS, SIDE, Figure, bright_ct, checkpoint, in_turns, machine, options, show

from medsight_core.inference.engine import Engine
from medsight_core.inference.inputs import draw_prompts, slice_pixels, slice_transform
from medsight_core.inference.session import Session
from medsight_core.regions import Prompt

SLICES = 3
WAYS = 2
"""In so many ways a region is looked for on the next slice, see `medsight_core.inference.propagation`."""


class Bench:
    """One model, one scan.

    Args:
        folder: The checkpoint.
        repeats: Of every measurement.
        clock: One of `CLOCKS`.
    """

    def __init__(self, *, folder: Path, repeats: int, clock: Callable[[], float]) -> None:
        self.repeats, self.clock = repeats, clock
        self.engine = Engine.from_pretrained(folder, device="cpu")
        self.volume = bright_ct(SLICES)
        frame = self.volume.slice_frame(1)
        self.clicks = [
            Prompt(kind="point", points=frame.to_lps([[0, SIDE / 2 + d, SIDE / 2 - d]])) for d in (0, SIDE / 8)
        ]
        (self.vision,) = self.engine.features.get(self.volume, [1])
        raster = draw_prompts(self.clicks, frame, slice_transform(self.engine.processor, frame))
        self.raster = torch.from_numpy(raster)[None]
        self.core = self.engine.model.model

    @torch.inference_mode()
    def decode(self) -> None:
        """One mask: perceiver and head."""
        self.core.perceive(self.vision, self.raster).regions.mask_logits[:, -1].float().numpy()

    @torch.inference_mode()
    def look(self) -> None:
        """One slice without any session: the encoder, and perceiver and head for each way a region is looked for."""
        vision = self.core.vision(slice_pixels(self.engine.processor, self.volume, 2)[None])
        for _ in range(WAYS):
            self.core.perceive(vision, self.raster).regions.mask_logits[:, -1].float().numpy()

    def compare(self, name: str, goal: str, ours: Callable[[], Any], bare: Callable[[], Any], words: str) -> Figure:
        """Time of ours ÷ that of the bare thing."""
        a, b = in_turns(ours, bare, self.repeats, self.clock)
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        return Figure(
            name=name,
            ratio=statistics.median(ratios),
            spread=(min(ratios), max(ratios)),
            goal=goal,
            detail=words.format(a=statistics.median(a), b=statistics.median(b)),
        )

    def second_click(self) -> Figure:
        """A second click on cached features ÷ one mask decode."""
        session = Session(self.engine, self.volume)
        session.add(self.clicks[0], 1)
        encoded, perceived, rounds = self.engine.features.encoded, session.perceived, 0

        def click() -> None:
            nonlocal rounds
            rounds += 1
            session.add(self.clicks[1], 1)
            session.undo()

        figure = self.compare(
            "second click on cached features ÷ one mask decode", "≤ 1.2", click, self.decode, "{a:.4f} s and {b:.4f} s"
        )
        if self.engine.features.encoded != encoded or session.perceived != perceived + rounds:
            raise SystemExit("A second click encoded a slice anew or took more than one pass.")
        return figure

    def following(self) -> Figure:
        """A slice that a region is followed to ÷ encoder, and twice perceiver and head, over it."""
        mask = np.zeros((SIDE, SIDE), bool)
        mask[SIDE // 3 : -SIDE // 3, SIDE // 3 : -SIDE // 3] = True
        region = Session(self.engine, self.volume).add(Prompt(kind="mask", mask=mask), 1)
        if region is None:
            raise SystemExit("There is no region that could be followed.")

        def follow() -> None:
            self.engine.features.forget(self.volume)
            session = Session(self.engine, self.volume)
            session.adopt(region)
            for _ in session.propagate(range(1, 3)):
                pass

        words = "{a:.4f} s and {b:.4f} s, a slice of 512 x 512"
        return self.compare("one slice followed ÷ encode once and decode twice", "≤ 1.25", follow, self.look, words)


def main() -> None:
    """Measures, prints the table, writes JSON where asked."""
    given = options("Measure clicks beside bare passes of the model.", repeats=15).parse_args()
    torch.set_num_threads(given.threads)
    with checkpoint(given.model) as (folder, name):
        bench = Bench(folder=folder, repeats=given.repeats, clock=CLOCKS[given.clock])
        figures = [bench.second_click(), bench.following()]
    show(figures, machine(given, name), file=given.json)


if __name__ == "__main__":
    main()
