"""What stands between a client and a server and counts the bytes that the client really sends."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Relay:
    """A relay.

    Attributes:
        url: Where clients find it.
        sent: Bytes that clients sent through it, all told.
    """

    url: str = ""
    sent: int = 0


@contextmanager
def relaying(url: str) -> Iterator[Relay]:
    """Relays connections to the server at ``url``."""
    target = urlsplit(url)
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Relay(url=f"http://127.0.0.1:{listener.getsockname()[1]}")

    def pass_on(source: socket.socket, sink: socket.socket, *, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if counted:
                    relay.sent += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((target.hostname or "", target.port or 0))
                for source, sink, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=pass_on, args=(source, sink), kwargs={"counted": counted}, daemon=True
                    ).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield relay
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
