"""The outermost layer: an id for every request, one line about it in the log, and no error that escapes.

A line says which route, which status, how long and how many tokens. Text, names, identifiers of patients, paths, query
strings and header values have no way into it: there is no field for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import Any, Final

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsight_core.server.metrics import Metrics
from medsight_core.server.problems import internal_error, plain_error, problem, stopping
from medsight_core.server.trace import Trace, trace_of
from medsight_core.wire import PROTOCOL

LOGGER: Final = "medsight.server"
CLIENT_GONE: Final = 499
"""Logged as the status where the client went away before it had its answer, as nginx does."""

HEAR_OUT_SECONDS: Final = 10.0
"""How long the rest of a request that was refused is read."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
"""Methods that are named in the log; a stranger may send any word as one."""


def route_of(scope: Scope) -> str:
    """The template of the route, such as ``/v1/volumes/{digest}``; never what stands in the braces."""
    return getattr(scope.get("route"), "path", "unmatched")


class Edge:
    """Around everything else: ids, log, figures, headers that every response has; turns what escapes into a 500.

    Args:
        app: What it goes around.
        metrics: Where figures go.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._log = logging.getLogger(LOGGER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = trace_of(scope)
        start = time.monotonic()
        status = 0
        body = _Body(scope, receive)
        instead: bytes | None = None

        async def send_on(message: Message) -> None:
            nonlocal status, instead
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400:
                    await body.hear_out()
                if status == 413 and not _is_json(message):  # by the limit on bodies, which knows plain text only
                    response = problem(plain_error(status), scope)
                    message = {**message, "headers": response.raw_headers}
                    instead = bytes(response.body)
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Request-Id"] = trace.request_id
                headers["MedSIGHT-Protocol"] = str(PROTOCOL)
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            elif instead is not None:
                message = {"type": message["type"], "body": instead}
            await send(message)

        try:
            await self._app(scope, body.receive, send_on)
        except asyncio.CancelledError:  # the server ends and waits no longer; nobody waits for this task but the server
            if not status:
                await problem(stopping(), scope)(scope, body.receive, send_on)
        except Exception as error:
            self._log.error("request=%s %s", trace.request_id, where(error))
            if not status:
                await problem(internal_error(), scope)(scope, body.receive, send_on)
            # Where the response has begun, it breaks off: the server closes the connection of one that is incomplete.
        finally:
            self._note(scope, trace, CLIENT_GONE if trace.gone else status, time.monotonic() - start)

    def _note(self, scope: Scope, trace: Trace, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        route = route_of(scope)
        self._metrics.request(method=method, route=route, status=status, seconds=seconds)
        self._metrics.tokens(prompt=trace.prompt_tokens, completion=trace.completion_tokens)
        line: list[Any] = [f"request={trace.request_id}", method, route, status, f"{seconds * 1000:.0f}ms"]
        if trace.prompt_tokens or trace.completion_tokens:
            line.append(f"tokens={trace.prompt_tokens}+{trace.completion_tokens}")
        if trace.volume:
            line.append(f"volume={trace.volume}")
        if trace.code:
            line.append(f"code={trace.code}")
        self._log.info(" ".join(map(str, line)))


class _Body:
    """The body of a request, of which the rest is read where nobody else did.

    Many a client looks for a reply only once it has sent everything; to one that is hung up on in the middle of that,
    an error with a remedy looks like a broken network.

    Args:
        scope: Of the request.
        receive: Of the request.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        # A client that asks first whether it may send gets its no without sending.
        self._unread = "expect" not in headers and ("transfer-encoding" in headers or "content-length" in headers)

    async def receive(self) -> Message:
        """The next piece."""
        message = await self._receive()
        self._unread = bool(message.get("more_body"))
        return message

    async def hear_out(self) -> None:
        """Reads the rest and forgets it, for a while."""
        with anyio.move_on_after(HEAR_OUT_SECONDS):
            while self._unread:
                await self.receive()


def _is_json(message: Message) -> bool:
    return any(name == b"content-type" and b"json" in value for name, value in message["headers"])


def where(error: BaseException) -> str:
    """The kind of an unexpected error and the places it came through, without its message, which may quote content."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    return f"unexpected {type(error).__name__} at {places}"
