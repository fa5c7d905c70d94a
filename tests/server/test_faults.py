"""What goes wrong while an answer is made: clients that go away or stall, a device that fails, a defect of ours."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medsight_core.backend import Info, SegmentRequest, Whole
from medsight_core.errors import MedSightError
from medsight_core.events import Event, Failed, TextDelta
from medsight_core.inference.engine import Engine
from medsight_core.inference.scheduler import Scheduler
from medsight_core.regions import Question
from tests.server.running import (
    PATIENCE,
    PacedHead,
    Running,
    asking,
    data_url,
    figure,
    get,
    paced_engine,
    picture,
    post,
    raw_request,
    serving,
    until,
)

CHAT = "/v1/chat/completions"


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Closed, so that the model does not get on; opened at the end."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def slow(checkpoint: Path) -> Iterator[Scheduler]:
    """A model that takes its time over each word."""
    scheduler = Scheduler(paced_engine(checkpoint, pause=0.05))
    yield scheduler
    scheduler.close()


def steps(backend: Scheduler) -> int:
    """How often the model was asked for a word."""
    head = backend.engine.model.lm_head
    assert isinstance(head, PacedHead)
    return head.calls


@pytest.mark.parametrize("stream", [True, False])
def test_when_the_client_goes_away_the_model_stops(slow: Scheduler, tmp_path: Path, stream: bool) -> None:
    alone = len(slow.engine.answer(_question()).raw)
    whole = steps(slow)
    assert alone and whole > 5, "an answer long enough to be interrupted"
    with serving(slow, tmp_path) as server:
        connection = raw_request(server.url, json.dumps({"messages": asking(), "stream": stream}).encode())
        until(lambda: steps(slow) > whole + 2)
        connection.close()
        until(lambda: server.work.under_way == 0 and slow.running == 0)
        assert steps(slow) < 2 * whole
        assert figure(server.url, 'medsight_cancelled_total{why="gone"}') == 1
        assert figure(server.url, "medsight_answers_under_way") == 0


def _question(text: str = "What is this?") -> Question:
    import io

    from medsight_core.imaging.photograph import read_photograph

    volume = read_photograph(Path("picture"), content=io.BytesIO(picture()))
    return Question(text=text, volume=volume, slice_index=0)


def test_one_who_waits_in_the_queue_and_goes_away_is_not_answered(
    checkpoint: Path, tmp_path: Path, gate: threading.Event
) -> None:
    backend = Scheduler(paced_engine(checkpoint, gate=gate), together=1)
    with serving(backend, tmp_path) as server:
        first = raw_request(server.url, json.dumps({"messages": asking()}).encode())
        until(lambda: server.work.under_way == 1)
        second = raw_request(server.url, json.dumps({"messages": asking("And this?")}).encode())
        until(lambda: server.work.under_way == 2)
        second.close()
        gate.set()
        first.settimeout(PATIENCE)
        assert first.recv(64).startswith(b"HTTP/1.1 200")
        first.close()
        until(lambda: server.work.under_way == 0)
    backend.close()


class Babbler:
    """A backend that never stops talking, and says much at once; it notes when it is told to stop."""

    def __init__(self) -> None:
        self.said = 0
        self.stopped = threading.Event()

    def info(self) -> Info:
        return Info(version="0", protocol=1, model="babbler", digest="0" * 16, device="cpu", dtype="float32")

    def open(self, volume: Any, **options: Any) -> Any:
        raise NotImplementedError

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        assert cancel is not None
        try:
            while not cancel.is_set():
                self.said += 1
                yield TextDelta("blah " * 20_000)
        finally:
            self.stopped.set()

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        raise NotImplementedError

    def close(self) -> None:
        return None


def test_a_client_that_reads_nothing_holds_up_its_own_answer_only_and_not_for_ever(
    engine: Engine, tmp_path: Path
) -> None:
    backend = Babbler()
    with serving(backend, tmp_path, stalled_seconds=1.0, backlog=4) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        body = json.dumps({"messages": asking(), "stream": True}).encode()
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        until(lambda: backend.said > 0)
        assert get(server.url, "/healthz").status_code == 200  # meanwhile
        until(backend.stopped.is_set)
        until(lambda: server.work.under_way == 0)
        assert figure(server.url, 'medsight_cancelled_total{why="stalled"}') == 1
        assert backend.said < 200, "what is not taken is not made"
        connection.close()


def test_it_shows_that_it_lives_while_the_model_works(checkpoint: Path, tmp_path: Path, gate: threading.Event) -> None:
    backend = Scheduler(paced_engine(checkpoint, gate=gate))
    with serving(backend, tmp_path, keep_alive_seconds=0.05) as server:
        connection = raw_request(server.url, json.dumps({"messages": asking(), "stream": True}).encode())
        connection.settimeout(PATIENCE)
        heard = b""
        while heard.count(b"\n: still at work\n\n") < 3:
            heard += connection.recv(65536)
        assert get(server.url, "/healthz").json() == {"status": "ok"}
        gate.set()
        while b"[DONE]" not in heard:
            heard += connection.recv(65536)
        connection.close()
    backend.close()


class Broken(Babbler):
    """Fails as it is told to."""

    sick: MedSightError | None = None

    def __init__(self, *failures: Event | Exception) -> None:
        super().__init__()
        self.failures = failures

    def ask(self, question: Question, **options: Any) -> Iterator[Event]:
        for failure in self.failures:
            if isinstance(failure, Exception):
                raise failure
            yield failure


def test_a_defect_of_ours_is_a_500_whose_message_stays_out_of_reply_and_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="medsight")
    with serving(Broken(KeyError("Doe^John")), tmp_path) as server:
        reply = post(server.url, CHAT, json={"messages": asking("Is Doe^John ill?")})
        assert (reply.status_code, reply.json()["code"]) == (500, "internal_error")
        assert reply.json()["request_id"] == reply.headers["x-request-id"]
        until(lambda: "internal_error" in caplog.text)
    assert "Doe" not in reply.text
    assert "Doe" not in caplog.text
    assert f"request={reply.headers['x-request-id']} unexpected KeyError at ask" in caplog.text


def test_a_failure_after_the_first_words_ends_the_stream_with_its_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="medsight")
    backend = Broken(TextDelta("There"), Failed("out_of_memory", "The memory is full.", "Ask for less."))
    with serving(backend, tmp_path) as server:
        reply = post(server.url, CHAT, json={"messages": asking(), "stream": True})
        assert reply.status_code == 200
        *_, last = (line for line in reply.text.split("\n\n") if line)
        assert last.startswith("event: error\ndata: ")
        said = json.loads(last.removeprefix("event: error\ndata: "))
        assert said["medsight"] == {
            "type": "failed", "code": "out_of_memory", "sentence": "The memory is full.", "remedy": "Ask for less.",
        }  # fmt: skip
        assert said["error"]["code"] == "out_of_memory"
        assert said["error"]["request_id"] == reply.headers["x-request-id"]
        assert "[DONE]" not in reply.text
        until(lambda: "code=out_of_memory" in caplog.text)


def test_a_defect_after_the_first_words_is_told_without_its_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Broken(TextDelta("There"), KeyError("Doe^John")), tmp_path) as server:
        reply = post(server.url, CHAT, json={"messages": asking(), "stream": True})
        assert "internal_error" in reply.text
    assert "Doe" not in reply.text + caplog.text


def test_a_stream_that_ends_without_an_answer_is_a_named_error(tmp_path: Path) -> None:
    with serving(Broken(TextDelta("There")), tmp_path) as server:
        reply = post(server.url, CHAT, json={"messages": asking()})
        assert (reply.status_code, reply.json()["code"]) == (500, "stream_ended")
        streamed = post(server.url, CHAT, json={"messages": asking(), "stream": True})
        assert "stream_ended" in streamed.text
        assert "[DONE]" not in streamed.text


def test_a_failed_device_makes_it_not_ready_but_alive(tmp_path: Path) -> None:
    backend = Broken()
    with serving(backend, tmp_path) as server:
        assert get(server.url, "/readyz").status_code == 200
        backend.sick = MedSightError("device_failed", "The GPU has failed.", "")
        sick = get(server.url, "/readyz")
        assert (sick.status_code, sick.json()["code"]) == (503, "device_failed")
        assert get(server.url, "/healthz").status_code == 200


def test_while_it_drains_it_says_so_and_ends_what_it_began(
    checkpoint: Path, tmp_path: Path, gate: threading.Event
) -> None:
    backend = Scheduler(paced_engine(checkpoint, gate=gate))
    replies: list[Any] = []
    with serving(backend, tmp_path) as server:
        thread = threading.Thread(
            target=lambda: replies.append(post(server.url, CHAT, json={"messages": asking(), "stream": True}))
        )
        thread.start()
        until(lambda: server.work.under_way == 1)
        server.server.should_exit = True
        until(lambda: server.work.draining)
        assert get(server.url, "/readyz").json()["code"] == "stopping"
        assert get(server.url, "/healthz").status_code == 200
        refused = post(server.url, CHAT, json={"messages": asking()})
        assert (refused.status_code, refused.json()["code"]) == (503, "stopping")
        gate.set()
        thread.join(PATIENCE)
        assert "[DONE]" in replies[0].text
    backend.close()


def test_what_takes_longer_than_the_drain_is_cut_short_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    backend = Scheduler(paced_engine(checkpoint, pause=0.3))
    replies: list[Any] = []
    with serving(backend, tmp_path, drain_seconds=0.5) as server:
        thread = threading.Thread(target=lambda: replies.append(post(server.url, CHAT, json={"messages": asking()})))
        thread.start()
        until(lambda: steps(backend) > 1)
        server.server.should_exit = True
        thread.join(PATIENCE)
    assert replies[0].status_code == 200
    assert any("stopped" in said for said in replies[0].json()["medsight"]["answer"]["warnings"])
    backend.close()


def test_answers_do_not_mix(running: Running, engine: Engine) -> None:
    """Each of many clients at once asks about another picture, and gets what the engine says of that one alone."""
    pictures = [picture(seed=seed) for seed in range(8)]
    replies: dict[int, Any] = {}

    def ask(number: int) -> None:
        reply = post(running.url, CHAT, json={"messages": asking(url=data_url(pictures[number]))})
        replies[number] = reply.json()["medsight"]["answer"]["raw"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    import io

    from medsight_core.imaging.photograph import read_photograph

    for number, content in enumerate(pictures):
        volume = read_photograph(Path("picture"), content=io.BytesIO(content))
        assert replies[number] == engine.answer(Question(text="What is this?", volume=volume, slice_index=0)).raw
    assert len(set(replies.values())) > 1


def test_the_models_thread_is_never_the_event_loops(checkpoint: Path, tmp_path: Path) -> None:
    backend = Scheduler(paced_engine(checkpoint, pause=0.2))
    with serving(backend, tmp_path) as server:
        connection = raw_request(server.url, json.dumps({"messages": asking()}).encode())
        until(lambda: steps(backend) > 0)
        before, answered = steps(backend), 0
        start = time.monotonic()
        while steps(backend) == before and time.monotonic() - start < PATIENCE:
            answered += get(server.url, "/healthz").status_code == 200
        assert answered > 0, "the server answers between two words of the model"
        connection.close()
    backend.close()


def test_no_thread_is_left_of_an_answer(running: Running) -> None:
    torch.set_num_threads(1)
    for _ in range(3):
        assert post(running.url, CHAT, json={"messages": asking(), "stream": True}).status_code == 200
    before = threading.active_count()
    for _ in range(5):
        assert post(running.url, CHAT, json={"messages": asking(), "stream": True}).status_code == 200
    assert threading.active_count() <= before
