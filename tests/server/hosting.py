"""A real server on a free port of this machine, in a thread or in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from medsight_core.backend import Backend
from medsight_core.server.app import create_app
from medsight_core.server.config import ServerConfig
from medsight_core.server.listening import Server, address_of, listen
from medsight_core.server.masks import Masks
from medsight_core.server.store import VolumeStore
from tests.server.bright import Brightness

REPOSITORY = Path(__file__).resolve().parents[2]


def application(backend: Backend, folder: Path, *, limit_bytes: int = 2**26, **config: Any) -> FastAPI:
    """An application that keeps its volumes in ``folder``."""
    store = VolumeStore(folder, quota_bytes=4 * limit_bytes, limit_bytes=limit_bytes)
    return create_app(backend, ServerConfig(port=0, **config), store, Masks())


@contextmanager
def hosted(app: FastAPI, *, around: Callable[[ASGIApp], ASGIApp] = lambda app: app, **config: Any) -> Iterator[str]:
    """Serves an application in a thread, and gives its address.

    Args:
        app: Made with the same ``config``.
        around: What goes around it, such as a recorder.
        config: For `ServerConfig`.
    """
    said = ServerConfig(port=0, **config)
    listener = listen(said)
    server = Server(app, said)
    server.config.app = around(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield address_of(said, listener)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def hosted_apart(folder: Path, **options: int) -> Iterator[tuple[str, int]]:
    """Serves `Brightness` in a process of its own, and gives its address and process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.hosting", str(folder), json.dumps(options)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.communicate(timeout=30)  # closes its input, which ends it
    assert process.returncode == 0


def main() -> None:
    """Serves until the input ends."""
    app = application(Brightness(), Path(sys.argv[1]), **json.loads(sys.argv[2]))
    with hosted(app) as url:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
