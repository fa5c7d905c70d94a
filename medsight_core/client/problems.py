"""What went wrong between here and a server, by name: whose fault it is and what to do about it.

A proxy on the way answers with pages of its own. They are never shown as if MedSIGHT had said them.
"""

from __future__ import annotations

import errno
import json
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice
from typing import Final

import requests

from medsight_core.client.address import Address
from medsight_core.errors import InputError, MedSightError

PROBLEM: Final = "application/problem+json"
_LARGEST_PROBLEM: Final = 2**20
LONGEST_WORDS: Final = 2000
"""Characters of a server's sentence that are shown."""

_INPUT: Final = frozenset((400, 404, 405, 409, 413, 415, 422))
"""Statuses by which a server says that the request is at fault."""

_BY_STATUS: Final = {
    401: ("unauthorized", "wants a token, or another one", "Give the token of this server (MEDSIGHT_TOKEN, --token)."),
    403: ("forbidden", "lets nobody in with this token or from here", "Ask whoever runs it."),
    413: ("too_large", "takes no request as large as this", "Ask about fewer slices, or have its limit raised."),
    426: ("wrong_version", "speaks another version of MedSIGHT", "Install the same version on both computers."),
    429: ("busy", "is busy", "Ask again in a while."),
    507: ("storage_full", "has no room left", "Ask whoever runs it."),
}
_GATEWAY: Final = frozenset((502, 503, 504))
_UNREACHABLE: Final = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN))


def problem_of(response: requests.Response, address: Address) -> MedSightError:
    """The error that a response tells of.

    Args:
        response: With a status of 300 or more; its body is read.
        address: Whom it should be from.
    """
    status = response.status_code
    kind = _kind(response)
    if kind in (PROBLEM, "application/json"):
        said = _problem(response)
        if said is not None:
            code, sentence, remedy = said
            return (InputError if status in _INPUT else MedSightError)(code, sentence, remedy)
    if status == 407:
        return MedSightError(
            "proxy_failed", "The proxy on the way wants a name and a password.", "See the variable https_proxy."
        )
    if 300 <= status < 400:
        return MedSightError(
            "redirected",
            f"{address.name} refers to another address, which is not followed: the token and the scan are for this "
            "server alone.",
            "Check the address, also whether it should begin with https://.",
        )
    if kind == "text/html" or status in _GATEWAY:
        return _from_a_proxy(status, kind, address)
    code, does, remedy = _BY_STATUS.get(
        status, ("not_medsight", f"answered {_status(status)}, which MedSIGHT does not", "Check address and port.")
    )
    return MedSightError(code, f"{address.name} {does}.", remedy)


def not_medsight(response: requests.Response, address: Address) -> MedSightError:
    """The error for a response that went well, but is none of ours."""
    if _kind(response) == "text/html":
        return _from_a_proxy(response.status_code, "text/html", address)
    return MedSightError(
        "not_medsight",
        f"{address.name} answers, but not as MedSIGHT does.",
        "Check address and port: another program listens there, or another version of MedSIGHT.",
    )


def failure_of(error: Exception, address: Address) -> MedSightError:
    """Why no response came, from what requests and urllib3 raise."""
    causes = tuple(_causes(error))
    for cause in causes:
        if isinstance(cause, requests.exceptions.ProxyError):
            return MedSightError(
                "proxy_failed",
                f"The proxy on the way to {address.name} does not let this through.",
                "Check the variables https_proxy, http_proxy and no_proxy.",
            )
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return tls_failure(cause, address)
        if isinstance(cause, socket.gaierror):
            return unknown_host(address)
    for cause in causes:
        if isinstance(cause, ConnectionRefusedError):
            return refused(address)
    for cause in causes:
        if isinstance(cause, requests.ConnectTimeout) or getattr(cause, "errno", None) in _UNREACHABLE:
            return MedSightError(
                "no_connection",
                f"{address.name} does not answer.",
                "Check that the computer is on and reachable from here, for example through the hospital's VPN.",
            )
    for cause in causes:
        if isinstance(cause, requests.ReadTimeout | TimeoutError):
            return MedSightError(
                "timed_out",
                f"{address.name} has said nothing for too long.",
                "Ask again; the server may be overloaded.",
            )
    tls = "" if address.scheme == "https" else " If the server uses TLS, its address begins with https://."
    return MedSightError(
        "connection_lost",
        f"The connection to {address.name} broke off before it answered.",
        f"Check that it is still running, and ask again.{tls}",
    )


def unknown_host(address: Address) -> MedSightError:
    """The name of the host is not known."""
    return MedSightError("unknown_host", f"There is no computer called {address.host}.", "Check the spelling.")


def refused(address: Address) -> MedSightError:
    """The host is there, and nothing listens."""
    here = "this computer" if address.local else address.host
    return MedSightError(
        "connection_refused",
        f"Nothing listens at port {address.port} of {here}.",
        "Start it with: medsight serve" if address.local else "Check the port, and that the server is running.",
    )


def tls_failure(error: ssl.SSLError, address: Address) -> MedSightError:
    """Why there is no encrypted connection."""
    why = getattr(error, "verify_message", "") or error.reason or ""
    said = why.lower()
    if "hostname mismatch" in said or "ip address mismatch" in said:
        return MedSightError(
            "tls_wrong_host",
            f"The certificate that {address.name} shows was made out to another name.",
            "Use the name that stands in the certificate.",
        )
    if "expired" in said or "not yet valid" in said:
        return MedSightError(
            "tls_expired", f"The certificate of {address.name} is not valid today: {why}.", "Have it renewed."
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return MedSightError(
            "tls_untrusted",
            f"Nobody known here vouches for the certificate of {address.name} ({why}).",
            "If it is your hospital's own, name the file with its certificate authority: --ca FILE or MEDSIGHT_CA.",
        )
    return MedSightError(
        "tls_failed",
        f"{address.name} does not speak TLS as it should ({why or 'no reason given'}).",
        "Check the port; a server without TLS on this computer is at http://.",
    )


def _from_a_proxy(status: int, kind: str, address: Address) -> MedSightError:
    page = "a web page" if kind == "text/html" else "no answer of MedSIGHT"
    if status in _GATEWAY:
        remedy = (
            "The proxy does not reach the server, or did not wait for it: check that MedSIGHT is running behind it."
        )
    elif status == 413:
        remedy = "The proxy takes no request as large as this: have its limit raised."
    elif status in (401, 403):
        remedy = "The proxy wants a login of its own: ask whoever runs it."
    else:
        remedy = "Check address and port, and whether a login page stands in between."
    return MedSightError(
        "not_medsight",
        f"{address.name} answered {_status(status)} with {page}: this is a proxy, not MedSIGHT.",
        remedy,
    )


def _kind(response: requests.Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _problem(response: requests.Response) -> tuple[str, str, str] | None:
    try:
        content = json.loads(b"".join(islice(response.iter_content(2**14), _LARGEST_PROBLEM // 2**14)))
    except (ValueError, RecursionError, OSError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("code"), str):
        return None
    words = [content.get(name) for name in ("code", "detail", "remedy")]
    code, sentence, remedy = (word[:LONGEST_WORDS] if isinstance(word, str) else "" for word in words)
    return code, sentence or f"The server answered {_status(response.status_code)}.", remedy


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it was made from; requests and urllib3 wrap each other's."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [*(arg for arg in one.args if isinstance(arg, BaseException))]
            waiting += [getattr(one, "reason", None), one.__cause__, one.__context__]
