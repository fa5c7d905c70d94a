"""The field for a question: Enter asks, Shift+Enter breaks the line, Up brings earlier questions back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ._qt import EnterFilter, clean, qt, val
from .words import _

LINES: Final = (2, 7)
"""Least and most lines that it shows."""
KEYS: Final = _("Enter asks, Shift+Enter breaks the line, the up key brings earlier questions back.")


class Question:
    """A field that grows with what is written, and remembers what was asked.

    Args:
        parent: The widget that it is part of.
        send: Called on Enter.
        asked: Gives the questions of the conversation, the oldest first.
        changed: Called when something else is written.
        say: Tells the person what is wrong.

    Attributes:
        widget: The field.
    """

    def __init__(
        self,
        parent: Any,
        *,
        send: Callable[[], Any],
        asked: Callable[[], Sequence[str]],
        changed: Callable[[], Any],
        say: Callable[[str], Any],
    ) -> None:
        self._asked = asked
        self._changed = changed
        self._say = say
        self._sent: list[str] = []
        self._leaf = -1
        self._draft = ""
        self.widget = qt.QPlainTextEdit(parent)
        self.widget.setObjectName("MedSIGHTQuestion")
        self.widget.setAccessibleName(_("Question"))
        self.widget.setToolTip(KEYS)
        self.widget.setTabChangesFocus(True)
        keys = EnterFilter(self.widget, send, self._older, self._newer)
        self.widget.installEventFilter(keys)
        self.widget.textChanged.connect(self._typed)
        self._fit()

    @property
    def text(self) -> str:
        """What is written."""
        try:
            return clean(self.widget.toPlainText())
        except (UnicodeError, SystemError):  # half of a character is left of one that was deleted
            self._say(_("The question holds a broken character. Write it again."))
            return ""

    def clear(self) -> None:
        """Empties it."""
        self.widget.setPlainText("")

    def remember(self, text: str) -> None:
        """That something was asked."""
        self._sent.append(text)
        self._leaf = -1
        self._draft = ""

    def _earlier(self) -> list[str]:
        """What was asked, the latest first; also what was thrown away since."""
        return list(dict.fromkeys(reversed([*self._asked(), *self._sent])))

    def _older(self) -> bool:
        if self.widget.textCursor().movePosition(qt.QTextCursor.Up):
            return False
        texts = self._earlier()
        if self._leaf + 1 >= len(texts):
            return bool(texts)
        if self._leaf < 0:
            self._draft = self.text
        self._leaf += 1
        self._put(texts[self._leaf])
        return True

    def _newer(self) -> bool:
        if self._leaf < 0 or self.widget.textCursor().movePosition(qt.QTextCursor.Down):
            return False
        texts = self._earlier()
        self._leaf = min(self._leaf, len(texts)) - 1
        self._put(texts[self._leaf] if self._leaf >= 0 else self._draft)
        return True

    def _put(self, text: str) -> None:
        self.widget.setPlainText(clean(text))
        self.widget.moveCursor(qt.QTextCursor.End)

    def _typed(self) -> None:
        self._fit()
        self._changed()

    def _fit(self) -> None:
        """As many lines as are written, within limits."""
        document = val(self.widget.document)
        lines = val(document.size).height()
        spacing = qt.QFontMetrics(val(self.widget.font)).lineSpacing()
        room = 2 * (val(document.documentMargin) + val(self.widget.frameWidth)) + 2
        self.widget.setFixedHeight(round(spacing * min(max(lines, LINES[0]), LINES[1]) + room))
