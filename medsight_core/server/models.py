"""GET /v1/models: what OpenAI's clients ask first."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from medsight_core.errors import InputError
from medsight_core.server.served import Served


def router(served: Served) -> APIRouter:
    """The routes, for one application."""
    routes = APIRouter(tags=["models"])
    # The time a model was made is not known; OpenAI's clients want a number there.
    model = {"id": served.info.model, "object": "model", "created": 0, "owned_by": "medsight"}

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that there is."""
        return {"object": "list", "data": [model]}

    @routes.get("/v1/models/{name}")
    async def one(name: str) -> dict[str, Any]:
        """That model by its name."""
        if name != served.info.model:
            raise InputError(
                "model_not_found", "This server does not have that model.", f"It has: {served.info.model}."
            )
        return model

    return routes
