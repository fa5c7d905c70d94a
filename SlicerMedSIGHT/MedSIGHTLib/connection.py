"""From settings to a backend that can be asked: the one place where address, token, certificate and consent meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medsight_core.backend import Backend
from medsight_core.client import RemoteBackend
from medsight_core.client.address import Address
from medsight_core.errors import InputError, MedSightError

from .consent import NO_CONSENT, Consented, Consents, statement
from .consentdialog import ask_consent
from .localserver import LocalServer
from .settings import Settings, Store, read_address
from .words import _

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

_HERE: Final[dict[str, str]] = {
    "insecure_http": _(
        "Use https://, or an SSH tunnel to this computer; or allow it in the settings where the network "
        "itself is trusted."
    ),
    "tls_untrusted": _("If it is your hospital's own, choose the file with its certificate in the settings."),
    "bad_ca": _("Choose a file in PEM format in the settings."),
    "unauthorized": _("Type the token of this server in the settings; whoever runs it has it."),
    "connection_refused": _("Check the port in the settings, and that the server is running."),
}
"""What to do about an error, in the words of this viewer and not of the command line."""
_NAMELESS: Final = (_("No server was named yet."), _("Type its address in the settings."))

_ASLEEP: Final[dict[str, tuple[str, str]]] = {
    "missing": (
        _("The model on this computer is not installed."),
        _("Install it in the settings, or choose a server there."),
    ),
    "installing": (_("The model on this computer is being installed."), _("See the settings.")),
    "starting": (_("The model on this computer is starting."), _("Ask again in some seconds.")),
    "stopped": (_("The model on this computer is not running."), _("Start it in the settings.")),
    "failed": (
        _("The model on this computer is not running."),
        _("See the settings for why, and start it again there."),
    ),
}
"""Why the model on this computer cannot be asked."""


def worded(error: MedSightError) -> MedSightError:
    """An error with a remedy that can be followed here."""
    remedy = _HERE.get(error.code)
    if remedy is None or not error.remedy:
        return error
    kind = InputError if isinstance(error, InputError) else MedSightError
    return kind(error.code, error.sentence, remedy)


class Connection:
    """Who is asked.

    Args:
        store: The settings.
        consents: What may be sent.
        local: The model on this computer.

    Attributes:
        waiting: The scan that was not sent for want of consent, until it is allowed or refused; None otherwise.

    Example:
        >>> store = Store()
        >>> local = LocalServer(widget, store)
        >>> connection = Connection(store, Consents(store, lambda: local.origin), local)
        >>> assistant = Assistant(begin=..., connect=connection.connect)
        >>> connection.when_allowed(widget, outline, lambda: assistant.ask(text))
    """

    def __init__(self, store: Store, consents: Consents, local: LocalServer) -> None:
        self.store = store
        self.consents = consents
        self.local = local
        self.waiting: Volume | None = None
        self._made: tuple[object, Consented] | None = None

    @property
    def address(self) -> Address:
        """Of who is asked.

        Raises:
            MedSightError: not_running, no_address.
            InputError: bad_address, insecure_http.
        """
        settings = self.store.settings
        if settings.where == "here":
            if not self.local.url:
                sentence, remedy = _ASLEEP.get(self.local.state, _ASLEEP["stopped"])
                raise MedSightError("not_running", sentence, remedy)
            return Address.parse(self.local.url)
        return address_of(settings)

    def connect(self) -> Backend:
        """Who is asked, behind the guard; the same one for as long as nothing was changed.

        Raises:
            MedSightError: Why nobody can be asked; no_consent.
        """
        settings = self.store.settings
        if settings.where == "here" and self.local.state == "stopped":
            self.local.start()  # it is on this computer, and somebody asks
        address = self.address
        self.consents.require(address)
        here = settings.where == "here"
        key = (str(address), self.local.token if here else settings)
        if self._made is None or self._made[0] != key:
            made = RemoteBackend(str(address), token=self.local.token) if here else remote(settings)

            def require(volume: Volume | None) -> None:
                try:
                    self.consents.require(address, volume)
                except MedSightError:
                    self.waiting = volume
                    raise

            self._made = (key, Consented(made, require, worded))
        return self._made[1]

    def when_allowed(self, parent: Any, volume: Volume | None, go: Callable[[], Any]) -> None:
        """Does something that sends a scan: now, or when a person has allowed it.

        Args:
            parent: A widget.
            volume: The scan or its outline; None for what is known of none.
            go: What sends. It is called as well where nobody can be asked at all, and will say so.
        """
        try:
            address = self.address
        except MedSightError:
            go()
            return
        scan = self.waiting if volume is None else volume
        if self.consents.allows(address, scan):
            go()
            return

        def answered(allowed: bool) -> None:
            self.waiting = None
            if allowed:
                self.consents.give(address, scan)
                go()

        ask_consent(parent, statement(address, scan), answered)


def refused(error: MedSightError | None) -> bool:
    """Whether something failed for want of consent alone."""
    return error is not None and error.code == NO_CONSENT


def address_of(settings: Settings) -> Address:
    """The server that was set.

    Raises:
        InputError: no_address, bad_address, insecure_http.
    """
    url = read_address(settings.url).url
    if not url:
        raise InputError("no_address", *_NAMELESS)
    try:
        return Address.parse(url, insecure_http=settings.insecure_http)
    except InputError as error:
        raise worded(error) from error


def remote(settings: Settings) -> RemoteBackend:
    """The server that was set, without a guard: for what sends no scan.

    Raises:
        InputError: no_address, bad_address, insecure_http, bad_token, bad_ca.
    """
    address = address_of(settings)
    try:
        return RemoteBackend(
            str(address),
            token=settings.token.strip() or None,
            ca=Path(settings.ca) if settings.ca.strip() else None,
            insecure_http=settings.insecure_http,
        )
    except InputError as error:
        raise worded(error) from error
