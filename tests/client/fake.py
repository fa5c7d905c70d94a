"""A server for faults that a real one does not have: it says what it is told, byte for byte."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from medsight_core.events import Event
from medsight_core.imaging.volume import Volume
from medsight_core.wire.events import EventWriter

INFO = {
    "version": "9.9",
    "protocol": 1,
    "model": "fake",
    "digest": "d1",
    "device": "cpu",
    "dtype": "float32",
    "classes": ["liver"],
    "capabilities": ["ask", "segment"],
    "limits": {"volume_bytes": 10**9},
}


class Exchange(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError, ValueError):
            super().handle_one_request()

    def body(self) -> bytes:
        """What came with the request."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self) -> None:
        """Says what the fake was told to say to this."""
        self.content = self.body()
        route = f"{self.command} {self.path}"
        self.fake.seen.append((route, dict(self.headers), self.content))
        for start, reply in self.fake.replies.items():
            if route.startswith(start):
                reply(self)
                return
        self.send(404, b"{}", "application/json")

    do_GET = do_HEAD = do_PUT = do_POST = answer

    def send(self, status: int, content: bytes, kind: str, **headers: str) -> None:
        """A whole response."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def stream(self, *parts: bytes | Callable[[], object], end: bool = True, **headers: str) -> None:
        """A response in pieces as they are given; a function is called in between."""
        self.send_response(200)
        for name, value in {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        for part in parts:
            if callable(part):
                part()
            elif part:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
        if end:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True


Reply = Callable[[Exchange], None]


@dataclass
class Fake:
    """A server that can be told what to say.

    Attributes:
        url: Where it is.
        replies: By the beginning of method and path.
        seen: What came: (method and path, headers, body).
    """

    url: str = ""
    replies: dict[str, Reply] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def routes(self) -> list[str]:
        """What was asked, without names of volumes."""
        return [route.rsplit("/", 1)[0] if "/volumes/" in route else route for route, _, _ in self.seen]


def says(status: int, content: bytes | dict[str, Any], kind: str = "application/json", **headers: str) -> Reply:
    """A reply that is always the same."""
    body = json.dumps(content).encode() if isinstance(content, dict) else content
    return lambda exchange: exchange.send(status, body, kind, **headers)


def problem(status: int, code: str, **headers: str) -> Reply:
    """An error as MedSIGHT sends it."""
    content = {"code": code, "detail": f"It is {code}.", "remedy": "Do something.", "status": status}
    return says(status, content, "application/problem+json", **headers)


def streams(volume: Volume, *events: Event) -> list[bytes]:
    """Events as a server writes them, each a message."""
    writer = EventWriter(volume)
    return [b"data: %s\n\n" % json.dumps({"medsight": writer.to_json(event)}).encode() for event in events]


@contextmanager
def faking(context: ssl.SSLContext | None = None) -> Iterator[Fake]:
    """A fake that knows every volume and says who it is."""
    fake = Fake(replies={"GET /v1/medsight/info": says(200, INFO), "HEAD /v1/volumes/": says(200, b"")})
    handler = type("Handler", (Exchange,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    fake.url = f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
