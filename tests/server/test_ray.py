"""A server whose models are replicas of Ray Serve: the same answers, also when a replica dies. Skipped without Ray."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsight_core.backend import SegmentRequest, Whole
from medsight_core.client import RemoteBackend
from medsight_core.errors import CheckpointError, InputError
from medsight_core.events import Done, Event, Failed, TextDelta
from medsight_core.inference import running
from medsight_core.inference.scheduler import Scheduler
from medsight_core.regions import Question
from medsight_core.server.ray_serve import Count, Replicas
from tests.inference.tiny import stack
from tests.server.running import PATIENCE, Running, asking, data_url, picture, post, serving, until

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'medsight[ray]'")

CHAT = "/v1/chat/completions"
CPU = running.Running(device="cpu")


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Replicas]:
    """Two processes with the tiny model."""
    store = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.delenv("RAY_ADDRESS", raising=False)
        backend = Replicas(count=Count(2, 2), model=checkpoint, running=CPU, store=store, waiting=32)
        yield backend
        backend.close()


@pytest.fixture(scope="module")
def served(replicas: Replicas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with them; its folder of volumes is theirs."""
    with serving(replicas, tmp_path_factory.getbasetemp() / "store0") as server:
        yield server


def processes() -> set[int]:
    """Those of the replicas, by the name that Ray gives them."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::ServeReplica:medsight:medsight"):
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


def family(parent: int) -> set[int]:
    """A process and all that came from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            before, _, after = entry.read_text().rpartition(")")
            parents.setdefault(int(after.split()[1]), []).append(int(before.split()[0]))
    found, pending = set(), [parent]
    while pending:
        found.add(pending[-1])
        pending += parents.get(pending.pop(), [])
    return found


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses, as the system writes them, and ports on which these processes wait for others."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(os.readlink(link))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    found = [line[1].split(":") for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]
    return {(address, int(port, 16)) for address, port in found}


def kill_one() -> int:
    victim = min(processes())
    os.kill(victim, signal.SIGKILL)
    return victim


def still(answer: Any) -> Any:
    """An answer without its times and scores: what else is asked at the same moment changes their rounding."""
    if isinstance(answer, dict):
        passing = ("timings", "url", "score", "certainty")
        return {key: still(value) for key, value in answer.items() if key not in passing}
    return [still(value) for value in answer] if isinstance(answer, list) else answer


def told(events: Iterator[Event]) -> tuple[str, Event]:
    """The text that a stream told, and how it ended."""
    seen = list(events)
    return "".join(event.text for event in seen if isinstance(event, TextDelta)), seen[-1]


def test_the_number_of_replicas_is_read_exactly() -> None:
    assert (Count.parse("3"), Count.parse(" 1:4 ")) == (Count(3, 3), Count(1, 4))
    for text in ("", "0", "0:2", "3:2", "-1", "two", "1:2:3", "1:", "99999"):
        with pytest.raises(InputError, match="--replicas"):
            Count.parse(text)


def test_nobody_else_reaches_the_ports_of_ray(replicas: Replicas) -> None:
    """All are on 127.0.0.1 but one per replica, at which Ray asks for the token."""
    import grpc

    assert processes() <= family(os.getpid())
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # in either of the ways in which the system writes it
    others = {port for address, port in listening(family(os.getpid())) if address not in loopback}
    assert others <= {port for _, port in listening(processes())} and len(others) <= 2
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    for port in others:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method in ("/ray.serve.ASGIService/HandleRequest", "/ray.serve.ASGIService/HandleRequestStreaming"):
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(method)(b"", timeout=30)
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_same_answer_as_without_replicas(served: Running, running: Running) -> None:
    for body in (
        {"messages": asking()},
        {"messages": asking("Segment the left lung in this image.", data_url(picture(seed=5)))},
    ):
        with_replicas, without = (post(server.url, CHAT, json=body).json() for server in (served, running))
        assert still(with_replicas["medsight"]) == still(without["medsight"])
        assert with_replicas["medsight"]["answer"]["regions"]


