"""Many questions, one model: a bounded queue, and one thread that does all of the model's work.

Words about slices are written together, in one batch that questions join and leave between its steps. In turn with
these steps one other piece of work is done at a time, a pass of the model or so: looking at a slice for a question that
is to join, a stroke of a segmentation, a slice of a volume. So nobody waits for a whole volume of somebody else, and a
question that nobody wants any more ends within a pass.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from medsight_core.backend import Handle, Info, SegmentRequest, Whole
from medsight_core.errors import Busy, InputError, MedSightError
from medsight_core.events import Event, Failed, Progress
from medsight_core.imaging.volume import Volume
from medsight_core.inference.answering import Answering, Writing
from medsight_core.inference.decoding import Prefilled, Step
from medsight_core.inference.engine import Engine
from medsight_core.inference.faults import failed_device, failure, is_out_of_memory, is_sticky
from medsight_core.inference.jobs import STOPPED, Job, Kind, Stop, Stream
from medsight_core.inference.local import check_whole, info_of, whole_steps
from medsight_core.inference.segmenting import Segmenter
from medsight_core.inference.volumes import VolumeEngine
from medsight_core.regions import Question

WAITING: Final = 32
"""Requests that may wait."""

TOGETHER: Final = 8
"""Answers that are written at once."""

PATIENCE: Final = 0.02
"""Seconds that a question may be held back, while others are answered, to be looked at together with the next ones."""

VOLUMES: Final = 2
"""Whole volumes that are worked on at once; each may take the memory of one."""


class Scheduler:
    """A `Backend` for many at once. Streams are read in any thread; `close` ends its own one.

    Args:
        engine: The engine; nobody else uses it meanwhile.
        waiting: Requests that may wait; one more is refused.
        together: Answers that are written at once.
        patience: Seconds that a question may be held back while others are answered.

    Attributes:
        sick: Why nothing can be asked any more; None while all is well.
    """

    def __init__(
        self, engine: Engine, *, waiting: int = WAITING, together: int = TOGETHER, patience: float = PATIENCE
    ) -> None:
        self.engine = engine
        self.sick: MedSightError | None = None
        self._volumes = VolumeEngine(engine)
        self._segmenter = Segmenter(self._volumes)
        self._most = waiting
        self._room: dict[Kind, int] = {"words": together, "slice": together, "volume": VOLUMES}
        self._patience = patience
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._turns: deque[Job] = deque()
        self._writings = [Writing(engine.slots())]
        self._seconds = 1.0  # that an answer in words takes, about
        self._changed = threading.Condition()
        self._draining = self._closed = False
        self._thread = threading.Thread(target=self._work, name="medsight-model", daemon=True)
        self._thread.start()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that are worked on."""
        return len(self._running)

    def info(self) -> Info:
        """What the engine is."""
        return info_of(self.engine)

    def open(self, volume: Volume, *, on_progress: Callable[[Progress], None] = lambda progress: None) -> Handle:
        """Nothing needs to be brought anywhere."""
        return Handle(volume=volume)

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        """See `Backend.ask`.

        Raises:
            InputError: At once: what is wrong with the question.
            Busy: Too many are waiting.
            MedSightError: device_failed, stopping.
        """
        stop = Stop(cancel)
        if whole is None:
            made = self.engine.make_ready(question, max_new_tokens=max_new_tokens)
            place = (question.volume, question.slice_index)
            return self._put(Job("words", lambda: Answering(self.engine, made, cancel=stop), stop, looks_at=place))
        check_whole(question, whole)
        how = {"cancel": stop, "max_new_tokens": max_new_tokens}
        return self._put(Job("volume", lambda: whole_steps(self._volumes, question, whole, **how), stop))

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        """See `Backend.segment`; raises what `ask` raises."""
        self._segmenter.check(request)
        stop, kind = Stop(cancel), "volume" if request.whole else "slice"
        return self._put(Job(kind, lambda: self._segmenter.steps(request, cancel=stop), stop))

    def drain(self, timeout: float) -> bool:
        """Takes nothing more and waits until all that was taken is done.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether all was done in time.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not (self._queue or self._running), timeout)

    def close(self) -> None:
        """Ends all work and the thread; streams that are under way end with `Failed`."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _put(self, job: Job) -> Stream:
        with self._changed:
            if self.sick is not None:
                raise type(self.sick)(*self.sick.args)  # a fresh one: a raised error carries its traceback along
            if self._draining:
                raise MedSightError(
                    "stopping", "The model is being stopped and takes no more questions.", "Ask again in a minute."
                )
            if len(self._queue) >= self._most:
                raise Busy(max(1.0, self._seconds * len(self._queue) / self._room["words"]))
            self._queue.append(job)
            self._changed.notify_all()
        return Stream(job)

    # -- in the thread of the model -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._admit():
                for writing in list(self._writings):
                    self._write(writing)
                self._do_other_work()
        except BaseException as error:  # a defect of ours: nobody must wait for an answer that never comes
            failure(error)
            self._fall_ill(MedSightError("failed", "The model's work ended unexpectedly.", "Start MedSIGHT again."))
        self._end_all(self.sick or MedSightError(STOPPED.code, STOPPED.sentence, STOPPED.remedy))

    def _admit(self) -> bool:
        """Takes in what there is room for; waits where there is nothing to do. False when all is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._running or self._closed)
            if self._closed or self.sick is not None:
                return False
            taken: list[Job] = []
            for job in list(self._queue):
                count = sum(other.kind == job.kind for other in (*self._running, *taken))
                if job.stop.is_set():
                    job.put(STOPPED)
                    self._queue.remove(job)
                elif count < self._room[job.kind] and not self._held_back(job):
                    taken.append(job)
                    self._queue.remove(job)
            self._running += taken
            self._changed.notify_all()
        self._turns += taken
        self._look_ahead(taken)
        return True

    def _do_other_work(self) -> None:
        """One piece of what is not writing; and as far as patience goes, all that is to be written with the rest.

        Answers that join together cost less than one by one, for every time the key/values of all are moved.
        """
        until = time.monotonic() + self._patience
        job = self._turns.popleft() if self._turns else None
        while job is not None:
            self._advance(job)
            job = next((one for one in self._turns if one.kind == "words"), None)
            if job is None or time.monotonic() >= until:
                break
            self._turns.remove(job)

    def _look_ahead(self, taken: Sequence[Job]) -> None:
        """Encodes what several questions will look at, where it goes faster together."""
        try:
            self.engine.features.look_ahead([job.looks_at for job in taken if job.looks_at is not None])
        except Exception as error:
            if is_sticky(error):
                self._fall_ill(failed_device())
            # Any other fault belongs to one of them, and shows again when that one has its turn.

    def _held_back(self, job: Job) -> bool:
        """Whether a question is worth waiting for others: where slices are looked at in passes of several."""
        return (
            job.kind == "words"
            and self.engine.features.together > 1
            and bool(self._running)
            and time.monotonic() - job.since < self._patience
        )

    def _write(self, writing: Writing) -> None:
        """The next word of every answer."""
        for answering in writing.answerings:
            job = self._job_of(answering)
            if job.dropped.is_set():
                writing.leave(answering)
                self._end(job)
        try:
            steps = writing.step()
        except Exception as error:
            self._write_fewer(writing, error)
        else:
            writing.failed = False
            for answering, step in steps:
                self._tell(writing, answering, step)
        if not len(writing) and len(self._writings) > 1:
            self._writings.remove(writing)

    def _write_fewer(self, writing: Writing, error: Exception) -> None:
        """After a step that failed: its halves by themselves, so that none fails for another one's sake."""
        if is_sticky(error):
            self._fall_ill(failed_device())
            return
        short = is_out_of_memory(error)
        if short:
            self._clear()
        if writing.failed and (short or len(writing) == 1):
            for answering in writing.answerings:
                writing.leave(answering)
                self._fail(self._job_of(answering), error)
            return
        writing.failed = True
        if len(writing) > 1:
            self._writings.append(writing.halve())

    def _tell(self, writing: Writing, answering: Answering, step: Step) -> None:
        """What a step brought to an answer."""
        job = self._job_of(answering)
        try:
            for event in answering.take(step):
                job.put(event)
        except Exception as error:
            writing.leave(answering)
            self._fail(job, error)
        else:
            if job.over:
                self._end(job)

    def _advance(self, job: Job) -> None:
        """The next piece of other work."""
        writing = self._writings[0]
        if job.dropped.is_set():
            self._end(job)
            return
        try:
            if job.answering is not None and job.stop.is_set():
                self._tell(writing, job.answering, Step(last=True))
                return
            elif (event := job.step()) is not None:
                job.put(event)
        except StopIteration as end:
            assert job.answering is not None, "all other work ends with an event that says so"
            self._join(writing, job.answering, end.value)
            return
        except InputError as error:
            job.refuse(error)
        except Exception as error:
            if not (is_out_of_memory(error) and job.can_begin_anew):
                self._fail(job, error)
                return
            job.begin_anew()
            self._clear()
        if job.over:
            self._end(job)
        else:
            self._turns.append(job)

    def _join(self, writing: Writing, answering: Answering, prompt: Prefilled) -> None:
        """An answer that can be written from now on."""
        try:
            steps = writing.join([(answering, prompt)])
        except Exception as error:
            self._fail(self._job_of(answering), error)
            return
        for _, step in steps:
            self._tell(writing, answering, step)

    def _clear(self) -> None:
        """Lets go of all that is kept between requests."""
        self._segmenter.clear()
        self._volumes.clear()
        self.engine.clear()

    def _job_of(self, answering: Answering) -> Job:
        return next(job for job in self._running if job.answering is answering)

    def _fail(self, job: Job, error: Exception) -> None:
        """Ends a request that went wrong; where the device is lost, all of them."""
        if is_sticky(error):
            self._fall_ill(failed_device())
        else:
            job.put(failure(error))
            self._end(job)

    def _fall_ill(self, error: MedSightError) -> None:
        """Nothing can be done any more; the thread ends."""
        with self._changed:
            self.sick = error

    def _end(self, job: Job) -> None:
        """A request is over, however it went."""
        job.let_go()
        with self._changed:
            self._running.remove(job)
            if job.kind == "words":
                self._seconds += 0.1 * (time.monotonic() - job.since - self._seconds)
            self._changed.notify_all()

    def _end_all(self, error: MedSightError) -> None:
        with self._changed:
            left = [*self._running, *self._queue]
            self._running, self._queue = [], []
            self._changed.notify_all()
        self._turns.clear()
        self._writings.clear()
        for job in left:
            job.let_go()
            job.put(Failed(error.code, error.sentence, error.remedy))
