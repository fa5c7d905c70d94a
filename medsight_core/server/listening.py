"""Where a server listens, with which certificate, and how it ends.

Told to end (SIGTERM, Ctrl+C), it begins no further answer and says so to whoever asks, lets the answers under way come
to their end, and goes; told again, it goes at once.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from medsight_core.errors import InputError
from medsight_core.server.config import ServerConfig
from medsight_core.server.work import Work

LAST_SECONDS: Final = 5
"""How long what was cut short may take to say so."""

_BACKLOG: Final = 128


def listen(config: ServerConfig) -> socket.socket:
    """Takes the address, so that whatever keeps the server from having it is known before a model is loaded.

    Raises:
        InputError: port_in_use, port_not_allowed, no_such_address.
    """
    host = config.host.strip("[]")
    try:
        family, *_ = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((host, config.port), family=family, backlog=_BACKLOG)
        # Connections inherit it. Without it a word of a stream waits for the one before to be acknowledged, 40 ms at
        # worst; asyncio sets it only where a socket names its protocol, and this one does not.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (socket.gaierror, UnicodeError) as error:  # the latter of a name that no host can have, such as a..b
        raise InputError(
            "no_such_address", f'There is no address called "{host}".', "Give an address of this computer with --host."
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                "port_in_use",
                f"Another program listens at port {config.port} of {host} already.",
                "End it, or choose another port with --port; --port 0 takes any that is free.",
            ) from error
        if error.errno == errno.EACCES:
            raise InputError(
                "port_not_allowed",
                f"This user may not listen at port {config.port}.",
                "Choose a port of 1024 or more with --port.",
            ) from error
        # Not error.strerror, to which create_server adds what it did.
        raise InputError(
            "no_such_address",
            f"This computer cannot listen at {host} ({os.strerror(error.errno or 0)}).",
            "Give an address of this computer with --host.",
        ) from error


def check_certificate(config: ServerConfig) -> None:
    """Makes sure that certificate and key can be used.

    Raises:
        InputError: bad_certificate.
    """
    if config.certificate is None or config.key is None:
        return
    for path in (config.certificate, config.key):
        if not path.is_file():
            raise InputError("bad_certificate", f"There is no file {path}.", "Check --cert and --key.")
    try:
        # An empty password instead of none: OpenSSL would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.certificate, config.key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            "bad_certificate",
            f"{config.certificate} and {config.key} cannot be used for TLS ({reason}).",
            "Give a certificate and its key without a password, both in PEM.",
        ) from error


def address_of(config: ServerConfig, listener: socket.socket) -> str:
    """Where a client finds the server."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    scheme = "https" if config.certificate is not None else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server, which goes on listening until its answers are done.

    So a load balancer that asks hears that the server is not ready any more, rather than nothing.

    Args:
        app: Made by `create_app`.
        config: How it is reached.
        on_start: Called when it takes requests.
    """

    def __init__(self, app: FastAPI, config: ServerConfig, *, on_start: Callable[[], None] = lambda: None) -> None:
        self._on_start = on_start
        self._work: Work = app.state.work
        self._drain_seconds = config.drain_seconds
        self._deadline: float | None = None
        options: dict[str, Any] = {}
        if config.certificate is not None:
            options = {"ssl_certfile": config.certificate, "ssl_keyfile": config.key}
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # it would hold query strings and addresses; ours does not
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                **options,
            )
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        logging.getLogger("uvicorn.access").disabled = True  # whatever handlers others may hang on it

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to take requests."""
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Told to end: once, and again."""
        patience = LAST_SECONDS if self.should_exit else self._drain_seconds + 3 * LAST_SECONDS
        self.force_exit = self.should_exit
        self.should_exit = True
        # A model that hangs on its device never looks whether it is cancelled, and a thread cannot be ended.
        timer = threading.Timer(patience, os._exit, (1,))
        timer.daemon = True
        timer.start()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening now; asked ten times a second."""
        ending = await super().on_tick(counter)
        if not ending:
            return False
        if self._deadline is None:
            self._work.drain()
            self._deadline = time.monotonic() + self._drain_seconds
        left = self._deadline - time.monotonic()
        if self._work.under_way and not self.force_exit and left > 0:
            return False
        self._work.cancel_all()
        # For uploads, and for answers that were cut short to say so.
        self.config.timeout_graceful_shutdown = max(LAST_SECONDS, int(left))
        return True