def test_volumes_and_clicks_go_to_the_replicas_by_their_digest(served: Running, backend: Scheduler) -> None:
    volume = stack(np.random.default_rng(3).integers(0, 900, (4, 40, 48)).astype(np.int16))
    question = Question(text="Segment the left lung.", volume=volume, slice_index=1)
    remote = RemoteBackend(served.url)
    for asked in (
        lambda one: one.ask(question),
        lambda one: one.ask(question, whole=Whole()),
        lambda one: one.segment(SegmentRequest(volume=volume, slice_index=1, text="left lung")),
    ):
        there, here = told(asked(remote)), told(asked(backend))
        assert isinstance(there[1], Done) and isinstance(here[1], Done)
        assert there[0] == here[0] and there[1].answer.text == here[1].answer.text
        regions = [[*one.answer.regions, *one.answer.volume_regions] for one in (there[1], here[1])]
        assert [region.label for region in regions[0]] == [region.label for region in regions[1]]
        for one, other in zip(*regions, strict=True):
            np.testing.assert_array_equal(one.mask, other.mask)


def test_what_is_wrong_with_a_question_is_said_as_ever(served: Running) -> None:
    reply = post(served.url, CHAT, json={"messages": asking(), "medsight": {"slice": 7}})
    assert reply.status_code == 400 and reply.json()["code"] == "slice_out_of_range"


def test_a_killed_replica_loses_no_answer(served: Running) -> None:
    """Under load, whole and as streams; and another one takes its place."""
    before = until(lambda: processes() if len(processes()) == 2 else None)
    pictures = [data_url(picture(seed=seed)) for seed in range(4)]
    bodies = [{"messages": asking(url=url)} for url in pictures]
    expected = [still(post(served.url, CHAT, json=body).json()["medsight"]) for body in bodies]
    ended, under_way = threading.Event(), threading.Barrier(7)
    wrong: list[str] = []

    def keep_asking(number: int, *, stream: bool) -> int:
        count, waited = 0, False
        while not ended.is_set() or count < 3:
            which = (number + count) % len(pictures)
            reply = post(served.url, CHAT, json=bodies[which] | {"stream": stream})
            if reply.status_code != 200:
                wrong.append(f"{reply.status_code} {reply.text[:300]}")
            elif not stream and still(reply.json()["medsight"]) != expected[which]:
                wrong.append(f"{reply.json()['medsight']}, expected {expected[which]}")
            elif stream and "data: [DONE]" not in reply.text:
                wrong.append(reply.text[-300:])
            count += 1
            if not waited:
                waited = bool(under_way.wait(PATIENCE) or True)
        return count

    with ThreadPoolExecutor(6) as threads:
        asking_now = [threads.submit(keep_asking, number, stream=number % 3 == 2) for number in range(6)]
        under_way.wait(PATIENCE)
        victim = kill_one()
        until(lambda: victim not in processes())
        until(lambda: len(processes()) == 2)
        ended.set()
        counts = [one.result() for one in asking_now]
    assert not wrong
    assert sum(counts) >= 18 and processes() != before


def test_a_stream_goes_on_with_another_replica(replicas: Replicas) -> None:
    """Every slice is read, which takes a while; one of the processes that read dies."""
    until(lambda: len(processes()) == 2)
    volumes = [stack(np.random.default_rng(seed).integers(0, 900, (30, 40, 48)).astype(np.int16)) for seed in range(4)]

    def ask(number: int) -> tuple[str, Event]:
        question = Question(text="Segment the left lung.", volume=volumes[number], slice_index=1)
        return told(replicas.ask(question, whole=Whole(exact=True)))

    expected = [ask(number) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        streams = [threads.submit(ask, number) for number in range(4)]
        until(lambda: any(one.running() for one in streams))
        kill_one()
        got = [one.result() for one in streams]
    for (text, end), (wanted, _) in zip(got, expected, strict=True):
        assert isinstance(end, Done) and text == wanted == end.answer.text


def test_an_answer_that_nobody_wants_any_more_ends(replicas: Replicas) -> None:
    volume = stack(np.random.default_rng(9).integers(0, 900, (60, 40, 48)).astype(np.int16))
    cancel = threading.Event()
    question = Question(text="Segment the left lung.", volume=volume, slice_index=1)
    stream = replicas.ask(question, whole=Whole(exact=True), cancel=cancel)
    next(stream)
    cancel.set()
    *_, end = stream
    assert isinstance(end, Failed) and end.code == "stopped"
    short = replicas.ask(Question(text="What is shown?", volume=volume, slice_index=0))
    assert isinstance(told(short)[1], Done)


def test_a_missing_model_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Replicas(count=Count(1, 1), model=tmp_path, running=CPU, store=tmp_path / "store", waiting=2)
    assert not (tmp_path / "store").exists()
