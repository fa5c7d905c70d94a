"""How the events of a request reach whoever reads them."""

from __future__ import annotations

import threading
import time

import pytest

from medsight_core.events import Event, Failed, TextDelta
from medsight_core.inference.jobs import STOPPED, Job, Stop, Stream

PATIENCE = 30.0


def new_job() -> Job:
    return Job("words", lambda: iter(()), Stop(None))


def read(job: Job, into: list[Event]) -> threading.Thread:
    """Reads a request in a thread."""
    thread = threading.Thread(target=lambda: into.extend(Stream(job)), daemon=True)
    thread.start()
    return thread


def test_events_that_come_fast_are_all_read_in_their_order() -> None:
    job, got = new_job(), list[Event]()
    thread = read(job, got)
    said: list[Event] = [TextDelta(f"{number} ") for number in range(50)]
    for event in said:
        job.put(event)
        time.sleep(0.001)
    job.put(STOPPED)
    thread.join(PATIENCE)
    assert got == [*said, STOPPED]


def test_a_lonely_event_is_read_though_nothing_follows() -> None:
    job, got = new_job(), list[Event]()
    thread = read(job, got)
    for number in range(3):
        job.put(TextDelta(f"{number}"))
        end = time.monotonic() + PATIENCE
        while len(got) <= number and time.monotonic() < end:
            time.sleep(0.001)
        assert len(got) == number + 1, "it waits for the next one"
    job.put(Failed("a", "b", "c"))
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_words_are_gathered_after_others_and_the_end_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsight_core.inference.jobs.TOGETHER_SECONDS", PATIENCE)
    job, got = new_job(), list[Event]()
    thread = read(job, got)
    job.put(TextDelta("a"))
    while not got:
        time.sleep(0.001)
    job.put(TextDelta("b"))
    time.sleep(0.05)
    assert got == [TextDelta("a")]
    job.put(STOPPED)
    thread.join(PATIENCE / 2)
    assert not thread.is_alive()
    assert got == [TextDelta("a"), TextDelta("b"), STOPPED]
