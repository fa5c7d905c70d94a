"""Who can be asked: the one interface behind which a model lives, in this process or across a network.

The command line, the chat and the viewer see a `Backend` and cannot tell which. A backend gives the same events for the
same question wherever it runs; timings apart, they are equal bit for bit where checkpoint, device and dtype are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from medsight_core.errors import InputError
from medsight_core.events import Event, Progress
from medsight_core.regions import Prompt, Question

if TYPE_CHECKING:
    from medsight_core.imaging.planes import Plane
    from medsight_core.imaging.volume import Volume

PROTOCOL: Final = 1
"""Version of what crosses between client and server; both ends must have the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """That a whole volume is asked about, and how.

    Attributes:
        plane: In which its slices are looked at.
        slices: Which slices of that plane, from 0; None for all.
        exact: Whether the language model reads every slice.
        shown: The slice of the plane that a person is looking at; it is read in any case.
    """

    plane: Plane = "acquired"
    slices: range | None = None
    exact: bool = False
    shown: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stroke:
    """A prompt and the slice that it was drawn on, from 0."""

    slice_index: int
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentRequest:
    """One structure, pointed at or named.

    It holds all that was drawn so far, oldest first, so that a backend need remember nothing: undo is the same request
    with one stroke less.

    Attributes:
        volume: The scan.
        slice_index: The slice that is asked about, from 0.
        strokes: What was drawn.
        text: What it is, in words; "" where drawing says it.
        whole: Segment it throughout the volume.
        slices: Where ``whole``: only these slices; None for all.
    """

    volume: Volume
    slice_index: int
    strokes: tuple[Stroke, ...] = ()
    text: str = ""
    whole: bool = False
    slices: range | None = None

    def __post_init__(self) -> None:
        if not self.strokes and not self.text.strip():
            raise InputError(
                "nothing_asked", "Nothing says what to segment.", 'Point at it, or name it, such as "left kidney".'
            )
        for k in (self.slice_index, *(stroke.slice_index for stroke in self.strokes)):
            self.volume.slice_frame(k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a backend is.

    Attributes:
        version: Of MedSIGHT there.
        protocol: Of the wire; a client and a server with different ones do not understand each other.
        model: The model's name.
        digest: Digest of its checkpoint.
        device, dtype: What it computes with.
        classes: Structures that the model knows by name.
        capabilities: Such as "ask", "segment", "volumes", "prompts".
        limits: By name, such as "max_new_tokens" or "volume_bytes".
    """

    version: str
    protocol: int
    model: str
    digest: str
    device: str
    dtype: str
    classes: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Handle:
    """A volume that a backend has at hand.

    Attributes:
        volume: The scan.
        digest: Its content hash, where it was sent somewhere; else "".
        sent: Bytes that had to be sent; 0 where the backend knew it already.
    """

    volume: Volume
    digest: str = ""
    sent: int = 0


class Backend(Protocol):
    """A model that can be asked.

    Streams end with exactly one `Done` or `Failed`; what is wrong with a request itself is raised before the first
    event, as `InputError`. Methods may be called from any thread.
    """

    def info(self) -> Info:
        """What it is.

        Raises:
            MedSightError: It cannot be reached, or speaks another version.
        """
        ...

    def open(self, volume: Volume, *, on_progress: Callable[[Progress], None] = lambda progress: None) -> Handle:
        """Brings a volume to it, once; a further call with the same volume does nothing.

        Asking about a volume that was not opened opens it.
        """
        ...

    def ask(
        self,
        question: Question,
        *,
        whole: Whole | None = None,
        cancel: threading.Event | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[Event]:
        """Answers a question about a slice, or about the whole volume.

        Args:
            question: What is asked; its prompts do not go with ``whole``.
            whole: Ask about the volume.
            cancel: When it is set, the stream ends soon, and so does the work behind it.
            max_new_tokens: Where a longer answer is cut off.
        """
        ...

    def segment(self, request: SegmentRequest, *, cancel: threading.Event | None = None) -> Iterator[Event]:
        """Segments what was drawn or named, on its slice or throughout the volume."""
        ...

    def close(self) -> None:
        """Lets go of everything; the backend is not used afterwards."""
        ...
