"""The application: a backend behind routes.

::

    /v1/chat/completions  /v1/models   OpenAI's, for any chat program
    /v1/segment                        one click
    /v1/volumes  /v1/masks             what is large, by content hash or number
    /v1/medsight/info                  which version, model and limits
    /healthz  /readyz  /metrics        for those who run it
    /info/  /infer/  /session/         MONAI Label's, for its viewers
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from medsight_core import __version__
from medsight_core.backend import Backend
from medsight_core.server import chat, health, models, problems, segment
from medsight_core.server.auth import Guard
from medsight_core.server.config import ServerConfig
from medsight_core.server.logs import Edge
from medsight_core.server.masks import Masks, masks_router
from medsight_core.server.metrics import Metrics
from medsight_core.server.monai import monai_router
from medsight_core.server.pictures import Pictures
from medsight_core.server.served import MODEL_HEADER, Served
from medsight_core.server.store import VolumeStore
from medsight_core.server.volumes import volumes_router
from medsight_core.server.work import Work


def create_app(backend: Backend, config: ServerConfig, store: VolumeStore, masks: Masks) -> FastAPI:
    """Makes an application that serves a backend.

    Args:
        backend: Who is asked.
        config: How the server is reached.
        store: Keeps volumes.
        masks: Keeps masks of answers until they are fetched.

    Returns:
        The application; ``app.state.work`` has its answers under way.
    """
    info = backend.info()
    metrics = Metrics(model=info.model, digest=info.digest)
    work = Work(most=config.answers, backlog=config.backlog, keep_alive_seconds=config.keep_alive_seconds)
    served = Served(
        backend=backend,
        info=info,
        config=config,
        store=store,
        masks=masks,
        pictures=Pictures(store),
        work=work,
        metrics=metrics,
    )
    metrics.gauge("answers_under_way", "Answers that have begun and not ended.", lambda: work.under_way)
    for name, meaning in (("waiting", "Requests that wait for the model."), ("running", "Requests it works on.")):
        if hasattr(backend, name):
            metrics.gauge(f"model_{name}", meaning, lambda name=name: getattr(backend, name))
    app = FastAPI(
        title="MedSIGHT",
        version=__version__,
        summary="Ask a medical scan in plain words. Research use only. Not a medical device.",
        docs_url=None,  # these pages fetch their scripts from elsewhere
        redoc_url=None,
        middleware=[Middleware(Edge, metrics=metrics), *_cross_origin(config), Middleware(Guard, config=config)],
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.work = work
    problems.install(app)
    routers = [part.router(served) for part in (chat, segment, models, health)]
    routers += [volumes_router(store), masks_router(masks), monai_router(backend, work, token=config.token)]
    for router in routers:  # a route may say that it takes more
        app.include_router(router, max_body_size=config.body_bytes)
    return app


def _cross_origin(config: ServerConfig) -> list[Middleware]:
    """Answers to browsers whose pages may ask."""
    if not config.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=config.origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "MedSIGHT-Protocol"],
            expose_headers=["X-Request-Id", MODEL_HEADER, "Retry-After"],
        )
    ]
