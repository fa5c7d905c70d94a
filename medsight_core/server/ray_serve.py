"""Several models behind one server: a `Backend` whose work is done by replicas of Ray Serve.

The server stays what it is, with the same routes, tokens and limits, in one process without a model. Each replica is a
process with a model of its own. A volume is named by its content hash and read by the replica from the same folder, or
sent to it where there is no such file. Questions about a volume go to a replica that knows it, while it has room.

A replica that dies is replaced, and what it was at is asked again of another one: nobody who waits for an answer, whole
or as a stream, has to ask again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from medsight_core.backend import Handle, Info, SegmentRequest, Whole
from medsight_core.errors import Busy, InputError, MedSightError
from medsight_core.events import Event, Failed, Progress
from medsight_core.imaging.volume import Volume
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.running import Running
from medsight_core.local_ray import has_cluster, start_ray
from medsight_core.regions import Question
from medsight_core.server.replay import Told
from medsight_core.server.store import VolumeStore
from medsight_core.wire.events import EventReader, EventWriter
from medsight_core.wire.requests import question_from_json, question_to_json, segment_from_json, segment_to_json
from medsight_core.wire.volumes import digest_of

LOSSES: Final = 3
"""How many replicas may die over one question; more, and the question is what kills them."""

VOLUMES: Final = 8
"""Volumes that a replica is known to know."""

_NAME: Final = "medsight"
_QUIET: Final = {"log_level": "ERROR", "enable_access_log": False}

_BEAT: Final = 0.1
"""Seconds after which a replica that has nothing to say shows that it lives; so soon a wish to stop is seen."""

_BUSY_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Count:
    """How many replicas there are: from ``least``, when nothing is asked, to ``most``."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Count:
        """Reads ``4`` or ``1:4``.

        Raises:
            InputError: bad_replicas.
        """
        found = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text.strip(), re.ASCII)
        least = int(found[1]) if found else 0
        most = int(found[2]) if found and found[2] else least
        if not 1 <= least <= most:
            raise InputError(
                "bad_replicas", f"--replicas takes a number from 1, or two such as 1:4; got {text[:20]!r}."
            )
        return cls(least, most)


