"""Every error as problem+json (RFC 9457), with our code, a sentence and a remedy."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from medsight_core.errors import Busy, CheckpointError, InputError, MedSightError
from medsight_core.server.trace import trace_of

MEDIA_TYPE: Final = "application/problem+json"

IN_VAIN: Final = (HTTPStatus.CONFLICT, HTTPStatus.INSUFFICIENT_STORAGE)
"""Where the same request would end the same way; clients commonly repeat these by themselves."""

STATUS: Final[Mapping[str, int]] = {
    "unauthorized": 401,
    "wrong_host": 403,
    "origin_not_allowed": 403,
    "not_found": 404,
    "model_not_found": 404,
    "mask_unknown": 404,
    "session_unknown": 404,
    "image_unknown": 404,
    "method_not_allowed": 405,
    "volume_unknown": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "wrong_version": 426,
    "busy": 429,
    "internal_error": 500,
    "stream_ended": 500,
    "failed": 500,
    "stopping": 503,
    "stopped": 503,
    "device_failed": 503,
    "storage_full": 507,
    "out_of_memory": 507,
    "not_enough_memory": 507,
}
"""HTTP status of an error by its code. Any other is 400 where the input is wrong, and 422 where it is right but cannot
be done, such as a question about the whole of a volume with missing slices."""

_SHOWN_ERRORS: Final = 3
_FIELD: Final = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_PLAIN: Final[Mapping[int, tuple[str, str, str]]] = {
    400: ("bad_request", "The request cannot be read.", "Send a body of valid JSON in UTF-8."),
    404: ("not_found", "There is nothing at this address.", "See /openapi.json for what there is."),
    405: ("method_not_allowed", "This address does not take this method.", "The header Allow names those it takes."),
    413: ("too_large", "The body of the request is larger than this server takes.", "Send less at once."),
}


def status_of(error: MedSightError) -> int:
    """The HTTP status that says what kind of error it is."""
    known = STATUS.get(error.code)
    if known is not None:
        return known
    if isinstance(error, CheckpointError):
        return 500
    return 400 if isinstance(error, InputError) else 422


def problem_of(error: MedSightError, scope: Scope, *, status: int | None = None) -> dict[str, Any]:
    """What is sent about an error."""
    trace = trace_of(scope)
    trace.code = error.code
    status = status or status_of(error)
    return {
        "type": f"urn:medsight:problem:{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": error.code,
        "detail": error.sentence,
        "remedy": error.remedy,
        "request_id": trace.request_id,
        "error": openai_error(error, trace.request_id),
    }


def openai_error(error: MedSightError, request_id: str) -> dict[str, Any]:
    """The same where chat programs look for it, which show a bare status otherwise."""
    return {
        "message": str(error),
        "type": "medsight_error",
        "code": error.code,
        "param": None,
        "remedy": error.remedy,
        "request_id": request_id,
    }


def problem(
    error: MedSightError, scope: Scope, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The response to a request that ends with an error."""
    content = problem_of(error, scope, status=status)
    sent = dict(headers or {})
    if isinstance(error, Busy):
        sent["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if content["status"] in IN_VAIN:
        sent["x-should-retry"] = "false"  # OpenAI's client would by itself ask the same again, twice
    if content["status"] == HTTPStatus.UNAUTHORIZED:
        sent["WWW-Authenticate"] = "Bearer"
    return JSONResponse(content, content["status"], sent, MEDIA_TYPE)


def internal_error() -> MedSightError:
    """What is said of a defect of ours; what it was stands in the log, under the request's id."""
    return MedSightError(
        "internal_error", "Something unexpected went wrong on the server.", "Report it with the id of the request."
    )


def stopping() -> MedSightError:
    """What is said of a server that is about to end."""
    return MedSightError("stopping", "This server is being stopped.", "Ask another one, or later.")


def plain_error(status: int) -> MedSightError:
    """The error for an HTTP status that comes without a sentence."""
    phrase = HTTPStatus(status).phrase
    code, sentence, remedy = _PLAIN.get(status, (phrase.lower().replace(" ", "_"), f"{phrase}.", ""))
    return MedSightError(code, sentence, remedy)


def install(app: FastAPI) -> None:
    """Makes every error of an application a problem."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, MedSightError)
        return problem(error, request.scope)

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return problem(plain_error(error.status_code), request.scope, status=error.status_code, headers=error.headers)

    async def of_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return problem(_invalid(error), request.scope, status=400 if _no_json(error) else 422)

    async def of_system(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        full = MedSightError("storage_full", "The server's disk is full.", "Ask whoever runs it to make room.")
        return problem(full, request.scope)

    app.add_exception_handler(OSError, of_system)  # the upload of a form spools to the disk
    app.add_exception_handler(MedSightError, ours)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)


def _no_json(error: RequestValidationError) -> bool:
    return any(one["type"] == "json_invalid" for one in error.errors())


def _invalid(error: RequestValidationError) -> InputError:
    """Where a request is wrong; never what it says there."""
    found = error.errors()
    if _no_json(error):
        return InputError("bad_json", f"The body is no valid JSON at character {found[0]['loc'][-1]}.")
    said = [f"{_place(one['loc'])}: {_words(one)}" for one in found[:_SHOWN_ERRORS]]
    more = len(found) - len(said)
    sentence = "; ".join(said) + (f"; and {more} more" if more else "")
    return InputError("bad_request", f"The request has another form than expected. {sentence}.", "See /openapi.json.")


def _place(location: Sequence[str | int]) -> str:
    """Where in a request; a field that a stranger named may be a name itself, or long."""
    return ".".join(str(part) for part in location if isinstance(part, int) or _FIELD.fullmatch(part))


def _words(one: Mapping[str, str]) -> str:
    """What is wrong there; of all sentences of pydantic that can occur here, one quotes the value."""
    return "It is of a kind that is not known" if one["type"] == "union_tag_invalid" else one["msg"]
