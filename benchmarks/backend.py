"""A question over HTTP beside the same question in this process, and a second question beside the first, in turns.

    python benchmarks/backend.py [--model DIR] [--repeats 15] [--threads 2] [--json FILE]

The server is `medsight serve` in a process of its own on this machine, reached as any client reaches it. Both sides get
the same questions about the same slices; an answer counts from the call until its last event. Each round is about a
slice that neither has seen yet, so that all of the work is in it; then a further question about the same slice follows,
on which the model has the least to do and what lies between counts most. The answers of both sides must be equal, or
the run stops. Then a question about the whole scan is stopped in the middle, and it is seen how long the server still
works on it.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests
import torch
from common import Figure, bright_ct, checkpoint, machine, options, show

from medsight_core.backend import Backend, Whole
from medsight_core.client import RemoteBackend
from medsight_core.events import Done, Failed, TextDelta
from medsight_core.imaging.volume import Volume, open_volume
from medsight_core.inference.engine import Engine
from medsight_core.inference.local import LocalBackend
from medsight_core.regions import Answer, Question

FIRST, SECOND = "Segment the liver in this image.", "Is there a lesion?"
REPOSITORY = Path(__file__).resolve().parents[1]


@contextmanager
def serving(model: Path, *, threads: int) -> Iterator[str]:
    """`medsight serve` on a free port; gives its address."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDSIGHT_")}
    with tempfile.TemporaryDirectory() as store:
        process = subprocess.Popen(
            [sys.executable, "-m", "medsight_core.server.cli", "serve", "--port", "0", "--device", "cpu"]
            + ["--model", str(model), "--store", store],
            cwd=REPOSITORY,
            env=environment | {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        try:
            found = re.search(r"https?://\S+:\d+", process.stdout.readline())
            if found is None:
                raise SystemExit("The server did not start.")
            yield found[0]
        finally:
            process.terminate()
            process.wait()


@dataclass(kw_only=True)
class Side:
    """One way to ask.

    Attributes:
        backend: Who is asked.
        first, second: Seconds of every first and second question about a slice.
        first_text, second_text: Seconds until their first words.
    """

    backend: Backend
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    first_text: list[float] = field(default_factory=list)
    second_text: list[float] = field(default_factory=list)

    def round(self, volume: Volume, k: int) -> tuple[Answer, Answer]:
        """Two questions about a slice that nobody has seen yet."""
        one = self._ask(Question(text=FIRST, volume=volume, slice_index=k), self.first, self.first_text)
        history = ((FIRST, one.raw),)
        follow_up = Question(text=SECOND, volume=volume, slice_index=k, history=history)
        return one, self._ask(follow_up, self.second, self.second_text)

    def forget(self) -> None:
        """Leaves out what was measured so far."""
        for seconds in (self.first, self.second, self.first_text, self.second_text):
            seconds.clear()

    def _ask(self, question: Question, whole: list[float], text: list[float]) -> Answer:
        start, spoken, answer = time.perf_counter(), None, None
        for event in self.backend.ask(question):
            if isinstance(event, TextDelta) and spoken is None:
                spoken = time.perf_counter() - start
            elif isinstance(event, Done):
                answer = event.answer
        whole.append(time.perf_counter() - start)
        if answer is None:
            raise SystemExit("A question was not answered.")
        text.append(whole[-1] if spoken is None else spoken)
        return answer


def compare(name: str, goal: str, ours: list[float], other: list[float], words: str) -> Figure:
    """The ratio of two medians, and the spread of the single ratios."""
    ratios = [x / y for x, y in zip(ours, other, strict=True)]
    a, b = statistics.median(ours), statistics.median(other)
    return Figure(
        name=name,
        ratio=a / b,
        spread=(min(ratios), max(ratios)),
        goal=goal,
        detail=words.format(a=a * 1000, b=b * 1000),
    )


def measure(here: Side, there: Side, volume: Volume, repeats: int) -> list[Figure]:
    """Rounds in turns, after one that warms both up."""
    sides = (here, there)
    for number in range(repeats + 1):
        answers = {}
        for side in sides if number % 2 else reversed(sides):
            answers[id(side)] = side.round(volume, number)
        for mine, other in zip(answers[id(here)], answers[id(there)], strict=True):
            if mine.raw != other.raw or not same_masks(mine, other):
                raise SystemExit("The two sides answered differently.")
        if not number:
            here.forget()
            there.forget()
    both = "{a:.1f} ms over HTTP, {b:.1f} ms here"
    return [
        compare("HTTP ÷ in this process, a new slice", "≤ 1.05", there.first, here.first, both),
        compare("HTTP ÷ in this process, a further question", "≤ 1.05", there.second, here.second, both),
        compare(
            "first words over HTTP, second question ÷ first", "≤ 0.25", there.second_text, there.first_text,
            "{a:.1f} ms and {b:.1f} ms",
        ),
    ]  # fmt: skip


def stopping(remote: RemoteBackend, volume: Volume, repeats: int) -> str:
    """How long the server works on a question about the whole scan after its client hung up."""
    seconds = []
    question = Question(text=FIRST, volume=volume, slice_index=0)
    with requests.Session() as session:
        for number in range(repeats):
            cancel = threading.Event()
            timer = threading.Timer(0.6 + 0.1 * number, cancel.set)
            timer.start()
            whole = Whole(slices=range(volume.n_slices), exact=True)
            stopped = isinstance(list(remote.ask(question, whole=whole, cancel=cancel))[-1], Failed)
            began = time.perf_counter()
            timer.cancel()
            while running(session, remote):
                time.sleep(0.001)
            if stopped:
                seconds.append(time.perf_counter() - began)
    if not seconds:
        raise SystemExit("Every question about the scan was answered before it could be stopped.")
    return (
        f"stopped in the middle of a scan, the server worked for {1000 * statistics.median(seconds):.0f} ms more "
        f"(at most {1000 * max(seconds):.0f} ms in {len(seconds)} times; goal: 250 ms)"
    )


def running(session: requests.Session, remote: RemoteBackend) -> bool:
    """Whether the server's model works on anything."""
    text = session.get(remote.address.url("/metrics"), timeout=10).text
    return any(float(line.split()[-1]) > 0 for line in text.splitlines() if line.startswith("medsight_model_running"))


def same_masks(one: Answer, other: Answer) -> bool:
    """Whether both drew the same, bit for bit."""
    mine, theirs = ([region.mask.tobytes() for region in answer.regions] for answer in (one, other))
    return mine == theirs


def main() -> None:
    """Measures, prints the table, writes JSON where asked."""
    parser = options("A question over HTTP beside one in this process.", repeats=15)
    parser.add_argument("--scan", type=Path, help="a scan; default: something bright in noise")
    given = parser.parse_args()
    if given.clock != "wall":
        raise SystemExit("Two processes are measured, so the clock on the wall is the only one.")
    torch.set_num_threads(given.threads)
    volume = bright_ct(given.repeats + 1) if given.scan is None else open_volume(given.scan)
    repeats = min(given.repeats, volume.n_slices - 1)
    with checkpoint(given.model) as (folder, name), serving(folder, threads=given.threads) as url:
        remote = RemoteBackend(url)
        start = time.perf_counter()
        sent = remote.open(volume).sent
        spent = time.perf_counter() - start
        here = Side(backend=LocalBackend(Engine.from_pretrained(folder, device="cpu")))
        figures = measure(here, Side(backend=remote), volume, repeats)
        stopped = stopping(remote, volume, repeats)
    upload = f"the scan was sent once: {sent / 2**20:.1f} of {volume.array.nbytes / 2**20:.1f} MiB in {spent:.2f} s"
    show(figures, machine(given, name), lines=[upload, stopped], file=given.json)


if __name__ == "__main__":
    main()
