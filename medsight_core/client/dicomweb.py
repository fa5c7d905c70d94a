"""DICOM files on their way into an archive: STOW-RS, the storage transaction of DICOMweb (DICOM PS3.18, 10.5).

Unlike a scan that is sent to a model, a DICOM file carries who the patient is; that is its purpose. So nothing in here
is ever called but by a person who asked for exactly this.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import requests

from medsight_core.client.address import Address
from medsight_core.client.lines import Lines
from medsight_core.client.problems import failure_of, problem_of
from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Progress

DICOM: Final = "application/dicom"
_JSON: Final = "application/dicom+json"
_PIECE: Final = 2**18
_LARGEST_ANSWER: Final = 2**22
_ANSWER_SECONDS: Final = 300.0
"""An archive looks through all that it was sent before it says anything."""

_FAILED, _STORED, _REASON, _SOP = "00081198", "00081199", "00081197", "00081155"

_REASONS: Final = {
    0xA700: "it has no room left",
    0xA900: "it does not fit what the archive expects",
    0xC000: "it cannot be understood",
    0x0110: "the archive failed while it stored it",
    0x0111: "it is there already",
    0x0112: "there is nothing like it",
    0x0122: "this kind of object is not stored there",
    0x0124: "you may not store it there",
    0x0131: "it is not of the study that was named",
    0xC122: "its compression is not supported there",
}
"""Failure Reason (DICOM PS3.18 table I.2-2, PS3.4 table B.2-1, PS3.7 annex C), in words."""

_BY_STATUS: Final = {
    400: ("not_stored", "did not understand what it was sent", "Check the address: it ends where DICOMweb begins."),
    401: ("unauthorized", "wants a name and a password, or others", "Ask whoever runs it."),
    403: ("forbidden", "lets nobody in with these", "Ask whoever runs it."),
    404: ("no_dicomweb", "has no DICOMweb at this address", "It mostly ends with /dicom-web; ask whoever runs it."),
    405: ("no_dicomweb", "takes nothing at this address", "It mostly ends with /dicom-web; ask whoever runs it."),
    409: ("not_stored", "refused it", "Ask whoever runs it; its log says why."),
    413: ("too_large", "takes nothing as large as this", "Have its limit raised."),
    415: ("no_dicomweb", "takes no DICOM at this address", "It mostly ends with /dicom-web; ask whoever runs it."),
    503: ("busy", "is busy or has no room left", "Send it again in a while."),
    507: ("storage_full", "has no room left", "Ask whoever runs it."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A DICOMweb server that files may be stored in.

    Attributes:
        address: Where DICOMweb begins, such as ``https://pacs.example/dicom-web``.
        user: Name for it; "" where ``secret`` is a token, or there is none.
        secret: Password or token.
        ca: File with the certificate that is trusted in place of the public ones.
    """

    address: Address
    user: str = ""
    secret: str = field(default="", repr=False)
    ca: Path | None = None

    @property
    def authorization(self) -> dict[str, str]:
        """The header that lets us in."""
        if self.user:
            pair = base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        if self.secret and not all("\x21" <= character <= "\x7e" for character in self.secret):
            raise InputError(
                "bad_token",
                "The token has characters that no header can carry.",
                "Give a name too if it is a password.",
            )
        return {"Authorization": f"Bearer {self.secret}"} if self.secret else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What an archive said.

    Attributes:
        uids: SOP Instance UIDs that it stored; empty where it did not say which.
        warning: What it changed or had to say about them; "" for nothing.
    """

    uids: tuple[str, ...]
    warning: str = ""


def store(
    archive: Archive,
    files: Sequence[Path],
    *,
    tell: Callable[[Progress], None] = lambda progress: None,
    cancel: threading.Event | None = None,
) -> Stored:
    """Stores DICOM files.

    Args:
        archive: Where to.
        files: In DICOM format.
        tell: Is told how much of it is on its way.
        cancel: When it is set, the connection is cut; what had arrived by then, the archive may have stored.

    Raises:
        InputError: not_dicom: a file is none; nothing is sent then. bad_token, bad_ca.
        MedSightError: It cannot be reached, does not let us in, or stored not all of it.
    """
    for path in files:
        _check(path)
    body = _Body(files, tell)
    headers = {
        "Content-Type": f'multipart/related; type="{DICOM}"; boundary={body.boundary}',
        "Accept": _JSON,
        **archive.authorization,
    }
    lines = Lines(archive.address, ca=archive.ca, read_seconds=_ANSWER_SECONDS)
    with lines.request("POST", "/studies", data=body, headers=headers, cancel=cancel) as response:
        return _understood(response, archive.address, len(files))


class _Body:
    """The files as the parts of one message, read while they are sent; of a known length, for servers that want it."""

    def __init__(self, files: Sequence[Path], tell: Callable[[Progress], None]) -> None:
        self.boundary = f"medsight-{secrets.token_hex(16)}"
        self._files = [(path, path.stat().st_size) for path in files]
        self._tell = tell
        self._head = f"--{self.boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        self._end = f"--{self.boundary}--\r\n".encode()

    def __len__(self) -> int:
        return sum(len(self._head) + size + 2 for _, size in self._files) + len(self._end)

    def __iter__(self) -> Iterator[bytes]:
        sent, total = 0, len(self)
        for path, size in self._files:
            yield self._head
            left = size
            with path.open("rb") as file:
                while left and (piece := file.read(min(_PIECE, left))):
                    yield piece
                    left -= len(piece)
                    sent += len(piece)
                    self._tell(Progress(sent, total, "Sending"))
            if left:
                raise OSError(f"{path.name} became shorter while it was sent")
            yield b"\r\n"
        yield self._end


def _check(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.seek(128, os.SEEK_SET)
            if file.read(4) == b"DICM":
                return
    except OSError as error:
        raise InputError("not_dicom", f"{path.name} cannot be read: {error.strerror}.", "Save it again.") from error
    raise InputError("not_dicom", f"{path.name} is not a DICOM file.", "An archive takes only those.")


def _understood(response: requests.Response, address: Address, count: int) -> Stored:
    """What a response says.

    Raises:
        MedSightError: Not everything was stored.
    """
    status = response.status_code
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    said: dict[str, Any] | None = None
    if kind in (_JSON, "application/json") and status in (200, 202, 409):
        said = _read(response, address)
    failed = _items(said, _FAILED)
    if failed:
        reasons = dict.fromkeys(_reason(one) for one in failed)
        which = "it" if count == 1 else f"{len(failed)} of {count} files"
        raise MedSightError(
            "not_stored",
            f"{address.name} did not store {which}: {', and '.join(reasons)}.",
            "Ask whoever runs the archive; its log says more.",
        )
    stored = tuple(uid for one in _items(said, _STORED) if (uid := _value(one, _SOP)))
    if status in (200, 202):
        if kind == "text/html":
            raise MedSightError(
                "no_dicomweb",
                f"{address.name} answered with a web page, not as DICOMweb does.",
                "Check the address, and whether a login page stands in between.",
            )
        changed = status == 202 or any(_value(one, "00081196") for one in _items(said, _STORED))
        return Stored(uids=stored, warning="The archive stored it with a warning." if changed else "")
    if status in _BY_STATUS and kind != "text/html":
        code, does, remedy = _BY_STATUS[status]
        raise MedSightError(code, f"{address.name} {does}.", remedy)
    error = problem_of(response, address)
    if error.code != "not_medsight":
        raise error
    raise MedSightError(
        "no_dicomweb",
        f"{address.name} answered {status}, which an archive does not.",
        "Check the address, and whether a proxy stands in between.",
    )


def _read(response: requests.Response, address: Address) -> dict[str, Any] | None:
    content = b""
    try:
        for piece in response.iter_content(2**14):
            content += piece
            if len(content) > _LARGEST_ANSWER:
                return None
    except (OSError, requests.RequestException) as error:
        raise failure_of(error, address) from error
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _items(said: dict[str, Any] | None, tag: str) -> list[dict[str, Any]]:
    element = (said or {}).get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _value(item: dict[str, Any], tag: str) -> Any:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _reason(item: dict[str, Any]) -> str:
    number = _value(item, _REASON)
    if not isinstance(number, int):
        return "it gave no reason"
    for code in (number, number & 0xFF00, number & 0xF000):
        if code in _REASONS:
            return _REASONS[code]
    return f"its reason has the number {number:04X}"