class Replicas:
    """A `Backend` of several processes.

    Args:
        count: How many.
        model: A checkpoint; None for the built-in one.
        running: How each runs; replicas share the GPUs of the machine, or of the cluster.
        store: Folder of the volumes.
        waiting: Requests that may wait at each.

    Raises:
        CheckpointError: The model is missing or damaged.
        MedSightError: missing_package; replicas_failed: they do not start.
    """

    def __init__(self, *, count: Count, model: Path | None, running: Running, store: Path, waiting: int) -> None:
        open_checkpoint(model)  # a damaged one is named before anything is started
        serve = _start(count)
        self._digests: WeakKeyDictionary[Volume, str] = WeakKeyDictionary()
        self._waiting = waiting
        try:
            deployment = serve.deployment(
                _replica_class(serve),
                name=_NAME,
                max_ongoing_requests=2 * waiting,
                max_queued_requests=waiting,
                autoscaling_config={
                    "min_replicas": count.least,
                    "initial_replicas": count.least,
                    "max_replicas": count.most,
                    "target_ongoing_requests": 4,
                },
                ray_actor_options=_resources(count, running.device),
                health_check_period_s=5,
                graceful_shutdown_timeout_s=10,
            )
            self._handle = serve.run(
                deployment.bind(model=model, running=running, store=store, waiting=waiting),
                name=_NAME,
                route_prefix=None,
                logging_config=_QUIET,
            )
            self._info: Info = self._handle.info.remote().result()
        except RuntimeError as error:
            self.close()
            raise MedSightError(
                "replicas_failed",
                "The replicas of the model did not start.",
                "Start it without --replicas, which says what is wrong; or with fewer, where memory is short.",
            ) from error
        except BaseException:
            self.close()
            raise

    def info(self) -> Info:
        """What each of them is."""
        return self._info

    def open(self, volume: Volume, *, on_progress: Callable[[Progress], None] = lambda progress: None) -> Handle:
        """A replica reads a volume when it is asked about it."""
        return Handle(volume=volume, digest=self._digest(volume))

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        """See `Backend.ask`; what is wrong with a question is raised by the first step."""
        digest = self._digest(question.volume)
        content = {
            "question": question_to_json(question, whole, digest=digest),
            "text": question.text,
            "history": [list(turn) for turn in question.history],
            "max_new_tokens": max_new_tokens,
        }
        return self._events(content, question.volume, cancel)

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        """See `Backend.segment`; what is wrong with a request is raised by the first step."""
        content = {"segment": segment_to_json(request, digest=self._digest(request.volume))}
        return self._events(content, request.volume, cancel)

    def close(self) -> None:
        """Ends the replicas; a cluster that was there before stays."""
        import ray
        from ray import serve

        if has_cluster():
            serve.delete(_NAME)
        else:
            serve.shutdown()
        ray.shutdown()

    def _digest(self, volume: Volume) -> str:
        digest = self._digests.get(volume)
        if digest is None:
            digest = self._digests[volume] = digest_of(volume)
        return digest

    def _events(self, content: dict[str, Any], volume: Volume, cancel: threading.Event | None) -> Iterator[Event]:
        """One answer, from as many attempts as it takes."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        digest, told, losses = self._digest(volume), Told(), 0
        sent: Volume | None = None
        while True:
            handle = self._handle.options(stream=True, multiplexed_model_id=digest)
            reply = handle.answer.remote(content, digest, sent)
            try:
                yield from told.rest(_read(reply, EventReader(volume), cancel))
                return
            except RayActorError as error:
                losses += 1
                if losses >= LOSSES:
                    raise MedSightError(
                        "replicas_die",
                        f"{losses} processes died one after the other while answering.",
                        "Ask about less at once; the one who runs the server finds the reason in Ray's logs.",
                    ) from error
            except BackPressureError as error:
                raise Busy(_BUSY_SECONDS) from error
            except MedSightError as error:
                if error.code != "volume_unknown" or sent is not None:
                    raise
                sent = volume  # a picture that came with a question, or another machine of a cluster
            finally:
                reply.cancel()


def _read(reply: Any, reader: EventReader, cancel: threading.Event | None) -> Iterator[Event]:
    """The events of one attempt."""
    for said in reply:
        if cancel is not None and cancel.is_set():
            yield Failed("stopped", "The answer was stopped before it was complete.", "Ask again.")
            return
        if said is None:  # a sign of life
            continue
        if "raised" in said:
            raise _error_of(said["raised"])
        yield reader.from_json(said)


def _replica_class(serve: Any) -> type:
    """The class of a replica; made here because Ray Serve marks a method of it."""

    class Replica:
        """A process with a model."""

        def __init__(self, *, model: Path | None, running: Running, store: Path, waiting: int) -> None:
            from medsight_core.cli.backends import load_engine
            from medsight_core.inference.scheduler import Scheduler

            self._store = VolumeStore(store)
            self._scheduler = Scheduler(load_engine(model, running), waiting=waiting)
            self._threads = ThreadPoolExecutor(max_workers=2 * waiting + 4)

        async def info(self) -> Info:
            """What the model is."""
            return self._scheduler.info()

        def check_health(self) -> None:
            """Asked by Ray Serve, which replaces a replica that raises."""
            if self._scheduler.sick is not None:
                raise self._scheduler.sick

        @serve.multiplexed(max_num_models_per_replica=VOLUMES)  # type: ignore[untyped-decorator]
        async def volume(self, digest: str) -> str:
            """Notes that a volume was asked about here, so that the next question about it comes here too."""
            return digest

        async def answer(
            self, content: dict[str, Any], digest: str, sent: Volume | None
        ) -> AsyncIterator[dict[str, Any] | None]:
            """The events of one answer, ready for JSON; None now and then.

            Args:
                content: The request.
                digest: Of its volume.
                sent: The volume, where this replica did not find it by its digest.
            """
            loop, cancel = asyncio.get_running_loop(), threading.Event()
            try:
                await self.volume(digest)
                volume = await loop.run_in_executor(self._threads, self._open, digest, sent)
                writer = EventWriter(volume)
                events = await loop.run_in_executor(self._threads, self._ask, content, volume, cancel)
                while True:
                    step = loop.run_in_executor(self._threads, next, events, None)
                    while not (await asyncio.wait({step}, timeout=_BEAT))[0]:
                        yield None
                    event = step.result()
                    if event is None:
                        return
                    yield writer.to_json(event)
            except MedSightError as error:
                yield {"raised": _error_json(error)}
            finally:
                cancel.set()

        def _open(self, digest: str, sent: Volume | None) -> Volume:
            return self._store.open(digest) if sent is None else self._store.keep(sent)

        def _ask(self, content: dict[str, Any], volume: Volume, cancel: threading.Event) -> Iterator[Event]:
            if "segment" in content:
                return self._scheduler.segment(segment_from_json(content["segment"], volume), cancel=cancel)
            turns = tuple((asked, answered) for asked, answered in content["history"])
            question, whole = question_from_json(content["question"], volume, text=content["text"], history=turns)
            limit = content["max_new_tokens"]
            return self._scheduler.ask(question, whole=whole, cancel=cancel, max_new_tokens=limit)

    return Replica


def _error_json(error: MedSightError) -> dict[str, Any]:
    return {
        "code": error.code,
        "sentence": error.sentence,
        "remedy": error.remedy,
        "input": isinstance(error, InputError),
        "retry_after": error.retry_after if isinstance(error, Busy) else None,
    }


def _error_of(said: dict[str, Any]) -> MedSightError:
    if said["retry_after"] is not None:
        return Busy(said["retry_after"])
    kind = InputError if said["input"] else MedSightError
    return kind(said["code"], said["sentence"], said["remedy"])


def _start(count: Count) -> Any:
    """Starts Ray and its Serve, without an HTTP server of theirs.

    Raises:
        MedSightError: missing_package.
    """
    threads = str(max(1, (os.cpu_count() or 1) // count.most))
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    start_ray("--replicas", processes=count.most, variables=variables, niceness=0)
    from ray import serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    return serve


def _resources(count: Count, device: str) -> dict[str, Any]:
    """What Ray sets aside for a replica."""
    import ray

    gpus = 0.0 if device == "cpu" else ray.cluster_resources().get("GPU", 0.0)
    return {"num_cpus": 1, "num_gpus": min(1.0, gpus / count.most)}
