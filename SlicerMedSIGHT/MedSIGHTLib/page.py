"""A page that grows: shows paragraphs and, when they change, replaces only those that did.

So an answer can be shown while it is written, however long it is and whatever was said before; what a person selected
stays selected, and the page follows its end only for one who looks at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ._qt import qt, val

# Qt gives the first paragraph of what is inserted the shape of the one that it is inserted into. This empty one takes
# that, and is nothing itself (as in the pages that Qt writes).
_JOINT: Final = '<p style="-qt-paragraph-type:empty"><br/></p>'
_NEAR_END: Final = 4


class Page:
    """What a QTextBrowser shows, as a list of paragraphs.

    Args:
        browser: Nobody else writes into it.
    """

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._shown: tuple[str, ...] = ()
        self._end = 0
        browser.verticalScrollBar().rangeChanged.connect(self._resized)

    def show(self, blocks: Sequence[str], *, follow: bool = False) -> None:
        """Shows paragraphs, each of them one ``<p>``.

        Args:
            blocks: All of the page.
            follow: Go to its end, wherever a person looks.
        """
        new = tuple(blocks)
        if new == self._shown and not follow:
            return
        bar = self._browser.verticalScrollBar()
        place = val(bar.value)
        at_end = follow or place >= self._end - _NEAR_END
        self._write(new)
        self._shown = new
        if at_end:
            val(val(self._browser.document).size)  # lays all of it out, or the bar would not know its end
            bar.setValue(val(bar.maximum))
        else:
            bar.setValue(place)

    def _resized(self, _first: int, last: int) -> None:
        """Who looks at the end goes on doing so when the page gets less room."""
        bar = self._browser.verticalScrollBar()
        at_end = val(bar.value) >= self._end - _NEAR_END
        self._end = last
        if at_end:
            bar.setValue(last)

    def _write(self, new: tuple[str, ...]) -> None:
        same = 0
        for old, one in zip(self._shown, new, strict=False):
            if old != one:
                break
            same += 1
        if same == 0 or val(val(self._browser.document).blockCount) != len(self._shown):
            self._browser.setHtml("".join(new))
            return
        cursor = self._browser.textCursor()
        cursor.movePosition(qt.QTextCursor.Start)
        for _ in range(same - 1):
            cursor.movePosition(qt.QTextCursor.NextBlock)
        cursor.movePosition(qt.QTextCursor.EndOfBlock)
        cursor.beginEditBlock()
        cursor.movePosition(qt.QTextCursor.End, qt.QTextCursor.KeepAnchor)
        cursor.removeSelectedText()
        if new[same:]:
            cursor.insertHtml(_JOINT + "".join(new[same:]))
        cursor.endEditBlock()
