"""A model on a server as a `Backend`: the scan is sent once, then words and strokes only."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import requests

from medsight_core.backend import Handle, Info, SegmentRequest, Whole
from medsight_core.client.address import Address
from medsight_core.client.checking import Check, run_checks
from medsight_core.client.handshake import INFO, PROTOCOL_HEADER, read_info
from medsight_core.client.lines import Lines, pieces, stopped
from medsight_core.client.problems import failure_of, not_medsight, problem_of
from medsight_core.client.sse import read_messages
from medsight_core.client.uploads import upload
from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Done, Event, Failed, Progress, Warning
from medsight_core.regions import Question
from medsight_core.wire import PROTOCOL, checked
from medsight_core.wire.codecs import best_codec
from medsight_core.wire.events import EventReader
from medsight_core.wire.masks import PackedMask
from medsight_core.wire.requests import question_to_json, segment_to_json
from medsight_core.wire.volumes import digest_of

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

MOST_WAITS: Final = 5
"""How often a server that is busy is asked again."""
LONGEST_WAIT: Final = 30.0
"""Seconds between two tries, whatever the server asks for."""
MODEL_HEADER: Final = "MedSIGHT-Model"
CODECS_HEADER: Final = "MedSIGHT-Codecs"

_LOOK_SECONDS: Final = 0.05
_MASK: Final = re.compile(r"/v1/masks/[A-Za-z0-9_-]+", re.ASCII)
_LARGEST_JSON: Final = 256 * 2**20


class RemoteBackend:
    """Asks a server. Methods may be called from any thread.

    What keeps an answer from beginning is raised, by the iterator's first step; what breaks it off ends the stream with
    `Failed`, and what was said until then stays said.

    Args:
        url: Of the server, such as "https://gpu.hospital.example" (see `Address.parse`).
        token: Its token.
        ca: File with the certificate authority, or certificate, that is trusted; None for those of the public ones.
        insecure_http: Allow http to another computer.
        connect_seconds, read_seconds: See `Lines`.

    Raises:
        InputError: bad_address, insecure_http, bad_token, bad_ca.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: Path | None = None,
        insecure_http: bool = False,
        **patience: float,
    ) -> None:
        self.address = Address.parse(url, insecure_http=insecure_http)
        self._lines = Lines(self.address, token=token, ca=ca, **patience)
        self._lock = threading.Lock()
        self._digests: WeakKeyDictionary[Volume, str] = WeakKeyDictionary()
        self._known: set[str] = set()
        self._model = ""

    def info(self) -> Info:
        """What the server is.

        Raises:
            MedSightError: It cannot be reached, does not let us in, or speaks another version.
        """
        with self._request("GET", INFO) as response:
            info = read_info(self._json(response), self.address)
        self._model = self._model or info.digest
        return info

    def check(self) -> list[Check]:
        """Everything between here and an answer, one by one, up to the first that is wrong."""

        def ready() -> None:
            with self._request("GET", "/readyz"):
                pass

        return run_checks((self.info, ready), tls=self.address.scheme == "https")

    def open(
        self,
        volume: Volume,
        *,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        cancel: threading.Event | None = None,
    ) -> Handle:
        """Sends a volume, unless the server has it.

        Raises:
            MedSightError: It could not be sent; too_large, storage_full ...
        """
        with self._alone(cancel):
            digest = self._digests.get(volume)
            if digest is None:
                on_progress(Progress(0, 0, "Preparing the scan"))
                digest = self._digests[volume] = digest_of(volume)
            if digest in self._known:
                return Handle(volume=volume, digest=digest)
            with self._request("HEAD", f"/v1/volumes/{digest}", refused=(404, 409), cancel=cancel) as response:
                known = response.status_code < 300
                codec = best_codec(response.headers.get(CODECS_HEADER, ""))
            sent = 0
            if not known:
                sent = upload(
                    self._request,
                    volume,
                    digest,
                    codec=codec,
                    limit_bytes=self.info().limits.get("volume_bytes"),
                    tell=on_progress,
                    cancel=cancel,
                )
            self._known.add(digest)
            return Handle(volume=volume, digest=digest, sent=sent)

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        """See `Backend.ask`."""
        said = [
            (role, text) for turn in question.history for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        body: dict[str, Any] = {
            "messages": [{"role": role, "content": text} for role, text in [*said, ("user", question.text)]],
            "stream": True,
        }
        if max_new_tokens is not None:
            if max_new_tokens < 1:  # which OpenAI's schema refuses in other words
                raise InputError("bad_limit", f"An answer may have 1 token or more, got {max_new_tokens=}.")
            body["max_completion_tokens"] = max_new_tokens

        def with_volume(digest: str) -> dict[str, Any]:
            return body | {"medsight": question_to_json(question, whole, digest=digest)}

        return self._events("/v1/chat/completions", with_volume, question.volume, cancel)

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        """See `Backend.segment`."""

        def with_volume(digest: str) -> dict[str, Any]:
            return segment_to_json(request, digest=digest)

        return self._events("/v1/segment", with_volume, request.volume, cancel)

    def close(self) -> None:
        """Forgets what the server knows; no connection outlives its request."""
        self._known.clear()

    @contextmanager
    def _alone(self, cancel: threading.Event | None) -> Iterator[None]:
        """One volume at a time is sent; who waits for another's can be stopped."""
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            if _cancelled(cancel):
                raise stopped()
        try:
            yield
        finally:
            self._lock.release()

    def _events(
        self,
        path: str,
        body: Callable[[str], dict[str, Any]],
        volume: Volume,
        cancel: threading.Event | None,
    ) -> Iterator[Event]:
        """One answer: sends what the server does not have, waits where it is busy, reads what comes."""
        healed, waits = False, 0
        try:
            while True:
                if self._digests.get(volume) not in self._known:
                    yield Progress(0, 0, "Sending the scan")
                digest = self.open(volume, cancel=cancel).digest
                accept = {"Accept": "text/event-stream"}
                with self._request(
                    "POST", path, json=body(digest), headers=accept, refused=(409, 429), cancel=cancel
                ) as response:
                    if response.status_code < 300:
                        yield from self._answer(response, volume, cancel)
                        return
                    problem = problem_of(response, self.address)
                    after = response.headers.get("Retry-After", "")
                if problem.code == "volume_unknown" and not healed:
                    healed = True
                    self._known.discard(digest)  # it was evicted there, or is another server behind the same name
                elif response.status_code == 429 and waits < MOST_WAITS:
                    waits += 1
                    yield Progress(0, 0, "Waiting for the server, which is busy")
                    _wait(min(float(after) if after.isdecimal() else 2.0, LONGEST_WAIT), cancel)
                else:
                    raise problem
        except MedSightError as error:
            if not _cancelled(cancel):
                raise
            yield _failed(error, cancel)

    def _answer(self, response: requests.Response, volume: Volume, cancel: threading.Event | None) -> Iterator[Event]:
        """The events of a response that has begun; its end, however it comes, is an event as well."""
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise not_medsight(response, self.address)
        model, before = response.headers.get(MODEL_HEADER, ""), self._model
        self._model = model or before
        if before and model and model != before:
            yield Warning(
                "The server answers with another model than before; answers of before and after do not compare."
            )
        reader = EventReader(volume, get_mask=lambda url: self._mask(url, cancel))
        try:
            for message in read_messages(pieces(response)):
                event = _event(message.name, message.data, reader)
                if event is not None:
                    yield event
                if isinstance(event, Done | Failed):
                    return
            raise EOFError
        except MedSightError as error:
            yield _failed(error, cancel)
        except (OSError, EOFError) as error:  # the errors of requests are OSErrors, too
            silent = failure_of(error, self.address).code == "timed_out"
            why = "has said nothing for too long" if silent else "broke the connection off"
            interrupted = MedSightError(
                "interrupted",
                f"{self.address.name} {why} before the answer was complete.",
                "Ask again; the scan need not be sent again.",
            )
            yield _failed(interrupted, cancel)

    def _mask(self, url: str, cancel: threading.Event | None) -> PackedMask:
        """Fetches a mask; its address is one on this server, whatever the server says."""
        if not _MASK.fullmatch(url):
            raise MedSightError("bad_reply", "The server keeps a mask at an address that is none of its own.")
        try:
            with self._request("GET", url, cancel=cancel) as response:
                content = checked.record(self._json(response), "A mask", required=("mask",), optional=None)
        except InputError as error:  # the request was ours, and not what a person put in
            raise MedSightError(error.code, error.sentence, error.remedy) from error
        return PackedMask.from_json(content["mask"])

    @contextmanager
    def _request(
        self, method: str, path: str, *, refused: tuple[int, ...] = (), **options: Any
    ) -> Iterator[requests.Response]:
        """A request whose response is no error, or one of the statuses that the caller looks at.

        Raises:
            MedSightError: What else came.
        """
        headers = {PROTOCOL_HEADER: str(PROTOCOL), **options.pop("headers", {})}
        with self._lines.request(method, path, headers=headers, **options) as response:
            if response.status_code >= 300 and response.status_code not in refused:
                raise problem_of(response, self.address)
            yield response

    def _json(self, response: requests.Response) -> Any:
        try:
            body = b""
            for piece in pieces(response):
                body += piece
                if len(body) > _LARGEST_JSON:
                    raise not_medsight(response, self.address)
            return json.loads(body)
        except OSError as error:
            raise failure_of(error, self.address) from error
        except (ValueError, RecursionError) as error:
            raise not_medsight(response, self.address) from error


def _event(name: str, data: str, reader: EventReader) -> Event | None:
    """What a message of the stream tells; None for what has no meaning here."""
    if data == "[DONE]":
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MedSightError("bad_reply", "The server's answer cannot be read: it is no JSON.", "Ask again.") from error
    if isinstance(content, dict) and "medsight" in content:
        return reader.from_json(content["medsight"])
    if isinstance(content, dict) and "type" in content:
        return reader.from_json(content)
    if name == "error":
        return Failed("failed", "The server broke the answer off without saying why.", "Ask again.")
    return None


def _failed(error: MedSightError, cancel: threading.Event | None) -> Failed:
    """The end of a stream by an error; by what else, where a person had stopped it."""
    end = stopped() if _cancelled(cancel) else error
    return Failed(end.code, end.sentence, end.remedy)


def _cancelled(cancel: threading.Event | None) -> bool:
    return cancel is not None and cancel.is_set()


def _wait(seconds: float, cancel: threading.Event | None) -> None:
    if (cancel or threading.Event()).wait(seconds):
        raise stopped()
