"""The chat: ask, read the answer as it comes, click a word to go to what it names.

The panel holds nothing of the conversation. It shows what its `Host` has, whenever that says that something changed,
and tells it what the person wants.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from medsight_core.chat.markdown import NOTICE
from medsight_core.errors import MedSightError

from ._qt import EventFilter, alive, clean, path_of, qt, val
from .host import Host
from .labels import inked, window_theme
from .page import Page
from .question import Question
from .theme import theme_of
from .transcript import RETRY, Transcript, key_of, one_line, suggestion_of
from .words import _

LEAST_WAIT: Final = 0.05
"""Seconds between two looks at an answer that is being written."""
SHARE: Final = 4
"""A page that took t seconds to write is not written again for this many times t."""


def choose_file(parent: Any, title: str, name: str, kinds: str) -> str:
    """Asks where to save something; "" where it is not to be."""
    return path_of(qt.QFileDialog.getSaveFileName(parent, title, name, kinds))


class ChatPanel:
    """The widget of a conversation.

    Args:
        host: Who holds the conversation.
        choose: Asks a person where to save a file.

    Attributes:
        widget: To be put into a window.
        browser, edit: What is read, and where is written; for tests and for those who arrange the focus.
    """

    def __init__(self, host: Host, *, choose: Callable[[Any, str, str, str], str] = choose_file) -> None:
        self._host = host
        self._choose = choose
        self._transcript = Transcript()
        self._message = ""
        self._emphasised = ""
        self._follow = True
        self._due = 0.0
        self._closed = False

        self.widget = qt.QWidget()
        self.widget.setObjectName("MedSIGHTChat")
        self._banner = self._make_banner()
        self._undo = self._tool(_("&Undo"), _("Take the last step back"), lambda *a: self._do(self._host.undo))
        self._redo = self._tool(_("&Redo"), _("Make the step again"), lambda *a: self._do(self._host.redo))
        self._more = self._make_more()
        self.browser = self._make_browser()
        self._page = Page(self.browser)
        self._notice = self._make_notice()
        self._question = Question(self.widget, send=self.send, asked=self._asked, changed=self._enable, say=self.say)
        self.edit = self._question.widget
        self._whole = qt.QCheckBox(_("&Whole volume"), self.widget)
        self._whole.setToolTip(_("Ask about all slices, not only about the one that is shown"))
        self._whole.toggled.connect(lambda *a: self._prompt())
        self._suggest = self._make_suggest()
        self._ask = self._button(_("&Ask"), _("Ask (Enter)"), lambda *a: self.send())
        self._stop = self._button(
            _("&Stop"), _("Stop the answer (Esc); what there is of it stays"), lambda *a: self.stop()
        )
        self._escape = qt.QShortcut(qt.QKeySequence("Escape"), self.widget)
        self._escape.setContext(qt.Qt.WidgetWithChildrenShortcut)
        self._escape.activated.connect(lambda *a: self.stop())
        self._paint = qt.QTimer(self.widget)
        self._paint.setSingleShot(True)
        self._paint.timeout.connect(self.refresh)
        self._arrange()
        self._prompt()
        self.refresh()
        host.on_change(self.changed)

    def close(self) -> None:
        """Lets go of the host; the widget shows nothing new any more."""
        self._closed = True
        if alive(self.widget):
            self._paint.stop()

    def changed(self) -> None:
        """Shows what is new, soon; costs nothing to call often."""
        if self._closed or not alive(self.widget) or self._paint.isActive():
            return
        self._paint.start(max(0, round(1000 * (self._due - time.monotonic()))))

    def refresh(self) -> None:
        """Shows what is new, now."""
        if self._closed or not alive(self.widget):
            return
        host, began = self._host, time.monotonic()
        theme = theme_of(self.browser)
        conversation = host.conversation
        blocks = self._transcript.blocks(conversation.turns, theme, host.colour, host.suggestions())
        self._page.show(blocks, follow=self._follow)
        self._follow = False
        busy = self._busy()
        self._undo.setEnabled(bool(conversation.can_undo) and not busy)
        self._redo.setEnabled(bool(conversation.can_redo) and not busy)
        self._more.setEnabled(bool(conversation.turns))
        self._suggest.setEnabled(not busy)
        self._ask.setVisible(not busy)
        self._stop.setVisible(busy)
        self._escape.setEnabled(busy)
        self._enable()
        self._banner.setText(inked(NOTICE, window_theme(self._banner).quiet))
        notice = one_line(self._message or host.notice)
        self._notice.setText(notice)
        self._notice.setVisible(bool(notice))
        self._due = time.monotonic() + max(LEAST_WAIT, SHARE * (time.monotonic() - began))

    def send(self, text: str | None = None) -> None:
        """Asks what is written, or ``text``; what was refused stays written."""
        words = self._question.text if text is None else clean(text)
        if not words.strip() or self._busy():
            return
        before = self._host.conversation.last
        self._do(lambda: self._host.ask(words.strip(), bool(self._whole.isChecked())))
        if self._host.conversation.last is before and not self._busy():
            return
        self._question.remember(words.strip())
        if text is None:
            self._question.clear()
        self._follow = True
        self.refresh()

    def stop(self) -> None:
        """Stops the answer that is being written."""
        if self._busy():
            self._do(self._host.stop)

    def say(self, sentence: str) -> None:
        """Shows a sentence above the question, until something else is done."""
        self._message = sentence
        self.changed()

    def _busy(self) -> bool:
        return bool(self._host.busy or self._host.conversation.running)

    def _do(self, action: Callable[[], Any]) -> None:
        """Does what the person wants; what keeps it from being done is said."""
        self._message = ""
        try:
            action()
        except MedSightError as error:
            self._message = str(error)
        self.refresh()

    def _clicked(self, link: Any) -> None:
        address = _address(link)
        key, place = key_of(address), suggestion_of(address)
        if address == RETRY:
            self._follow = True
            self._do(self._host.retry)
        elif key:
            self._do(lambda: self._host.go_to(key))
        elif place is not None:
            words = self._host.suggestions()
            if place < len(words):
                self.send(words[place])

    def _hovered(self, link: Any) -> None:
        self._emphasise(key_of(_address(link)))

    def _emphasise(self, key: str) -> None:
        if key != self._emphasised:
            self._emphasised = key
            with contextlib.suppress(MedSightError):  # it is gone: there is nothing to point at
                self._host.emphasise(key or None)

    def _seen(self, event: Any) -> bool:
        """Events of the page: the colours changed, or the pointer left."""
        if event.type() == qt.QEvent.Leave:
            self._emphasise("")
        elif event.type() == qt.QEvent.PaletteChange:
            self.changed()
        return False

    def _asked(self) -> list[str]:
        return [turn.asked.text for turn in self._host.conversation.turns if turn.asked.kind == "ask"]

    def _copy(self, text: str) -> None:
        qt.QApplication.clipboard().setText(clean(text))

    def _copy_answer(self) -> None:
        last = self._host.conversation.last
        self._copy("" if last is None else last.text)

    def _save(self) -> None:
        kinds = _("Markdown (*.md);;All files (*)")
        path = self._choose(self.widget, _("Save the conversation"), "medsight-conversation.md", kinds)
        if not path:
            return
        try:
            Path(path).write_text(clean(self._host.markdown()), encoding="utf-8")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            self.say(_("The conversation could not be saved: {reason}. Choose another place.").format(reason=reason))

    def _enable(self) -> None:
        """Ask can be pressed when there is something to ask."""
        self._ask.setEnabled(bool(self._question.text.strip()))

    def _prompt(self) -> None:
        whole = self._whole.isChecked()
        self.edit.setPlaceholderText(_("Ask about the whole volume …") if whole else _("Ask about this slice …"))

    def _fill_suggestions(self) -> None:
        self._menu.clear()
        for words in self._host.suggestions():
            action = self._menu.addAction(one_line(words).replace("&", "&&"))
            action.triggered.connect(lambda *a, words=words: self.send(words))

    def _make_banner(self) -> Any:
        label = qt.QLabel(self.widget)
        label.setObjectName("MedSIGHTBanner")
        label.setWordWrap(True)
        return label

    def _make_notice(self) -> Any:
        label = qt.QLabel(self.widget)
        label.setObjectName("MedSIGHTNotice")
        label.setTextFormat(qt.Qt.PlainText)
        label.setWordWrap(True)
        label.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        return label

    def _make_browser(self) -> Any:
        browser = qt.QTextBrowser(self.widget)
        browser.setObjectName("MedSIGHTTranscript")
        browser.setAccessibleName(_("Conversation"))
        browser.setOpenLinks(False)
        browser.setMinimumHeight(160)
        val(browser.document).setDocumentMargin(10)
        browser.anchorClicked.connect(self._clicked)
        browser.highlighted.connect(self._hovered)
        seen = EventFilter(browser, self._seen)
        browser.installEventFilter(seen)
        browser.viewport().installEventFilter(seen)
        return browser

    def _make_more(self) -> Any:
        more = self._tool(_("&More"), _("Copy, save or clear the conversation"), None)
        menu = qt.QMenu(more)
        for words, action in (
            (_("Copy the last &answer"), self._copy_answer),
            (_("&Copy the conversation as Markdown"), lambda: self._copy(self._host.markdown())),
            (_("&Save the conversation as Markdown …"), self._save),
            (_("C&lear the conversation"), self._host.clear),
        ):
            menu.addAction(words).triggered.connect(lambda *a, action=action: self._do(action))
        more.setMenu(menu)
        more.setPopupMode(qt.QToolButton.InstantPopup)
        return more

    def _make_suggest(self) -> Any:
        suggest = self._tool(_("Su&ggestions"), _("Questions to begin with"), None)
        self._menu = qt.QMenu(suggest)
        self._menu.aboutToShow.connect(self._fill_suggestions)
        suggest.setMenu(self._menu)
        suggest.setPopupMode(qt.QToolButton.InstantPopup)
        return suggest

    def _tool(self, words: str, tip: str, action: Callable[..., Any] | None) -> Any:
        button = qt.QToolButton(self.widget)
        button.setText(words)
        button.setToolTip(tip)
        button.setAutoRaise(True)
        button.setFocusPolicy(qt.Qt.StrongFocus)
        if action is not None:
            button.clicked.connect(action)
        return button

    def _button(self, words: str, tip: str, action: Callable[..., Any]) -> Any:
        button = qt.QPushButton(words, self.widget)
        button.setToolTip(tip)
        button.setMinimumWidth(88)
        button.clicked.connect(action)
        return button

    def _arrange(self) -> None:
        top = qt.QHBoxLayout()
        top.setSpacing(2)
        top.addWidget(self._banner, 1)
        for one in (self._undo, self._redo, self._more):
            top.addWidget(one)
        below = qt.QHBoxLayout()
        below.setSpacing(6)
        below.addWidget(self._whole)
        below.addWidget(self._suggest)
        below.addStretch(1)
        below.addWidget(self._stop)
        below.addWidget(self._ask)
        whole = qt.QVBoxLayout(self.widget)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(6)
        whole.addLayout(top)
        whole.addWidget(self.browser, 1)
        whole.addWidget(self._notice)
        whole.addWidget(self.edit)
        whole.addLayout(below)
        row = (self.edit, self._ask, self._stop, self._whole, self._suggest, self._undo, self._redo, self._more)
        for one, following in zip(row, (*row[1:], self.browser), strict=True):
            qt.QWidget.setTabOrder(one, following)


def _address(link: Any) -> str:
    """Of a link that is clicked or pointed at: a URL, or in older Qt its text."""
    return str(link.toString()) if hasattr(link, "toString") else str(link)
