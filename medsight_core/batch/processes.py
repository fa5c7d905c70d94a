"""Several plain processes, each with a model of its own and one scan at a time.

A process that dies, over a file that brings a decoder down or for want of memory, takes no more with it than the scan
it was at; another one takes its place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing import connection, get_context, parent_process
from typing import Any, Final

from medsight_core.batch.job import Job, Todo
from medsight_core.batch.rows import Row
from medsight_core.batch.who import open_for
from medsight_core.batch.worker import Worker, failed_row, put_row
from medsight_core.errors import MedSightError

DEATHS: Final = 3
"""So many processes that die one after the other without a single answer are no accident of a scan."""

SPENT: Final = ("unexpected", "device_failed")
"""Failures after which a process is not trusted with another scan: a GPU that failed once fails for ever after."""

_GRACE: Final = 10.0


def run_processes(job: Job, todos: Sequence[Todo], *, workers: int, on_row: Callable[[Row], None]) -> None:
    """Does all that is to be done.

    Args:
        job: The job.
        todos: One per scan.
        workers: Processes at once.
        on_row: Told of every row, in this process and in the order in which they come.

    Raises:
        MedSightError: The model cannot be loaded, or it makes no sense to go on. What was answered until then stays.
    """
    left = deque(todos)
    hands: list[_Hand] = []
    deaths = 0
    try:
        while left or any(hand.todo is not None for hand in hands):
            while left and len(hands) < workers:
                number = min(set(range(workers)) - {hand.number for hand in hands})
                hands.append(_Hand(job, number=number, workers=workers))
            for hand in hands:
                if hand.free and left:
                    hand.give(left.popleft())
            ready = connection.wait([hand.pipe for hand in hands])
            for hand in [hand for hand in hands if hand.pipe in ready]:
                message = hand.hear()
                if isinstance(message, Row):
                    deaths = 0
                    on_row(message)
                elif isinstance(message, MedSightError):
                    raise message
                elif message is False:
                    hands.remove(hand)
                    hand.wait()
                elif message is None:
                    hands.remove(hand)
                    if hand.free:
                        continue
                    deaths += 1
                    if hand.todo is None or deaths >= DEATHS:  # the scans are not to blame
                        raise _all_die(hand)
                    sentence = f"The process that was at this scan died ({_how(hand)})."
                    for row in settle(job, hand.todo, hand.heard, sentence):
                        on_row(row)
    finally:
        for hand in hands:
            hand.end()
        for hand in hands:
            hand.wait()


class _Hand:
    """A process and what it is at.

    Args:
        job: The job.
        number: Of the process among those that live, from 0.
        workers: How many there are.
    """

    def __init__(self, job: Job, *, number: int, workers: int) -> None:
        context = get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        self.todo: Todo | None = None
        self.heard: set[str] = set()
        self.free = False
        self.process = context.Process(
            target=_work, args=(job, theirs, number, workers), name=f"medsight-batch-{number}", daemon=True
        )
        self.process.start()
        theirs.close()  # so that its end is heard

    def give(self, todo: Todo) -> None:
        """Lets it work on a scan; that it is no longer there is heard soon enough."""
        self.todo, self.heard, self.free = todo, set(), False
        with contextlib.suppress(OSError):
            self.pipe.send(todo)

    def hear(self) -> Any:
        """What it says: a row; an error that ends the job; True when it is free; False when it goes; None when dead."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_GRACE)
            return None
        if isinstance(message, Row):
            self.heard.add(message.question)
        if isinstance(message, bool):
            self.todo, self.free = None, message
        return message

    def end(self) -> None:
        """Tells it to go: at once where it is busy, cleaning up behind itself."""
        if not self.free:
            self.process.terminate()
        self.pipe.close()

    def wait(self) -> None:
        """Until it is gone."""
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(job: Job, pipe: Any, number: int, workers: int) -> None:
    """What runs in a process."""
    _prepare(workers)
    try:
        try:
            worker = Worker(job, open_for(job.who, number))
            pipe.send(True)
            while True:
                todo = pipe.recv()
                spent = False
                for row in worker.do(todo):
                    spent = spent or row.error.get("code") in SPENT
                    pipe.send(row)
                pipe.send(not spent)
                if spent:
                    return
        except MedSightError as error:
            pipe.send(error)
    except (EOFError, OSError, KeyboardInterrupt):  # the job is over, or was stopped
        pass


def _prepare(workers: int) -> None:
    # Before torch is imported, which reads it: processes that fight over cores are slower than fewer would be.
    os.environ["OMP_NUM_THREADS"] = str(threads_for(workers))
    # Ctrl-C reaches every process of a terminal; here the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent = parent_process()

    def outlive_nobody() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=outlive_nobody, daemon=True).start()


def threads_for(workers: int) -> int:
    """Threads that each of several processes may use, unless OMP_NUM_THREADS says otherwise."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal():
        return int(said)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def settle(job: Job, todo: Todo, heard: Collection[str], sentence: str) -> Iterator[Row]:
    """The rows of a scan whose process was lost: those that it wrote, and a failed one for each that it did not.

    Args:
        job: The job.
        todo: What it was at.
        heard: Names of the questions whose rows came before it was lost.
        sentence: What happened.

    Raises:
        JobError: A row cannot be written.
    """
    error = MedSightError(
        "worker_died", sentence, "Its files may be damaged, or too large for the memory: try with --workers 1."
    )
    for question in todo.questions:
        if question.name in heard:
            continue
        row = job.row(todo.item, question)
        if row is None or row.status == "failed":
            row = failed_row(job, todo.item, question, error)
            put_row(job, todo.item, question, row)
        yield row


def _how(hand: _Hand) -> str:
    code = hand.process.exitcode
    if code is None:
        return "it no longer answers"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _all_die(hand: _Hand) -> MedSightError:
    return MedSightError(
        "workers_die",
        f"The processes die without an answer (the last one: {_how(hand)}).",
        "There may be too little memory for so many: use fewer --workers.",
    )
