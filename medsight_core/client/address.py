"""Where a server is: read from what a person typed, and refused where a scan would travel in the open."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from medsight_core.errors import InputError

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server.

    Attributes:
        scheme: "http" or "https".
        host: Name or number, without brackets.
        port: Of the server.
        path: Where MedSIGHT begins behind a proxy, such as "/medsight"; "" at the root.
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str, *, insecure_http: bool = False) -> Address:
        """Reads an address; without a scheme it is http on this computer and https anywhere else.

        Args:
            text: Such as "https://gpu.hospital.example" or "localhost:8765".
            insecure_http: Allow http to another computer.

        Raises:
            InputError: bad_address, insecure_http.
        """
        given = text.strip()
        parts = None
        try:
            parts = urlsplit(given if "://" in given else f"//{given}")
            host, port = parts.hostname or "", parts.port
            host.encode("idna")  # of a name that no host can have, such as a..b
        except ValueError:
            host, port = "", None
        if parts is None or not host or any(character.isspace() for character in given):
            raise _bad(given, "it names no possible host and port")
        if parts.username is not None or parts.password is not None:
            raise InputError(
                "bad_address", "The address of a server holds a name or a password.", "Give a token instead."
            )
        if parts.query or parts.fragment:
            raise _bad(given, "it ends with a query")
        scheme = parts.scheme or ("http" if is_loopback(host) else "https")
        if scheme not in DEFAULT_PORTS:
            raise _bad(given, f"{scheme} is not spoken here")
        if scheme == "http" and not is_loopback(host) and not insecure_http:
            raise InputError(
                "insecure_http",
                f"http:// would send the scan to {host} unencrypted, for everyone on the way to read.",
                "Use https://, or an SSH tunnel to this computer; or allow it with --insecure-http where the network "
                "itself is trusted.",
            )
        return cls(scheme=scheme, host=host, port=port or DEFAULT_PORTS[scheme], path=_root(parts.path))

    @property
    def local(self) -> bool:
        """Whether the server is on this computer."""
        return is_loopback(self.host)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def name(self) -> str:
        """Host and port, as a person reads them."""
        return self.origin.partition("://")[2]

    def url(self, path: str) -> str:
        """The whole address of ``path``, which begins with a slash."""
        return f"{self.origin}{self.path}{path}"

    def __str__(self) -> str:
        return self.url("")


def is_loopback(host: str) -> bool:
    """Whether a host is this computer, by its own name or number alone: names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _root(path: str) -> str:
    """Where MedSIGHT begins, also of the address that OpenAI's clients take."""
    return path.rstrip("/").removesuffix("/v1")


def _bad(given: str, why: str) -> InputError:
    return InputError(
        "bad_address", f"{given[:80]!r} is no address of a server: {why}.", "Write it as https://HOST:PORT."
    )
