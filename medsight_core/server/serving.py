"""`medsight serve`: from options to a server that listens, and what it says about itself.

Everything that can be wrong with the options is found before the model is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medsight_core import __version__
from medsight_core.inference.running import Running
from medsight_core.server.config import ServerConfig

if TYPE_CHECKING:
    from medsight_core.backend import Info

RESEARCH_USE: Final = "Research use only. Not a medical device."


def cache_folder() -> Path:
    """Where this user's programs keep what can be had again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "medsight"


def run_serve(
    config: ServerConfig,
    *,
    model: Path | None,
    running: Running,
    store: Path,
    quota_bytes: int,
    waiting: int,
    replicas: str | None = None,
) -> None:
    """Serves until it is told to end; see `medsight_core.server.cli` for the arguments.

    Raises:
        InputError: The address cannot be had, or the certificate cannot be used.
        MedSightError: The folder of volumes cannot be used.
        CheckpointError: The model is missing or damaged.
    """
    from medsight_core.server.app import create_app
    from medsight_core.server.listening import Server, address_of, check_certificate, listen
    from medsight_core.server.masks import Masks
    from medsight_core.server.store import VolumeStore

    check_certificate(config)
    with listen(config) as listener:
        volumes = VolumeStore(store, quota_bytes=quota_bytes)
        backend = _backend(model, running=running, store=store, waiting=waiting, replicas=replicas)
        try:
            greeting = greeting_of(backend.info(), address_of(config, listener), config)
            app = create_app(backend, config, volumes, Masks())
            _log_to_stderr()
            Server(app, config, on_start=lambda: _say(greeting)).run(sockets=[listener])
        finally:
            backend.close()
    _say("Stopped.\n")


def _backend(model: Path | None, *, running: Running, store: Path, waiting: int, replicas: str | None) -> Any:
    """The model: in this process, or in several others."""
    if replicas is not None:
        from medsight_core.server.ray_serve import Count, Replicas

        return Replicas(count=Count.parse(replicas), model=model, running=running, store=store, waiting=waiting)
    from medsight_core.cli.backends import load_engine

    engine = load_engine(model, running)
    from medsight_core.inference.scheduler import Scheduler

    return Scheduler(engine, waiting=waiting)


def greeting_of(info: Info, address: str, config: ServerConfig) -> str:
    """What the person who starts a server should know about it."""
    token = "" if config.token is None else " --token TOKEN"
    header = "" if config.token is None else ' -H "Authorization: Bearer $MEDSIGHT_TOKEN"'
    reach = "from this computer only" if config.local else "with the token"
    return f"""\
MedSIGHT {__version__} serves {info.model} ({info.digest[:8]}, {info.device}) at {address}, {reach}.

  a question    medsight ask SCAN "Where is the liver?" --backend {address}{token}
  any client    OpenAI-compatible: base_url = {address}/v1, model = {info.model}
  a test        curl {address}/v1/models{header}

{RESEARCH_USE} Ctrl+C ends it.
"""


def _say(text: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _log_to_stderr() -> None:
    """One line per request, with its time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    for name in ("medsight", "medsight_core", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("medsight").setLevel(logging.INFO)
