"""Nothing leaves this computer before a person has allowed it: what would be sent, to whom, and who remembers.

The guard stands in front of the backend, where the work is done, and not in front of a button: whatever asks, nothing
gets past it. It is asked once for every server, and once more for a scan whose pixels may show who the patient is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from medsight_core.backend import Backend, Handle, Info, SegmentRequest, Whole
from medsight_core.client.address import Address
from medsight_core.errors import MedSightError
from medsight_core.events import Event, Failed, Progress
from medsight_core.imaging.burned_in import burned_in_risk
from medsight_core.regions import Question

from .settings import Store
from .words import _

if TYPE_CHECKING:
    from medsight_core.imaging.volume import Volume

NO_CONSENT: Final = "no_consent"
"""Code of the error where something would have been sent that nobody had allowed."""

SENT: Final = (
    _("the pixels of the scan, all of its slices"),
    _("its geometry: size, spacing, place and direction in millimetres"),
    _("its kind: modality, and how its grey values are shown"),
    _("your questions, the answers before them, and what you point at or draw"),
)
WITHHELD: Final = (
    _("the patient's name, number, birth date and all other text of the DICOM header"),
    _("dates and UIDs"),
    _("names of files and folders, and anything else in the scene"),
)

_LOOK: Final = (
    _("Nothing was sent: the pixels of this scan may show who the patient is."),
    _("Look at them, and allow this scan to be sent."),
)
_REFUSED: Final = (
    _("Nothing was sent: you have not allowed scans to be sent to {server} yet."),
    _("Allow it, or let a model on this computer answer."),
)
_CONSENT: Final = "consent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a person is asked to allow.

    Attributes:
        server: Who would get it, as the address that it is remembered by.
        size: Of the scan that it is about now; "" where none is.
        sent: What would be sent.
        withheld: What would not.
        cautions: What should be thought of before.
    """

    server: str
    size: str
    sent: tuple[str, ...]
    withheld: tuple[str, ...]
    cautions: tuple[str, ...]


def statement(address: Address, volume: Volume | None = None) -> Statement:
    """What would be sent to a server.

    Args:
        address: Of the server.
        volume: The scan that it is about, or its outline.
    """
    cautions = [
        _("What you type is sent as you type it: do not write names into a question."),
        _("The server keeps a copy of the scan for later questions, until it needs the room."),
    ]
    if address.scheme == "http" and not address.local:
        cautions.insert(0, _("The connection is not encrypted: everyone on the way can read the scan."))
    size = ""
    if volume is not None:
        size = _("{voxels} voxels, {size} MiB").format(
            voxels=" × ".join(map(str, volume.array.shape[:3])), size=f"{volume.array.nbytes / 2**20:,.1f}"
        )
        risk = burned_in_risk(volume)
        if risk is not None:
            cautions.insert(0, risk)
    return Statement(server=address.origin, size=size, sent=SENT, withheld=WITHHELD, cautions=tuple(cautions))


class Consents:
    """Remembers to which servers scans may be sent.

    A server is its scheme, host and port: any other of these is another server. What was allowed is kept from one run
    of the viewer to the next; that a person has looked at the pixels of one scan is known until the viewer ends.

    Args:
        store: Where it is kept.
        own: Gives the address of a server that this viewer itself has started on this computer, "" for none: what is
            sent there stays here.
    """

    def __init__(self, store: Store, own: Callable[[], str] = lambda: "") -> None:
        self._store = store
        self._own = own
        kept = store.get(_CONSENT)
        self._servers = (
            frozenset(one for one in kept if isinstance(one, str)) if isinstance(kept, list) else frozenset()
        )
        self._seen: dict[tuple[str, int], object] = {}

    @property
    def servers(self) -> tuple[str, ...]:
        """To which scans may be sent."""
        return tuple(sorted(self._servers))

    def allows(self, address: Address, volume: Volume | None = None) -> bool:
        """Whether something may be sent; may be called from any thread.

        Args:
            address: To this server.
            volume: This scan, or its outline; None for what is no scan.
        """
        if address.local and address.origin == self._own():
            return True
        if address.origin not in self._servers:
            return False
        return volume is None or burned_in_risk(volume) is None or (address.origin, id(volume.source)) in self._seen

    def require(self, address: Address, volume: Volume | None = None) -> None:
        """Lets through what may be sent.

        Raises:
            MedSightError: no_consent.
        """
        if self.allows(address, volume):
            return
        if address.origin in self._servers:
            raise MedSightError(
                NO_CONSENT,
                *_LOOK,
            )
        raise MedSightError(
            NO_CONSENT,
            _REFUSED[0].format(server=address.name),
            _REFUSED[1],
        )

    def give(self, address: Address, volume: Volume | None = None) -> None:
        """Remembers that scans may be sent to a server, and that a person has looked at this one."""
        self._keep(self._servers | {address.origin})
        if volume is not None and burned_in_risk(volume) is not None:  # else there was nothing to look for
            # With what is held nothing else gets its number.
            self._seen[address.origin, id(volume.source)] = volume.source

    def revoke(self, server: str) -> None:
        """Allows nothing more to be sent to a server."""
        self._seen = {key: source for key, source in self._seen.items() if key[0] != server}
        self._keep(self._servers - {server})

    def _keep(self, servers: frozenset[str]) -> None:
        self._servers = servers
        self._store.put(_CONSENT, sorted(servers) or None)


class Consented:
    """A backend that gets nothing before it may; a `Backend` itself.

    Args:
        backend: The one that sends.
        require: Raises what keeps a scan from being sent; given None, what keeps anything from it.
        worded: Puts an error into the words of this viewer.
    """

    def __init__(
        self,
        backend: Backend,
        require: Callable[[Volume | None], None],
        worded: Callable[[MedSightError], MedSightError] = lambda error: error,
    ) -> None:
        self._backend = backend
        self._require = require
        self._worded = worded

    def info(self) -> Info:
        """See `Backend.info`.

        Raises:
            MedSightError: no_consent; what the backend raises.
        """
        self._require(None)
        try:
            return self._backend.info()
        except MedSightError as error:
            raise self._worded(error) from error

    def open(self, volume: Volume, *, on_progress: Callable[[Progress], None] = lambda progress: None) -> Handle:
        """See `Backend.open`.

        Raises:
            MedSightError: no_consent; what the backend raises.
        """
        self._require(volume)
        try:
            return self._backend.open(volume, on_progress=on_progress)
        except MedSightError as error:
            raise self._worded(error) from error

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        """See `Backend.ask`."""
        return self._events(
            question.volume,
            lambda: self._backend.ask(question, whole=whole, cancel=cancel, max_new_tokens=max_new_tokens),
        )

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        """See `Backend.segment`."""
        return self._events(request.volume, lambda: self._backend.segment(request, cancel=cancel))

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()

    def _events(self, volume: Volume, begin: Callable[[], Iterator[Event]]) -> Iterator[Event]:
        self._require(volume)
        try:
            events = iter(begin())
            try:
                for event in events:
                    yield self._told(event)
            finally:
                close: Any = getattr(events, "close", None)
                if close is not None:
                    close()  # ends the connection of an answer that nobody reads any further
        except MedSightError as error:
            raise self._worded(error) from error

    def _told(self, event: Event) -> Event:
        if not isinstance(event, Failed):
            return event
        error = self._worded(MedSightError(event.code, event.sentence, event.remedy))
        return Failed(error.code, error.sentence, error.remedy)
