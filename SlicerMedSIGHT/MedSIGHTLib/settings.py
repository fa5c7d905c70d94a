"""What a person set, kept from one start of the viewer to the next: who is asked, and how it is reached.

Everything is kept as JSON text under ``MedSIGHT/`` in the viewer's settings, because only text comes back from every
platform as it went in. The token is kept there only if the person says so; else it is known until the viewer ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Literal, NamedTuple, get_args

from medsight_core.client.address import Address, is_loopback
from medsight_core.errors import InputError

from ._qt import qt
from .words import _

GROUP: Final = "MedSIGHT/"
DEFAULT_PORT: Final = 8765
"""Of ``medsight serve``."""

Where = Literal["here", "server"]

_BACKEND: Final = "backend"
_TOKEN: Final = "token"
_ANYWHERE: Final = re.compile(r"(?<![\d.])0\.0\.0\.0(?![\d.])|\[::\]")
_CREDENTIALS: Final = re.compile(r"(?:(?<=://)|^(?!\w+://))[^/@]*@")
_PASTED: Final = " \t\r\n'\"<>`,;"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Who is asked, and how it is reached.

    Attributes:
        where: A model on this computer, which the viewer starts itself, or a server.
        url: Of the server, as it was typed.
        token: Of the server.
        keep_token: Whether the token outlives this run of the viewer.
        ca: File with the certificate that is trusted in place of the public ones; "" for those.
        insecure_http: Whether the scan may travel unencrypted to that server.
        folder: Where the model on this computer is installed; "" for the usual place.
        gpu: Whether it is installed with support for NVIDIA's GPUs.
        package: What is installed, as pip is told; a path for those who develop it.
        torch_index: Where PyTorch for the CPU comes from; "" for where everything comes from.
    """

    where: Where = "here"
    url: str = ""
    token: str = field(default="", repr=False)
    keep_token: bool = False
    ca: str = ""
    insecure_http: bool = False
    folder: str = ""
    gpu: bool = False
    package: str = "medsight[server]"
    torch_index: str = "https://download.pytorch.org/whl/cpu"

    def pointed_at(self, url: str) -> Settings:
        """With another address. What was meant for one server alone does not go to another: token and permission."""
        if server_of(self.url) in ("", server_of(url)):
            return replace(self, url=url)
        return replace(self, url=url, token="", insecure_http=False)


class Typed(NamedTuple):
    """An address that a person typed.

    Attributes:
        url: As it is meant.
        note: What was corrected, for the person; "" where nothing was.
    """

    url: str
    note: str


def read_address(text: str) -> Typed:
    """Corrects what people often type or paste for the address of a server.

    A scheme that is missing is added when it is used: http on this computer, https anywhere else.
    """
    url = text.lstrip(_PASTED).rstrip(f"{_PASTED}.")
    notes = []
    nameless = _CREDENTIALS.sub("", url)
    if nameless != url:
        url = nameless
        notes.append(_("What stood before @ was left out; a server of MedSIGHT takes a token instead."))
    bare = re.sub(r"/v1/?$", "", url)
    if bare != url:
        url = bare
        notes.append(_("The address ends before /v1."))
    here = _ANYWHERE.sub("127.0.0.1", url)
    if here != url:
        url = here
        notes.append(
            _(
                "0.0.0.0 is where a server listens, not where it is found: this asks 127.0.0.1, this computer. "
                "For another one, type its name."
            )
        )
    host = url.strip("[]")
    if is_loopback(host):
        url = f"[{host}]:{DEFAULT_PORT}" if ":" in host else f"{host}:{DEFAULT_PORT}"
        notes.append(_("Port {port} was added.").format(port=DEFAULT_PORT))
    return Typed(url, " ".join(notes))


def server_of(url: str) -> str:
    """Scheme, host and port of an address; "" where it is none."""
    try:
        return Address.parse(read_address(url).url, insecure_http=True).origin
    except InputError:
        return ""


class Store:
    """Keeps settings and whatever else outlives a run of the viewer.

    Args:
        file: The viewer's settings; another file for tests.
    """

    def __init__(self, file: Any = None) -> None:
        self._file = qt.QSettings() if file is None else file
        self._callbacks: list[Callable[[], Any]] = []
        self._settings = self._load()

    @property
    def settings(self) -> Settings:
        """As they are now."""
        return self._settings

    def save(self, settings: Settings) -> None:
        """Keeps them; the token in the file only if it may."""
        if settings == self._settings:
            return
        self._settings = settings
        self.put(_BACKEND, {name: value for name, value in asdict(settings).items() if name != _TOKEN})
        self.put(_TOKEN, settings.token if settings.keep_token and settings.token else None)
        for callback in tuple(self._callbacks):
            callback()

    def on_change(self, callback: Callable[[], Any]) -> None:
        """Calls a function whenever the settings have changed."""
        self._callbacks.append(callback)

    def get(self, name: str) -> Any:
        """What was kept under a name; None where there is nothing, or nothing that can be read."""
        text = self._file.value(GROUP + name, "")
        try:
            return json.loads(text) if isinstance(text, str) and text else None
        except (ValueError, RecursionError):
            return None

    def put(self, name: str, value: Any) -> None:
        """Keeps a value that JSON can say; None removes it."""
        if value is None:
            self._file.remove(GROUP + name)
        else:
            self._file.setValue(GROUP + name, json.dumps(value))

    def _load(self) -> Settings:
        """What can be read of what was kept, by this version or by another one."""
        kept = self.get(_BACKEND)
        known = {one.name: type(getattr(Settings(), one.name)) for one in fields(Settings)}
        good = {
            name: value
            for name, value in (kept.items() if isinstance(kept, dict) else ())
            if name in known and name != _TOKEN and isinstance(value, known[name])
        }
        if good.get("where") not in get_args(Where):
            good.pop("where", None)
        token = self.get(_TOKEN)
        return Settings(**good, token=token if isinstance(token, str) else "")
