"""Who is let in. Asked before anything of a request is read but its head."""

from __future__ import annotations

import secrets
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from medsight_core.errors import InputError
from medsight_core.server.config import ServerConfig, is_loopback
from medsight_core.server.problems import problem
from medsight_core.wire import PROTOCOL

OPEN_TO_ALL: Final = frozenset({"/healthz", "/readyz", "/auth/", "/auth/token"})
"""What a load balancer asks, which is told nothing but whether the server lives; and where MONAI Label's clients ask
whether they must log in, and do so."""


class Guard:
    """Lets a request through, or says why not: wrong host, foreign web page, missing token, another protocol.

    Args:
        app: What it stands before.
        config: Whom to let in.
    """

    def __init__(self, app: ASGIApp, *, config: ServerConfig) -> None:
        self._app = app
        self._config = config
        self._token = None if config.token is None else config.token.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["path"], Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await problem(refusal, scope)(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> InputError | None:
        # A page from elsewhere can have its own name resolve to this computer, and so ask this server in the name of
        # whoever looks at the page. The browser gives it away: the host is still the page's.
        if self._config.local and not is_loopback(_host(headers.get("host", ""))):
            return InputError(
                "wrong_host",
                "This server answers under 127.0.0.1 and localhost only.",
                "To reach it under another name, start it with --host or --behind-proxy.",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._config.origins:
            return InputError(
                "origin_not_allowed",
                "A web page from elsewhere asked, and this server does not answer it.",
                "Start the server with --allow-origin and the origin of the page.",
            )
        if path not in OPEN_TO_ALL and not self._knows_token(headers.get("authorization", "")):
            return InputError(
                "unauthorized",
                "The token is missing or wrong.",
                "Give the token that the server was started with: --token or MEDSIGHT_TOKEN; over HTTP, the header "
                "Authorization: Bearer TOKEN.",
            )
        said = headers.get("medsight-protocol")
        if said is not None and said != str(PROTOCOL):
            return InputError(
                "wrong_version",
                f"This server speaks protocol {PROTOCOL}, and the client another one.",
                "Install the same version of MedSIGHT on both sides.",
            )
        return None

    def _knows_token(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, said = authorization.partition(" ")
        # Headers are latin-1; compare_digest takes as long for a wrong first character as for a wrong last one.
        right = secrets.compare_digest(said.strip().encode("latin-1"), self._token)
        return right and scheme.lower() == "bearer"


def _host(header: str) -> str:
    """The host of a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
