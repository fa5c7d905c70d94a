"""Who a panel's tests talk to: a real conversation whose answers are told event by event, and a note of each wish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from medsight_core.backend import Whole
from medsight_core.chat import Conversation
from medsight_core.chat.markdown import to_markdown
from medsight_core.chat.turns import STOPPED
from medsight_core.errors import InputError
from medsight_core.events import Event, Failed
from medsight_core.measure import Measurements, measure
from medsight_core.regions import Region
from medsight_core.terminology import display_colours
from tests.chat.scripted import answer, events_of, scan


class TestHost:
    """Holds a conversation as the module does, without a scene or a model."""

    __test__ = False

    def __init__(self) -> None:
        self.conversation = Conversation()
        self.volume = scan()
        self.notice = ""
        self.wishes: list[tuple[Any, ...]] = []
        self.questions = ("Segment the liver in this image.", "What is shown in this image?")
        self.refuses = ""
        self.unit = ""
        self._callbacks: list[Callable[[], None]] = []

    @property
    def busy(self) -> bool:
        return self.conversation.running

    def ask(self, text: str, whole: bool = False) -> None:
        self.wishes.append(("ask", text, whole))
        if self.refuses:
            raise InputError("refused", self.refuses)
        self.conversation.ask(text, slice_index=2, whole=Whole() if whole else None)
        self.tell()

    def take(self, *events: Event) -> None:
        """What a model says next."""
        for event in events:
            self.conversation.take(event)
        self.tell()

    def say(self, text: str, *words: str, question: str = "What is shown?") -> None:
        """A whole turn."""
        self.conversation.ask(question, slice_index=2)
        self.take(*events_of(answer(self.volume, 2, text, words=words)))

    def tell(self) -> None:
        for callback in self._callbacks:
            callback()

    def stop(self) -> None:
        self.wishes.append(("stop",))
        self.take(Failed(STOPPED, "Stopped."))

    def retry(self) -> None:
        self._step("retry", self.conversation.retry)

    def undo(self) -> None:
        self._step("undo", self.conversation.undo)

    def redo(self) -> None:
        self._step("redo", self.conversation.redo)

    def clear(self) -> None:
        self._step("clear", self.conversation.clear)

    def go_to(self, key: str) -> None:
        self._step("go_to", lambda: self.conversation.finding(key), key)

    def emphasise(self, key: str | None) -> None:
        self.wishes.append(("emphasise", key))

    def hide(self, key: str, hidden: bool) -> None:
        self._step("hide", lambda: self.conversation.hide(key, hidden=hidden), key, hidden)

    def rename(self, key: str, name: str) -> None:
        self._step("rename", lambda: self.conversation.rename(key, name), key, name)

    def delete(self, key: str) -> None:
        self._step("delete", lambda: self.conversation.delete(key), key)

    def colour(self, key: str) -> str:
        findings = self.conversation.findings
        colours = display_colours(finding.name for finding in findings)
        return {finding.key: colour.hex for finding, colour in zip(findings, colours, strict=True)}[key]

    def measured(self, key: str) -> Measurements | None:
        region = self.conversation.finding(key).region
        if not region.mask.any() or not isinstance(region, Region):
            return None
        values = self.volume.array[region.slice_index][None]
        return measure(region.mask[None], region.frame, values=values)

    def suggestions(self) -> Sequence[str]:
        return self.questions

    def markdown(self) -> str:
        return to_markdown(self.conversation.turns)

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def _step(self, name: str, step: Callable[[], Any], *given: Any) -> None:
        self.wishes.append((name, *given))
        step()
        self.tell()
