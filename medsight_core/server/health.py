"""What a server is, whether it lives, whether it should be asked, and its figures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from medsight_core.errors import MedSightError
from medsight_core.server.problems import stopping
from medsight_core.server.served import Served


def router(served: Served) -> APIRouter:
    """The routes, for one application."""
    routes = APIRouter(tags=["server"])
    info = served.info

    @routes.get("/v1/medsight/info")
    async def what() -> dict[str, Any]:
        """Version, model, abilities and limits: what a client asks before anything else."""
        return {
            "version": info.version,
            "protocol": info.protocol,
            "model": info.model,
            "digest": info.digest,
            "device": info.device,
            "dtype": info.dtype,
            "classes": list(info.classes),
            "capabilities": sorted(info.capabilities | {"chat"}),
            "limits": {
                **info.limits,
                "body_bytes": served.config.body_bytes,
                "volume_bytes": served.store.limit_bytes,
                "answers": served.config.answers,
            },
        }

    @routes.get("/healthz")
    async def lives() -> dict[str, str]:
        """That it lives; it says so while the model works, too."""
        return {"status": "ok"}

    @routes.get("/readyz")
    async def ready() -> dict[str, str]:
        """Whether to send it questions.

        Raises:
            MedSightError: Its device has failed, or it is about to end.
        """
        sick = sick_of(served.backend)
        if sick is not None:
            raise MedSightError("device_failed", sick.sentence, "Start the server again.")
        if served.work.draining:
            raise stopping()
        return {"status": "ready"}

    @routes.get("/metrics")
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(served.metrics.page(), media_type=served.metrics.content_type)

    return routes


def sick_of(backend: object) -> MedSightError | None:
    """What a backend that can fall ill for good, such as one with a GPU, has."""
    sick: MedSightError | None = getattr(backend, "sick", None)
    return sick
