"""A server in a process of its own: killed in the middle of an answer, started again, and how little it is sent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medsight_core.chat import Conversation, put
from medsight_core.client import RemoteBackend
from medsight_core.events import Done, RegionFound, TextDelta
from medsight_core.regions import Question
from tests.client.relay import relaying
from tests.inference.tiny import save_tiny, stack

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Process:
    """A server that listens."""

    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """Ends it without a word."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def serve(model: Path, store: Path, port: int = 0) -> Iterator[Process]:
    """`medsight serve` on this computer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDSIGHT_")}
    command = [sys.executable, "-m", "medsight_core.server.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--model", str(model), "--store", str(store), "--device", "cpu"],
        cwd=REPOSITORY,
        env=environment | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found is not None, "it said where it listens"
        yield Process(url=found[0], process=process)
    finally:
        process.kill()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_a_server_that_is_killed_in_an_answer_and_comes_back(model: Path, tmp_path: Path) -> None:
    volume = stack(np.random.default_rng(0).integers(-500, 500, (4, 60, 70)).astype(np.int16))
    conversation = Conversation()
    with serve(model, tmp_path / "store") as first:
        backend = RemoteBackend(first.url)
        assert backend.open(volume).sent > 10_000
        asked = conversation.ask("Segment the left lung in this image.", slice_index=2)
        for event in put(asked, backend, volume):
            conversation.take(event)
            if isinstance(event, TextDelta | RegionFound):
                first.kill()
    broken = conversation.last
    assert broken is not None and broken.state == "failed" and (broken.text or broken.findings)
    assert (
        broken.failure is not None and broken.failure.code == "interrupted" and broken.note.startswith("Interrupted:")
    )
    asked = conversation.retry()
    for event in put(asked, backend, volume):
        last = conversation.take(event)
    assert last.failure is not None and last.failure.code == "connection_refused" and "medsight serve" in last.note
    port = int(first.url.rpartition(":")[2])
    with serve(model, tmp_path / "store", port) as second, relaying(second.url) as relay:
        assert second.url == first.url
        for event in put(conversation.retry(), backend, volume):
            last = conversation.take(event)
        assert last.state == "done", last.note
        assert [turn.state for turn in conversation.turns] == ["failed", "done"]
        assert last.text.startswith(broken.text)
        newcomer = RemoteBackend(relay.url)
        assert newcomer.open(volume).sent == 0, "the scan outlived the server"
        question = Question(text="Where is the left lung?", volume=volume, slice_index=2)
        assert isinstance(list(newcomer.ask(question))[-1], Done)
        assert relay.sent < 3000


def test_a_second_turn_sends_next_to_nothing(model: Path, tmp_path: Path) -> None:
    volume = stack(np.random.default_rng(0).integers(-500, 500, (8, 200, 200)).astype(np.int16))
    with serve(model, tmp_path / "store") as process, relaying(process.url) as relay:
        backend = RemoteBackend(relay.url, token="a-token-of-usual-length-0123456789abcdef")
        handle = backend.open(volume)
        assert 0.5 * volume.array.nbytes < handle.sent < relay.sent < handle.sent + 3000
        raw = "The image shows the <p>left lung</p>[C2_1] and the <p>right lung</p>[C2_2], both of them clear."
        question = Question(text="Is there an effusion?", volume=volume, slice_index=3, history=(("What?", raw),))
        before = relay.sent
        assert isinstance(list(backend.ask(question, max_new_tokens=5))[-1], Done)
        assert 100 < relay.sent - before <= 2048
