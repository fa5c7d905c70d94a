"""What the panel needs of whoever holds the conversation: the whole of what it knows about scans, models and scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from medsight_core.chat import Conversation
    from medsight_core.measure import Measurements


class Host(Protocol):
    """One conversation about one scan, and what can be done in it.

    All of it is called on the main thread and returns at once. What cannot be done is said in `notice`, or raises a
    `MedSightError`, whose words the panel shows.

    Attributes:
        conversation: It may become another one at any time, as when the scene is closed.
        busy: Whether an answer is being made.
        notice: One sentence for the person, such as why nothing can be asked now; "" for none.
    """

    @property
    def conversation(self) -> Conversation: ...
    @property
    def busy(self) -> bool: ...
    @property
    def notice(self) -> str: ...

    def ask(self, text: str, whole: bool = False) -> None:
        """Asks about the slice that is shown, or about the whole volume."""

    def stop(self) -> None:
        """Ends the answer that is being made; what there is of it stays."""

    def retry(self) -> None:
        """Asks once more what failed or was stopped."""

    def undo(self) -> None: ...
    def redo(self) -> None: ...
    def clear(self) -> None: ...

    def go_to(self, key: str) -> None:
        """Centres all views on a finding and selects its segment."""

    def emphasise(self, key: str | None) -> None:
        """Lets a finding stand out in the views; None ends that."""

    def hide(self, key: str, hidden: bool) -> None: ...
    def rename(self, key: str, name: str) -> None: ...
    def delete(self, key: str) -> None: ...

    def colour(self, key: str) -> str:
        """Of a finding's segment, such as ``"#ff5555"``."""

    def measured(self, key: str) -> Measurements | None:
        """Of a finding's segment as it is now; None where there is nothing to measure. Asked at every change, so it
        should not be computed anew each time.
        """

    @property
    def unit(self) -> str:
        """Of the scan's grey values: "HU", or "" where they have none."""

    def suggestions(self) -> tuple[str, ...]:
        """Questions to begin with."""

    def markdown(self) -> str:
        """The conversation, for a person to keep."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls it whenever anything of the above may have changed; several times in a row does no harm."""
