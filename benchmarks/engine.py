"""The engine beside what it is compared with, on this machine, in turns.

    python benchmarks/engine.py [--model DIR] [--repeats 7] [--tokens 96] [--threads 2] [--clock wall|cpu]
                                [--cold-starts 3] [--json FILE]

Two things are never timed one after the other but in turns, A B A B ..., so that a busy machine slows both. A figure is
the median of the repeats, a ratio the median of the ratios of neighbours. Without --model, and where medsight-mini is
not installed, a model of the same size with random weights is measured: speed does not depend on the values.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import CLOCKS, QUESTION, Figure, checkpoint, in_turns, machine, options, show
from transformers import AutoModelForCausalLM

from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.decoding import Slots, Text, prefill
from medsight_core.inference.fixed import Boards
from medsight_core.inference.grounding import decode_masks
from medsight_core.inference.loading import load
from medsight_core.inference.running import Running


class Bench:
    """The model, one image, one question.

    Args:
        folder: The checkpoint.
        repeats: Of every measurement.
        tokens: Written by every run of the decode loop.
        clock: One of `CLOCKS`.
        running: Where and how precisely; None for the CPU in fp32.
    """

    def __init__(
        self, *, folder: Path, repeats: int, tokens: int, clock: Callable[[], float], running: Running | None = None
    ) -> None:
        self.folder, self.repeats, self.tokens, self.clock = folder, repeats, tokens, clock
        begun = time.perf_counter()
        self.model, processor = load(open_checkpoint(folder), running)
        self.loaded = time.perf_counter() - begun
        """Seconds that it took to open and to load it."""
        self.model.eval()
        core = self.model.model
        image = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
        with torch.inference_mode():
            self.pixels = processor.image_processor.pixels(image)[None].to(core.device, core.dtype)
            self.input_ids = processor(text=processor.chat(QUESTION))["input_ids"].to(core.device)
            self.features = core.encode_image(self.pixels)
            self.embeds = core.embed(self.input_ids, self.features).clone()
        # Plain transformers: the library's own class around the same weights.
        with torch.device("meta"):
            self.plain = AutoModelForCausalLM.from_config(self.model.config.text_config)
        self.plain.model, self.plain.lm_head = self.model.model.language_model, self.model.lm_head
        self.plain.eval()

    def write(
        self, embeds: torch.Tensor, code_ids: frozenset[int] = frozenset(), boards: Boards | None = None
    ) -> list[list[int]]:
        """Our loop."""
        slots = Slots(self.model, stop_ids=frozenset(), code_ids=code_ids, boards=boards)
        prompts = [prefill(self.model, one[None]) for one in embeds]
        joined = slots.join(prompts, limits=[self.tokens] * len(prompts))
        texts: dict[Text, list[int]] = {text: [] for text, _ in joined}
        steps = [(text, step) for text, first in joined for step in first]
        while steps:
            for text, step in steps:
                if step.token is not None:
                    texts[text].append(step.token)
            steps = slots.step()
        return list(texts.values())

    def generate(self, embeds: torch.Tensor) -> list[list[int]]:
        """The library's loop."""
        with torch.inference_mode():
            return self.plain.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
                do_sample=False,
                max_new_tokens=self.tokens,
                eos_token_id=None,
                pad_token_id=0,
            ).tolist()

    def compare(
        self,
        name: str,
        goal: str,
        ours: Callable[[], Any],
        theirs: Callable[[], Any],
        *,
        words: str,
        speed: bool = False,
    ) -> Figure:
        """Time of ours ÷ theirs or, with ``speed``, theirs ÷ ours, which is the ratio of the speeds."""
        a, b = in_turns(ours, theirs, self.repeats, self.clock)
        ratios = [y / x if speed else x / y for x, y in zip(a, b, strict=True)]
        detail = words.format(a=statistics.median(a), b=statistics.median(b))
        return Figure(
            name=name, ratio=statistics.median(ratios), spread=(min(ratios), max(ratios)), goal=goal, detail=detail
        )

    def decoding(self, batch: int) -> Figure:
        """Decode speed ÷ that of `generate`."""
        embeds = self.embeds.expand(batch, -1, -1).contiguous()
        if self.write(embeds) != self.generate(embeds):
            raise SystemExit("The two loops write different tokens; a comparison would mean nothing.")
        written = batch * self.tokens
        return self.compare(
            f"decode speed ÷ transformers generate, batch {batch}",
            "≥ 0.95",
            lambda: self.write(embeds),
            lambda: self.generate(embeds),
            speed=True,
            words=f"{{a:.3f}} s and {{b:.3f}} s for a prompt of {embeds.shape[1]} and {written} tokens",
        )

    def capture(self, share: float) -> Figure:
        """Time with code states kept ÷ without, where about a ``share`` of the tokens are codes."""
        counts = Counter(self.write(self.embeds)[0])
        chosen: set[int] = set()
        held = 0
        for token, count in sorted(counts.items(), key=lambda item: item[1]):
            if held >= share * self.tokens:
                break
            chosen.add(token)
            held += count
        codes = frozenset(chosen)
        return self.compare(
            f"time with code capture ÷ without, {held} codes in {self.tokens} tokens",
            "≤ 1.02",
            lambda: self.write(self.embeds, codes),
            lambda: self.write(self.embeds),
            words="{a:.4f} s and {b:.4f} s",
        )

    def decoders(self, codes: int) -> Figure:
        """Time of the two mask decoders."""
        states = list(torch.randn(codes, self.embeds.shape[-1], generator=torch.Generator().manual_seed(0)))
        saved = self.model.config.mask_decoder

        def draw(decoder: str) -> None:
            self.model.config.mask_decoder = decoder
            decode_masks(self.model, states, self.features)

        try:
            return self.compare(
                f"mask decoder head ÷ perceiver, {codes} codes",
                "-",
                lambda: draw("head"),
                lambda: draw("perceiver"),
                words="{a:.4f} s and {b:.4f} s",
            )
        finally:
            self.model.config.mask_decoder = saved

    def cold_start(self, threads: int, repeats: int) -> list[Figure]:
        """`medsight ask` as a process of its own, from start to written files, and its peak memory."""
        from pydicom import examples

        scan = examples.get_path("overlay")
        seconds, worked, peaks = [], [], []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as out:
                command = [sys.executable, "-m", "medsight_core.cli", "ask", str(scan), QUESTION]
                command += [
                    "--model",
                    str(self.folder),
                    "--out",
                    str(Path(out, "answer")),
                    "--device",
                    "cpu",
                    "--quiet",
                ]
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                start = time.perf_counter()
                process = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
                )
                assert process.stderr is not None
                said = process.stderr.read()
                _, status, usage = os.wait4(process.pid, 0)
                seconds.append(time.perf_counter() - start)
                if status or not Path(out, "answer", "answer.json").is_file():
                    raise SystemExit(f"medsight ask failed: {said.strip()}")
                worked.append(usage.ru_utime + usage.ru_stime)
                peaks.append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20)
        if not seconds:
            return []
        return [
            Figure(
                name="medsight ask, cold start to written files (s)",
                ratio=statistics.median(seconds),
                spread=(min(seconds), max(seconds)),
                goal="≤ 10 s on 2 cores",
                detail=f"{Path(scan).name}, {threads} threads, {statistics.median(worked):.1f} s of CPU time",
            ),
            Figure(
                name="medsight ask, peak memory (MiB)",
                ratio=statistics.median(peaks),
                spread=(min(peaks), max(peaks)),
                goal="reported",
                detail="largest resident set of the process",
            ),
        ]


def main() -> None:
    """Measures, prints the table, writes JSON where asked."""
    parser = options("Measure the engine beside plain transformers.", repeats=9)
    parser.add_argument("--tokens", type=int, default=96, help="written by each run of a decode loop")
    parser.add_argument("--cold-starts", type=int, default=3, help="of `medsight ask`")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with checkpoint(given.model) as (folder, name):
        bench = Bench(folder=folder, repeats=given.repeats, tokens=given.tokens, clock=CLOCKS[given.clock])
        measurements: list[Callable[[], list[Figure]]] = [
            lambda: [bench.decoding(1)],
            lambda: [bench.capture(1 / 8)],
            lambda: [bench.capture(1.0)],
            lambda: [bench.decoders(1)],
            lambda: [bench.decoders(4)],
            lambda: [bench.decoding(8)],
            lambda: bench.cold_start(given.threads, given.cold_starts),
        ]
        figures: list[Figure] = []
        for measure in measurements:
            figures += measure()
            print(f"{figures[-1].name}: {figures[-1].ratio:.3f}", file=sys.stderr, flush=True)
    about = machine(given, name, transformers=transformers.__version__, python=platform.python_version())
    show(figures, about, file=given.json)


if __name__ == "__main__":
    main()
