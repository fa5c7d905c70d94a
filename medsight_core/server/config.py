"""How a server is reached, by whom, and how much it takes on."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medsight_core.errors import InputError

LONGEST_WEAK_TOKEN: Final = 15
"""Characters of a token that could be guessed."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this computer only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How a server is reached and what it takes on.

    Attributes:
        host: Address it listens on.
        port: Port; 0 for any that is free.
        token: What a client says to be let in; None lets everyone in who reaches it.
        certificate: Its chain of TLS certificates in PEM; None without TLS.
        key: The private key that belongs to ``certificate``.
        behind_proxy: A proxy in front does the TLS.
        origins: Web pages, such as "https://viewer.hospital.example", whose scripts may ask.
        body_bytes: Largest body of a question, with its images.
        answers: Answers under way or waiting at once, whatever the backend's own queue takes.
        backlog: Events of an answer that wait for a slow client before the work behind it waits too.
        stalled_seconds: How long a client may take nothing before its answer is given up.
        keep_alive_seconds: Between two signs of life in a stream that has nothing to say.
        drain_seconds: How long answers under way may take to end when the server is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False
    origins: tuple[str, ...] = ()
    body_bytes: int = 32 * 2**20
    answers: int = 64
    backlog: int = 64
    stalled_seconds: float = 30.0
    keep_alive_seconds: float = 5.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuses what would be open to strangers.

        Raises:
            InputError: token_needed, tls_needed, weak_token, bad_token, tls_incomplete, bad_origin, bad_port.
        """
        if not 0 <= self.port <= 65535:
            raise InputError("bad_port", f"A port is a number from 0 to 65535, got {self.port}.")
        if self.token is not None:
            self._check_token(self.token)
        exposed = self.behind_proxy or not is_loopback(self.host)
        where = "behind a proxy" if self.behind_proxy else f"on {self.host}"
        if exposed and self.token is None:
            raise InputError(
                "token_needed",
                f"A server {where} can be reached by others, so it needs a token.",
                'Set MEDSIGHT_TOKEN, for example to what this prints: python -c "import secrets; '
                'print(secrets.token_urlsafe(32))". Or listen on 127.0.0.1.',
            )
        if exposed and self.token is not None and len(self.token) <= LONGEST_WEAK_TOKEN:
            raise InputError(
                "weak_token",
                f"The token has {len(self.token)} characters; others could guess it.",
                f"Take one of {LONGEST_WEAK_TOKEN + 1} random characters or more.",
            )
        if (self.certificate is None) != (self.key is None):
            raise InputError("tls_incomplete", "TLS needs both a certificate and its key.", "Give --cert and --key.")
        if exposed and self.certificate is None and not self.behind_proxy:
            raise InputError(
                "tls_needed",
                f"A server {where} would send scans and the token over the network unencrypted.",
                "Give --cert and --key; or --behind-proxy where a proxy in front of it does the TLS; or listen on "
                "127.0.0.1 and reach it through an SSH tunnel.",
            )
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise InputError(
                    "bad_origin",
                    f'An origin is a scheme and a host, got "{origin}".',
                    "Write it as the browser sends it, such as https://viewer.hospital.example.",
                )

    @property
    def local(self) -> bool:
        """Whether only programs of this computer reach it."""
        return is_loopback(self.host) and not self.behind_proxy

    @staticmethod
    def _check_token(token: str) -> None:
        if not _TOKEN.fullmatch(token):
            raise InputError(
                "bad_token", "The token is empty or has characters that no header can carry.", "Use letters and digits."
            )
