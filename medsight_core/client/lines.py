"""Connections to one server: encrypted, to it alone, and such that another thread can cut them at any moment.

Every request has a connection of its own. None is found closed from the other side in the meantime, and cutting one
harms no other.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from medsight_core import __version__
from medsight_core.client.address import Address
from medsight_core.client.problems import failure_of
from medsight_core.errors import InputError, MedSightError

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 60.0
"""Between two pieces of an answer; a server shows every few seconds that it lives."""

_LOOK_SECONDS: Final = 0.02
"""How often a wish to stop is looked for."""

_PIECE: Final = 2**16


class Line:
    """The connection of one request.

    Args:
        read_seconds: After which a connection that says or takes nothing is given up.
    """

    def __init__(self, read_seconds: float) -> None:
        self._read_seconds = read_seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cut = False

    def hold(self, connected: socket.socket) -> None:
        """Takes the socket that was just connected."""
        connected.settimeout(self._read_seconds)  # until now it is that for connecting, for an upload too
        with self._lock:
            self._socket = connected
            if self._cut:
                _shut(connected)

    def cut(self) -> None:
        """Ends the connection at once, whatever is waited for; may be called from any thread."""
        with self._lock:
            self._cut = True
            if self._socket is not None:
                _shut(self._socket)


class Lines:
    """Makes requests to one server.

    Redirects are never followed, certificates always checked. Of the environment only the proxies are heeded, and only
    for a server on another computer; .netrc and variables that name certificates change nothing.

    Args:
        address: Of the server.
        token: Sent to it, and to nobody else.
        ca: File with the certificate authority, or the certificate, that is trusted in place of the public ones.
        connect_seconds: After which a computer that does not answer is given up.
        read_seconds: After which a server that says nothing is given up.

    Raises:
        InputError: bad_token, bad_ca.
    """

    def __init__(
        self,
        address: Address,
        *,
        token: str | None = None,
        ca: Path | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        if token is not None and (not token or not all("\x21" <= character <= "\x7e" for character in token)):
            raise InputError(
                "bad_token",
                "The token is empty or has characters that no header can carry.",
                "Copy it again; white space at its ends is not part of it.",
            )
        check_ca(ca)
        self.address = address
        self.ca = ca
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._headers = {
            "User-Agent": f"medsight/{__version__}",
            "Accept-Encoding": "identity",  # what a proxy compresses it holds back
        }
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    @property
    def proxies(self) -> dict[str, str]:
        """The proxies on the way, by scheme; none for this computer."""
        return {} if self.address.local else dict(get_environ_proxies(str(self.address)))

    @contextlib.contextmanager
    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[requests.Response]:
        """A request and its response, whose body has not been read; its connection ends with the block.

        Args:
            method: Of HTTP.
            path: On the server, with a slash.
            json: Body.
            data: Body in pieces, in place of ``json``.
            headers: Besides those that every request has.
            cancel: When it is set, the connection is cut at once.

        Raises:
            MedSightError: There is no response (see `problems.failure_of`); stopped.
        """
        line = Line(self._read_seconds)
        with requests.Session() as session, _cut_when(cancel, line):
            session.trust_env = False
            session.proxies.update(self.proxies)
            session.mount(f"{self.address.scheme}://", _Adapter(line))
            try:
                response = session.request(
                    method,
                    self.address.url(path),
                    json=json,
                    data=data,
                    headers={**self._headers, **(headers or {})},
                    timeout=(self._connect_seconds, self._read_seconds),
                    allow_redirects=False,
                    verify=True if self.ca is None else str(self.ca),
                    stream=True,
                )
            except OSError as error:  # which those of requests are, too
                if cancel is not None and cancel.is_set():
                    raise stopped() from None
                raise failure_of(error, self.address) from error
            with response:
                yield response


def pieces(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes, without waiting until a piece is full.

    Raises:
        requests.RequestException: The connection broke off.
    """
    ends = "Content-Length" in response.headers or response.headers.get("Transfer-Encoding", "") == "chunked"
    # Without a length and without chunks, as through an old proxy, more than a byte at a time might wait for ever.
    yield from response.iter_content(_PIECE if ends else 1)


def stopped() -> MedSightError:
    """That a person stopped what was under way."""
    return MedSightError("stopped", "It was stopped before it was complete.", "Ask again.")


def check_ca(ca: Path | None) -> None:
    """Makes sure that a file of trusted certificates is one.

    Raises:
        InputError: bad_ca.
    """
    if ca is None:
        return
    try:
        ssl.create_default_context(cafile=str(ca))
    except OSError as error:  # SSLError is one, and so is a file that is not there
        raise InputError(
            "bad_ca", f"{ca} holds no certificate that could be trusted.", "It takes a file in PEM format."
        ) from error


class _Adapter(HTTPAdapter):
    """Gives the socket of its connection to a `Line`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        super().__init__(max_retries=0)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        line, plain = self._line, pool.ConnectionCls

        class Held(plain):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                line.hold(self.sock)

        pool.ConnectionCls = Held
        return pool


@contextlib.contextmanager
def _cut_when(cancel: threading.Event | None, line: Line) -> Iterator[None]:
    """Cuts a line as soon as ``cancel`` is set, while the block runs."""
    if cancel is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if cancel.wait(_LOOK_SECONDS):
                line.cut()
                return

    threading.Thread(target=watch, name="medsight-cancel", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _shut(connected: socket.socket) -> None:
    # Not the method of an SSLSocket, which would take its state away from under the thread that reads.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
