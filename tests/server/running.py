"""Real servers for the tests: uvicorn on a free port, a scheduler, and a small model that may be made slow."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from torch import Tensor, nn

from medsight_core.backend import Backend
from medsight_core.inference.checkpoint import open_checkpoint
from medsight_core.inference.engine import Engine
from medsight_core.inference.loading import load
from medsight_core.server.app import create_app
from medsight_core.server.config import ServerConfig
from medsight_core.server.listening import Server, address_of, listen
from medsight_core.server.masks import Masks
from medsight_core.server.store import VolumeStore

PATIENCE = 60.0
"""Seconds after which a test gives up waiting for what must happen; nothing is measured by it."""


class PacedHead(nn.Module):
    """The model's own choice of words, and before each one a pause, or a gate that has to be opened.

    Args:
        head: Of the model.
        pause: Seconds.
        gate: Nothing is written before it is set.
    """

    def __init__(self, head: nn.Linear, *, pause: float, gate: threading.Event | None) -> None:
        super().__init__()
        self.head = head
        self.out_features = head.out_features
        self.pause = pause
        self.gate = gate
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits, late."""
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        self.calls += 1
        time.sleep(self.pause)
        logits: Tensor = self.head(hidden)
        return logits


def paced_engine(folder: Path, *, pause: float = 0.0, gate: threading.Event | None = None) -> Engine:
    """An engine that takes its time; what it says is what any engine of this checkpoint says."""
    model, processor = load(open_checkpoint(folder))
    model.lm_head = PacedHead(model.lm_head, pause=pause, gate=gate)
    return Engine(model=model, processor=processor, name="tiny", digest="0" * 16)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that listens."""

    url: str
    server: Server
    app: Any

    @property
    def work(self) -> Any:
        """Its answers under way."""
        return self.app.state.work


@contextmanager
def serving(backend: Backend, store: Path, config: ServerConfig | None = None, **options: Any) -> Iterator[Running]:
    """Serves a backend on a free port of this computer, in a thread.

    Args:
        backend: Who is asked.
        store: Folder of volumes.
        config: How it is reached; None for the defaults with ``options``.
        options: For `ServerConfig`.
    """
    config = config or ServerConfig(port=0, **({"keep_alive_seconds": 0.2} | options))
    app = create_app(backend, config, VolumeStore(store), Masks())
    with listen(config) as listener:
        server = Server(app, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Running(url=address_of(config, listener), server=server, app=app)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(PATIENCE)
        assert not thread.is_alive()


def until(happened: Callable[[], Any]) -> Any:
    """Waits for something that must happen, and returns it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        result = happened()
        if result:
            return result
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def picture(rows: int = 48, columns: int = 64, seed: int = 2, kind: str = "PNG") -> bytes:
    """The file of a small picture; of the default one the tiny model says words and region codes in turn."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (rows, columns, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    """A picture as it stands in a message."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def asking(text: str = "What is this?", url: str | None = None) -> list[dict[str, Any]]:
    """The messages of a chat with one question about one picture."""
    address = {"type": "image_url", "image_url": {"url": url or data_url(picture())}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, address]}]


def post(url: str, path: str, **options: Any) -> httpx.Response:
    """A POST that takes no proxy."""
    with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
        return client.post(path, **options)


def get(url: str, path: str, **options: Any) -> httpx.Response:
    """A GET that takes no proxy."""
    with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
        return client.get(path, **options)


def figure(url: str, name: str, **options: Any) -> float:
    """The value of one figure of /metrics; 0 where it has none yet."""
    lines = get(url, "/metrics", **options).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def raw_request(url: str, body: bytes, *, path: str = "/v1/chat/completions", head: str = "") -> socket.socket:
    """A connection on which a JSON request was sent and nothing read; the caller closes it."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n{head}"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection
