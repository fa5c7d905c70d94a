"""POST /v1/chat/completions: OpenAI's chat; pictures are in messages, volumes and regions in the field `medsight`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from medsight_core.errors import InputError
from medsight_core.events import Done, Event, Failed, TextDelta, fold
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Answer
from medsight_core.server.answering import event_bytes
from medsight_core.server.messages import Asked, ChatRequest, understand
from medsight_core.server.problems import openai_error
from medsight_core.server.served import Served, tokens_of, warned
from medsight_core.server.trace import Trace, trace_of
from medsight_core.wire import checked
from medsight_core.wire.events import EventWriter
from medsight_core.wire.requests import question_from_json, volume_named

UNREAD: Final = "The system message was not read: this model takes no instructions but the question."


def router(served: Served) -> APIRouter:
    """The route, for one application."""
    routes = APIRouter(tags=["chat"])

    @routes.post("/v1/chat/completions")
    async def complete(request: Request, body: ChatRequest) -> Response:
        """Answers the last message; as a stream or whole."""
        if body.model not in (None, "", served.info.model):
            raise InputError(
                "model_not_found", "This server does not have that model.", f"It has: {served.info.model}."
            )
        stream = bool(body.stream)
        form = _Form(served, body, trace_of(request.scope))

        def ask(cancel: threading.Event, trace: Trace) -> tuple[EventWriter, Iterator[Event]]:
            return _ask(served, body, cancel, trace)

        return served.respond(
            request.scope, ask, form.chunks if stream else form.whole, failed=form.failed, stream=stream
        )

    return routes


def _ask(
    served: Served, body: ChatRequest, cancel: threading.Event, trace: Trace
) -> tuple[EventWriter, Iterator[Event]]:
    """Puts the question of a request to the backend."""
    asked = understand(body.messages)
    ours = body.medsight or {}
    volume, beware = _volume(served, asked, ours, trace)
    question, whole = question_from_json(ours, volume, text=asked.text, history=asked.history)
    events = served.backend.ask(question, whole=whole, cancel=cancel, max_new_tokens=_limit(served, body))
    if asked.unread:
        beware = (*beware, UNREAD)
    return served.writer(volume), warned(events, beware)


def _volume(served: Served, asked: Asked, ours: dict[str, Any], trace: Trace) -> tuple[Volume, tuple[str, ...]]:
    """What is asked about, and what must be said about how it was read."""
    digest = volume_named(ours)
    if digest is not None:
        if asked.new_picture:
            raise InputError(
                "several_pictures", "The question came with a picture and names a volume.", "Leave one of them out."
            )
        trace.about(digest)
        return served.store.open(digest), ()
    if asked.picture is None:
        raise InputError(
            "no_picture",
            "The question comes without a picture.",
            "Send one in the message, as data:image/png;base64,..., or name a volume of /v1/volumes.",
        )
    modality = checked.text(ours.get("modality", "unknown"), "modality", longest=64)
    return served.pictures.open(asked.picture, modality=modality)


def _limit(served: Served, body: ChatRequest) -> int | None:
    """Tokens that the answer may have; what a client takes for unlimited is no more than the model's own limit."""
    most = served.info.limits.get("max_new_tokens")
    return body.limit if body.limit is None or most is None else min(body.limit, most)


class _Form:
    """The shape of OpenAI's answers, around ours.

    Args:
        served: What is served.
        body: Of the request.
        trace: Of the request, for its id.
    """

    def __init__(self, served: Served, body: ChatRequest, trace: Trace) -> None:
        self._trace = trace
        self._usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {
            "id": f"chatcmpl-{trace.request_id}",
            "created": int(time.time()),
            "model": served.info.model,
            "system_fingerprint": served.info.digest,
        }

    def chunks(self, writer: EventWriter, events: Iterator[Event]) -> Iterator[bytes]:
        """The stream: one chunk per event, its text where OpenAI's clients look for it, the rest in `medsight`."""
        role: dict[str, Any] = {"role": "assistant"}
        for event in events:
            delta, reason = role, None
            if isinstance(event, TextDelta):
                delta = role | {"content": event.text}
            elif role:
                delta = role | {"content": ""}
            if isinstance(event, Done):
                reason = _finish(event.answer)
            role = {}
            choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
            yield self._chunk(choices=[choice], medsight=writer.to_json(event))
            if isinstance(event, Done) and self._usage:
                yield self._chunk(choices=[], usage=_usage(event.answer))
        yield event_bytes("[DONE]")

    def whole(self, writer: EventWriter, events: Iterator[Event]) -> Iterator[bytes]:
        """The whole answer as one JSON object."""
        answer = fold(events)
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        content = {
            **self._head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": _finish(answer), "logprobs": None}],
            "usage": _usage(answer),
            "medsight": {"answer": writer.answer_to_json(answer)},
        }
        yield json.dumps(content).encode()

    def failed(self, failure: Failed) -> bytes:
        """The last event of a stream that failed, as OpenAI's clients raise it."""
        return event_bytes(
            {
                "error": openai_error(failure.error(), self._trace.request_id),
                "medsight": {
                    "type": "failed",
                    "code": failure.code,
                    "sentence": failure.sentence,
                    "remedy": failure.remedy,
                },
            },
            name="error",
        )

    def _chunk(self, **content: Any) -> bytes:
        return event_bytes({**self._head, "object": "chat.completion.chunk", **content})


def _finish(answer: Answer) -> str:
    """Why the answer ended there: by itself, or because it was as long as it may be."""
    limit = answer.provenance.settings.get("max_new_tokens")
    return "length" if limit is not None and tokens_of(answer)[1] >= limit else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = tokens_of(answer)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
