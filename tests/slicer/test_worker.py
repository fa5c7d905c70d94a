"""Workers and the timer that lets them work: order, ends, failures, cancelling, and that the loop goes on meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from medsight_core.errors import InputError
from medsight_core.events import Done, Failed, TextDelta
from tests.chat.scripted import answer, events_of, scan


def finish(lib: Any, worker: Any, seconds: float = 5.0) -> list[Any]:
    """Everything that it makes, as the panel takes it: by the timer, in the event loop."""
    from qtpy import QtWidgets

    out: list[Any] = []
    parent = QtWidgets.QWidget()
    poll = lib.worker.Poll(parent, lambda: out.extend(worker.drain()))
    poll.watch(worker)
    end = time.monotonic() + seconds
    while poll.running and time.monotonic() < end:
        lib.settle(10)
    assert not poll.running, "the timer stops with the last worker"
    return out


def test_events_come_in_order_and_the_timer_stops(lib: Any) -> None:
    events = events_of(answer(scan(), 2, words=("liver",)))
    worker = lib.worker.Worker(lambda cancel: iter(events))
    assert finish(lib, worker) == events
    assert worker.ended and not worker.living and worker.drain() == []


def test_more_events_than_may_wait(lib: Any) -> None:
    many = [TextDelta(str(n)) for n in range(3 * lib.worker.MOST)]
    done = Done(answer(scan(), 2))
    worker = lib.worker.Worker(lambda cancel: iter([*many, done]))
    assert finish(lib, worker) == [*many, done]


def test_few_at_a_time_leaves_none_behind(lib: Any) -> None:
    from qtpy import QtWidgets

    events = [*(TextDelta(str(n)) for n in range(20)), Done(answer(scan(), 2))]
    worker, out, parent = lib.worker.Worker(lambda cancel: iter(events)), [], QtWidgets.QWidget()
    poll = lib.worker.Poll(parent, lambda: out.extend(worker.drain(3)))
    poll.watch(worker)
    for _ in range(100):
        lib.settle(10)
        if not poll.running:
            break
    assert out == events and not poll.running


@pytest.mark.parametrize("started", [False, True])
def test_what_goes_wrong_is_the_last_event(lib: Any, started: bool) -> None:
    def work(cancel: threading.Event) -> Iterator[Any]:
        if started:
            yield TextDelta("The")
        raise InputError("no_such_thing", "There is none.", "Ask another.")

    assert finish(lib, lib.worker.Worker(work))[-1] == Failed("no_such_thing", "There is none.", "Ask another.")

    def breaks(cancel: threading.Event) -> Iterator[Any]:
        if started:
            yield TextDelta("The")
        raise ZeroDivisionError("division by zero")

    last = finish(lib, lib.worker.Worker(breaks))[-1]
    assert last.code == "unexpected" and "ZeroDivisionError, division by zero." in last.sentence


def test_work_that_fails_before_it_yields_anything(lib: Any) -> None:
    def work(cancel: threading.Event) -> Iterator[Any]:
        raise MemoryError

    (last,) = finish(lib, lib.worker.Worker(work))
    assert last.code == "unexpected" and "MemoryError" in last.sentence


def test_a_stream_without_an_end_gets_one(lib: Any) -> None:
    (delta, last) = finish(lib, lib.worker.Worker(lambda cancel: iter([TextDelta("The")])))
    assert delta == TextDelta("The") and last.code == "stream_ended"


def test_stopping_is_at_once_and_closes_the_stream(lib: Any) -> None:
    closed, begun = threading.Event(), threading.Event()

    def work(cancel: threading.Event) -> Iterator[Any]:
        try:
            yield TextDelta("The")
            begun.set()
            cancel.wait(5)
            time.sleep(0.2)  # it takes a while to notice
            yield TextDelta(" liver")
        finally:
            closed.set()

    worker = lib.worker.Worker(work)
    worker.start()
    assert begun.wait(5)
    worker.cancel()
    assert worker.cancelled and [type(event) for event in worker.drain()] == [TextDelta, Failed]
    assert worker.living, "the thread may take its time"
    assert closed.wait(5) and worker.drain() == []


def test_an_answer_that_was_complete_before_it_was_stopped_is_complete(lib: Any) -> None:
    done = Done(answer(scan(), 2))
    worker = lib.worker.Worker(lambda cancel: iter([done]))
    worker.start()
    while worker.living:
        time.sleep(0.01)
    worker.cancel()
    assert worker.drain() == [done]


def test_the_timer_runs_for_a_worker_that_nobody_listens_to_any_more(lib: Any) -> None:
    from qtpy import QtWidgets

    free = threading.Event()

    def work(cancel: threading.Event) -> Iterator[Any]:
        free.wait(5)
        yield TextDelta("late")

    ticks: list[int] = []
    parent = QtWidgets.QWidget()
    poll = lib.worker.Poll(parent, lambda: ticks.append(1))
    poll.watch(lib.worker.Worker(work))
    lib.settle(50)
    before = len(ticks)
    assert before >= 3, "it ticks every few milliseconds"
    poll.close()
    lib.settle(30)
    assert poll.running and len(ticks) == before, "nobody is called, but the thread can go on"
    free.set()
    lib.settle(100)
    assert not poll.running


def test_a_tick_that_raises_does_not_stop_the_timer_for_good(lib: Any) -> None:
    from qtpy import QtWidgets

    events, out, failures = [TextDelta("a"), Done(answer(scan(), 2))], [], [ValueError("once")]
    worker, parent = lib.worker.Worker(lambda cancel: iter(events)), QtWidgets.QWidget()

    def tick() -> None:
        if failures:
            raise failures.pop()
        out.extend(worker.drain())

    poll = lib.worker.Poll(parent, tick)
    poll._timer.stop()
    poll._workers.append(worker)
    worker.start()
    with pytest.raises(ValueError, match="once"):
        poll._look()
    for _ in range(50):
        poll._look()
        time.sleep(0.002)
    assert out == events and not poll._workers


def test_the_window_goes_while_a_worker_lives(lib: Any) -> None:
    from qtpy import QtWidgets

    free = threading.Event()
    parent = QtWidgets.QWidget()
    poll = lib.worker.Poll(parent, lambda: None)
    worker = lib.worker.Worker(lambda cancel: iter([free.wait(5)]))
    poll.watch(worker)
    parent.deleteLater()
    lib.settle(20)
    poll.close()
    free.set()
    assert worker.cancelled


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, ""),
        (b"caf\xc3\xa9", "café"),
        ("a\0b", "ab"),
        ("\ud83d" + "\ude00", "\U0001f600"),
        ("\ud83d x", "\ufffd x"),
        ("a\r\nb\u2029c\x0bd", "a\nb\nc\nd"),
        ("x\u202ey\u2066z", "xyz"),
        (5, "5"),
        ("الكبد 肝脏 \U0001f600\n\tüß", "الكبد 肝脏 \U0001f600\n\tüß"),
    ],
)
def test_clean(lib: Any, text: object, wanted: str) -> None:
    assert lib._qt.clean(text) == wanted


def test_half_a_character_in_a_line_is_nothing_written(lib: Any) -> None:
    class Line:  # as PythonQt has it when half of an emoji was deleted
        @property
        def text(self) -> str:
            return b"\xed\xa0\xbd".decode()

    assert lib._qt.written(Line()) == ""
    assert lib._qt.written(lib._qt.qt.QLineEdit("a\u202eb")) == "ab"


def test_paths_dead_widgets_and_values(lib: Any) -> None:
    made = lib._qt
    assert made.path_of("a.md") == made.path_of(("a.md", "*")) == "a.md" and made.path_of(("", "")) == ""
    label = made.qt.QLabel("words")
    assert made.val(label.text) == "words" and made.alive(label)
    made.dispose(label)
    assert label in made._GOING
    for _ in range(5):
        lib.settle(10)
    assert not made.alive(label)
    made.dispose(label)
    assert label not in made._GOING
