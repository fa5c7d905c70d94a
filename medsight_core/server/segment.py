"""POST /v1/segment: what was pointed at or named on a stored volume, as a stream of events or whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from medsight_core.errors import InputError
from medsight_core.events import Event, Failed, fold
from medsight_core.server.answering import EVENTS, event_bytes
from medsight_core.server.served import Served
from medsight_core.server.trace import Trace
from medsight_core.wire.events import EventWriter
from medsight_core.wire.requests import segment_from_json, volume_named


def router(served: Served) -> APIRouter:
    """The route, for one application."""
    routes = APIRouter(tags=["segment"])

    @routes.post("/v1/segment")
    async def segment(request: Request, body: dict[str, Any]) -> Response:
        """Segments; a client that accepts text/event-stream gets the events, any other the answer."""

        def ask(cancel: threading.Event, trace: Trace) -> tuple[EventWriter, Iterator[Event]]:
            digest = volume_named(body)
            if digest is None:
                raise InputError("bad_request", 'The request lacks the field "volume".', "Add it.")
            trace.about(digest)
            volume = served.store.open(digest)
            events = served.backend.segment(segment_from_json(body, volume), cancel=cancel)
            return served.writer(volume), events

        stream = EVENTS in request.headers.get("accept", "")
        return served.respond(request.scope, ask, _events if stream else _whole, failed=_failed, stream=stream)

    return routes


def _events(writer: EventWriter, events: Iterator[Event]) -> Iterator[bytes]:
    return (event_bytes(writer.to_json(event)) for event in events)


def _whole(writer: EventWriter, events: Iterator[Event]) -> Iterator[bytes]:
    yield json.dumps({"answer": writer.answer_to_json(fold(events))}).encode()


def _failed(failure: Failed) -> bytes:
    fields = {"code": failure.code, "sentence": failure.sentence, "remedy": failure.remedy}
    return event_bytes({"type": "failed", **fields})
