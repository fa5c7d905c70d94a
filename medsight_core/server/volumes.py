"""Routes for volumes: is it here, and here it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from medsight_core.server.store import VolumeStore
from medsight_core.server.trace import trace_of
from medsight_core.wire.codecs import usable_codecs
from medsight_core.wire.requests import digest_from_json
from medsight_core.wire.volumes import LONGEST_HEADER

CODECS_HEADER: Final = "MedSIGHT-Codecs"
"""In the reply to HEAD: how an upload may be compressed."""

_WRITE_BYTES: Final = 2**20
_GONE: Final = 499
"""Nobody reads this status; the access log does."""


def volumes_router(store: VolumeStore) -> APIRouter:
    """``HEAD`` and ``PUT /v1/volumes/{digest}``.

    Args:
        store: Where volumes are kept.
    """
    router = APIRouter(tags=["volumes"])

    @router.head("/v1/volumes/{digest}", summary="Whether a volume is here", responses={404: {"description": "No"}})
    async def known(digest: str, request: Request) -> Response:
        name = digest_from_json(digest)
        trace_of(request.scope).about(name)
        there = await run_in_threadpool(store.has, name)
        return Response(status_code=200 if there else 404, headers={CODECS_HEADER: ", ".join(usable_codecs())})

    @router.put(
        "/v1/volumes/{digest}",
        summary="Send a volume",
        status_code=201,
        max_body_size=largest_body(store),
        openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
    )
    async def take(digest: str, request: Request) -> Any:
        name = digest_from_json(digest)
        trace_of(request.scope).about(name)
        try:
            await _take(store, name, request.stream())
        except ClientDisconnect:
            trace_of(request.scope).gone = True
            return Response(status_code=_GONE)
        return {"volume": name}

    return router


def largest_body(store: VolumeStore) -> int:
    """Bytes of the largest upload that can be a volume."""
    return store.limit_bytes + store.limit_bytes // 128 + LONGEST_HEADER + 2**16


async def _take(store: VolumeStore, digest: str, body: AsyncIterator[bytes]) -> None:
    upload = await run_in_threadpool(store.upload, digest)
    try:
        waiting = bytearray()
        async for chunk in body:
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                await run_in_threadpool(upload.write, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(upload.write, bytes(waiting))
        await run_in_threadpool(upload.finish)
    finally:
        upload.close()
