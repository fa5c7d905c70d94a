"""The response whose body an answer is: piece by piece as server-sent events, or whole as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from medsight_core.errors import MedSightError
from medsight_core.events import Failed
from medsight_core.server.config import ServerConfig
from medsight_core.server.logs import LOGGER, where
from medsight_core.server.metrics import Metrics
from medsight_core.server.problems import internal_error
from medsight_core.server.trace import Trace, trace_of
from medsight_core.server.work import Begin, Work

SIGN_OF_LIFE: Final = b": still at work\n\n"
"""A comment of the event stream; clients skip it, and proxies see that the connection is alive."""

EVENTS: Final = "text/event-stream"


def event_bytes(content: Mapping[str, Any] | str, *, name: str = "") -> bytes:
    """One server-sent event."""
    data = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode()


class _Stalled(Exception):
    """The client is there, and takes nothing."""


class AnswerResponse(Response):
    """Begins an answer when it is sent, and sends what comes.

    An answer that fails before its first piece is a problem like any other; later it is the last event of the stream.

    Args:
        begin: Starts the answer.
        failed: The last event of a stream that failed.
        work: Where answers are made.
        metrics: Where figures go.
        config: How patient to be.
        stream: Send events; else the one piece that comes is the whole JSON body.
        headers: Of the response.
    """

    def __init__(
        self,
        *,
        begin: Begin,
        failed: Callable[[Failed], bytes],
        work: Work,
        metrics: Metrics,
        config: ServerConfig,
        stream: bool,
        headers: Mapping[str, str],
    ) -> None:
        self._begin = begin
        self._failed = failed
        self._work = work
        self._metrics = metrics
        self._config = config
        self._stream = stream
        self.status_code = 200
        self.background = None
        self.media_type = EVENTS if stream else "application/json"
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = trace_of(scope)
        started = complete = False

        async def pass_on(piece: bytes, *, more: bool = True) -> None:
            nonlocal started
            with anyio.move_on_after(self._config.stalled_seconds) as patience:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": piece, "more_body": more})
            if patience.cancelled_caught:
                raise _Stalled

        try:
            async with self._work.run(self._begin, receive) as items:
                async for item in items:
                    if isinstance(item, bytes):
                        await pass_on(item)
                    elif item is None:
                        if self._stream:
                            await pass_on(SIGN_OF_LIFE)
                    elif started:
                        await pass_on(self._failed(_failure(item, trace)))
                    else:
                        raise item
                await pass_on(b"", more=False)
                complete = True
        except _Stalled:
            self._metrics.cancelled("stalled")
            trace.code = "stalled"
            return
        if not complete and not trace.answered:  # who has the answer need not stay for the end of the stream
            trace.gone = True
            self._metrics.cancelled("gone")


def _failure(error: Exception, trace: Trace) -> Failed:
    """What is said at the end of a stream about what it failed with."""
    if not isinstance(error, MedSightError):
        logging.getLogger(LOGGER).error("request=%s %s", trace.request_id, where(error))
        error = internal_error()
    trace.code = error.code
    return Failed(error.code, error.sentence, error.remedy)
