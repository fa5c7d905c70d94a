"""The chat as a person uses it: keys, clicks, a long answer, what cannot be asked, a conversation that goes away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qtpy import QtCore, QtGui, QtWidgets

from medsight_core.backend import Whole
from medsight_core.chat import Asked, Conversation, put
from medsight_core.events import Done, Failed, Progress, RegionFound, TextDelta
from medsight_core.regions import Span
from tests.chat.scripted import Scripted, answer, events_of, region, says
from tests.slicer.panel_host import TestHost
from tests.slicer.test_transcript import HOSTILE, anchors

KEY = QtCore.Qt


class Panel:
    """A panel on the screen, and hands."""

    def __init__(self, lib: Any, host: TestHost) -> None:
        self.lib, self.host = lib, host
        self.saved: list[str] = []
        self.path = ""
        self.panel = lib.chatpanel.ChatPanel(host, choose=self._choose)
        self.widget = self.panel.widget
        self.edit, self.browser = self.panel.edit, self.panel.browser
        self.widget.resize(420, 600)
        self.widget.show()
        self.settle()

    def _choose(self, parent: Any, title: str, name: str, kinds: str) -> str:
        self.saved.append(name)
        return self.path

    def settle(self, milliseconds: int = 120) -> None:
        self.lib.settle(milliseconds)

    def read(self, value: Any) -> Any:
        return self.lib._qt.val(value)

    def press(self, key: Any, modifiers: Any = None, text: str = "", where: Any = None) -> None:
        target = self.edit if where is None else where
        held = KEY.NoModifier if modifiers is None else modifiers
        for kind in (QtCore.QEvent.KeyPress, QtCore.QEvent.KeyRelease):
            QtWidgets.QApplication.sendEvent(target, QtGui.QKeyEvent(kind, key, held, text))

    def type(self, text: str) -> None:
        for character in text:
            if character == "\n":
                self.press(KEY.Key_Return, KEY.ShiftModifier, "\r")
            else:
                self.press(KEY.Key_unknown, text=character)

    def written(self) -> str:
        return str(self.edit.toPlainText())

    def shown(self) -> str:
        return str(self.browser.toPlainText())

    def document(self) -> Any:
        return QtWidgets.QTextEdit.document(self.browser)

    def button(self, name: str) -> Any:
        return getattr(self.panel, f"_{name}")

    def place_of(self, word: str) -> QtCore.QPoint:
        """Where a link's word is, in the page's viewport."""
        browser = self.browser
        cursor = QtGui.QTextCursor(self.document())
        cursor.setPosition(browser.toPlainText().index(word) + 1)
        return QtWidgets.QTextEdit.cursorRect(browser, cursor).center()

    def mouse(self, word: str, *, click: bool) -> None:
        viewport, place = QtWidgets.QAbstractScrollArea.viewport(self.browser), self.place_of(word)
        where, left, none = QtCore.QPointF(place), KEY.LeftButton, KEY.NoButton
        kinds = [(QtCore.QEvent.MouseMove, none, none)]
        if click:
            kinds += [(QtCore.QEvent.MouseButtonPress, left, left), (QtCore.QEvent.MouseButtonRelease, left, none)]
        for kind, button, buttons in kinds:
            globally = QtCore.QPointF(viewport.mapToGlobal(place))
            event = QtGui.QMouseEvent(kind, where, globally, button, buttons, KEY.NoModifier)
            QtWidgets.QApplication.sendEvent(viewport, event)


@pytest.fixture
def host() -> TestHost:
    return TestHost()


@pytest.fixture
def at(lib: Any, host: TestHost) -> Iterator[Panel]:
    panel = Panel(lib, host)
    yield panel
    panel.panel.close()
    lib._qt.dispose(panel.widget)
    panel.settle(10)


def test_the_banner_says_what_it_is_not(at: Panel) -> None:
    assert "Research use only. Not a medical device." in at.read(at.panel._banner.text)
    assert at.panel._banner.isVisible()


def test_enter_sends_and_shift_enter_breaks_the_line(at: Panel, host: TestHost) -> None:
    at.type("Where is\nthe liver?")
    assert at.written() == "Where is\nthe liver?"
    at.press(KEY.Key_Return, text="\r")
    assert host.wishes == [("ask", "Where is\nthe liver?", False)]
    assert at.written() == "" and "Where is" in at.shown()
    host.stop()
    at.type("And?")
    at.press(KEY.Key_Enter, KEY.KeypadModifier, "\r")
    assert host.wishes[-1] == ("ask", "And?", False)


def test_nothing_is_asked_twice(at: Panel, host: TestHost) -> None:
    at.type("Where?")
    at.press(KEY.Key_Return, text="\r")
    at.press(KEY.Key_Return, text="\r")
    at.type("A draft")
    at.press(KEY.Key_Return, text="\r")
    at.button("ask").click()
    assert host.wishes == [("ask", "Where?", False)] and at.written() == "A draft"
    assert at.button("stop").isVisible() and not at.button("ask").isVisible()


def test_empty_questions_are_not_asked(at: Panel, host: TestHost) -> None:
    assert not at.button("ask").isEnabled()
    at.type("  \n ")
    at.press(KEY.Key_Return, text="\r")
    assert host.wishes == [] and not at.button("ask").isEnabled()
    at.type("x")
    assert at.button("ask").isEnabled()


def test_the_volume_is_asked_about_when_it_is_ticked(at: Panel, host: TestHost) -> None:
    at.button("whole").click()
    assert "whole volume" in at.read(at.edit.placeholderText)
    at.type("Any nodules?")
    at.button("ask").click()
    assert host.wishes == [("ask", "Any nodules?", True)]
    assert "volume" in at.shown() and host.conversation.turns[0].asked.whole == Whole()


def test_what_was_refused_stays_written_and_is_explained(at: Panel, host: TestHost) -> None:
    host.refuses = "There is no scan yet."
    at.type("Where?")
    at.press(KEY.Key_Return, text="\r")
    assert at.written() == "Where?" and at.read(at.panel._notice.text) == "There is no scan yet."
    host.refuses = ""
    at.press(KEY.Key_Return, text="\r")
    assert at.written() == "" and not at.panel._notice.isVisible()


def test_the_hosts_notice_is_shown_as_text(at: Panel, host: TestHost) -> None:
    host.notice = "<b>No server</b> answers."
    host.tell()
    at.settle()
    assert at.read(at.panel._notice.text) == "<b>No server</b> answers." and at.panel._notice.isVisible()


def test_the_answer_streams(at: Panel, host: TestHost) -> None:
    host.ask("Where?")
    seen = []
    made = answer(host.volume, 2, "The liver and the spleen.", words=("liver", "spleen"))
    for event in events_of(made):
        host.take(event)
        at.settle(80)
        seen.append(at.shown())
    assert "Looking at the image (0 of 2)" in seen[0] and "The liver an" in seen[1] and "spleen" not in seen[1]
    assert "The liver and the spleen." in seen[2]
    links = [link for link in anchors(at.document()) if link[1] in ("liver", "spleen")]
    assert {link[0] for link in links} == {"finding:1.1", "finding:1.2"}
    assert at.button("ask").isVisible() and not at.button("stop").isVisible()


def test_a_click_on_a_word_goes_there_and_pointing_lets_it_stand_out(at: Panel, host: TestHost) -> None:
    host.say("The liver and the spleen.", "liver", "spleen")
    at.settle()
    at.mouse("spleen", click=False)
    assert host.wishes == [("emphasise", "1.2")]
    at.mouse("The", click=False)
    assert host.wishes[-1] == ("emphasise", None)
    at.mouse("liver", click=True)
    assert ("go_to", "1.1") in host.wishes
    at.mouse("spleen", click=False)
    QtWidgets.QApplication.sendEvent(
        QtWidgets.QAbstractScrollArea.viewport(at.browser), QtCore.QEvent(QtCore.QEvent.Leave)
    )
    assert host.wishes[-1] == ("emphasise", None), "the pointer left the page"


def test_a_word_whose_finding_is_gone_says_so(at: Panel, host: TestHost) -> None:
    host.say("The liver.", "liver")
    at.settle()
    host.conversation.delete("1.1")
    at.mouse("liver", click=True)
    at.settle()
    assert "no finding" in at.read(at.panel._notice.text)


def test_stop_by_button_and_by_escape(at: Panel, host: TestHost) -> None:
    host.ask("Where?")
    host.take(TextDelta("The liver"))
    at.settle()
    at.button("stop").click()
    at.settle()
    assert (
        host.wishes[-1] == ("stop",) and "Stopped before it was complete." in at.shown() and "The liver" in at.shown()
    )
    assert not at.panel._escape.isEnabled(), "Escape belongs to others while nothing runs"
    at.panel.stop()
    assert host.wishes.count(("stop",)) == 1
    host.ask("And?")
    at.settle()
    assert at.panel._escape.isEnabled()


def test_a_failed_answer_is_kept_marked_and_asked_again(at: Panel, host: TestHost) -> None:
    host.ask("Where?")
    host.take(TextDelta("The liver is"), Failed("timeout", "No answer within 60 s.", "Check the server."))
    at.settle()
    assert "Interrupted: No answer within 60 s. Check the server." in at.shown()
    at.mouse("Retry", click=True)
    at.settle()
    assert ("retry",) in host.wishes and len(host.conversation.turns) == 2
    assert "The liver is" in at.shown() and at.button("stop").isVisible()


def test_suggestions_are_asked_by_a_click(at: Panel, host: TestHost) -> None:
    assert "Segment the liver in this image." in at.shown()
    at.mouse("Segment", click=True)
    assert host.wishes == [("ask", "Segment the liver in this image.", False)]
    host.stop()
    at.panel._fill_suggestions()
    menu = at.panel._menu
    actions = QtWidgets.QWidget.actions(menu)
    assert [action.text() for action in actions] == list(host.questions)
    actions[1].trigger()
    assert host.wishes[-1] == ("ask", "What is shown in this image?", False)


def test_up_and_down_leaf_through_earlier_questions(at: Panel, host: TestHost) -> None:
    for text in ("First?", "Second\nline?", "First?"):
        at.type(text)
        at.press(KEY.Key_Return, text="\r")
        host.stop()
    at.type("draft")
    at.press(KEY.Key_Up)
    assert at.written() == "First?"
    at.press(KEY.Key_Up)
    assert at.written() == "Second\nline?"
    at.press(KEY.Key_Up)
    assert at.written() == "Second\nline?", "the cursor moved in the text"
    at.press(KEY.Key_Up)
    assert at.written() == "Second\nline?", "there is none before"
    at.press(KEY.Key_Down)
    at.press(KEY.Key_Down)
    assert at.written() == "First?"
    at.press(KEY.Key_Down)
    assert at.written() == "draft"
    at.press(KEY.Key_Down)
    assert at.written() == "draft"


def test_undo_redo_clear_copy_and_save(at: Panel, host: TestHost, tmp_path: Path) -> None:
    assert not at.button("undo").isEnabled() and not at.button("more").isEnabled()
    host.say("The liver.", "liver")
    host.hide("1.1", True)
    at.settle()
    at.button("undo").click()
    at.button("redo").click()
    assert host.wishes[-2:] == [("undo",), ("redo",)] and not at.button("redo").isEnabled()
    clipboard = QtWidgets.QApplication.clipboard()
    actions = {action.text().replace("&", ""): action for action in _menu_of(at.button("more"))}
    actions["Copy the last answer"].trigger()
    assert clipboard.text() == "The liver."
    actions["Copy the conversation as Markdown"].trigger()
    assert clipboard.text() == host.markdown() and "Not a medical device" in clipboard.text()
    actions["Save the conversation as Markdown …"].trigger()
    assert at.saved == ["medsight-conversation.md"], (
        "no name of the scan is suggested; nothing is saved when none is chosen"
    )
    at.path = str(tmp_path / "out.md")
    actions["Save the conversation as Markdown …"].trigger()
    assert (tmp_path / "out.md").read_text(encoding="utf-8") == host.markdown()
    at.path = str(tmp_path / "none" / "out.md")
    actions["Save the conversation as Markdown …"].trigger()
    at.settle()
    assert "could not be saved: No such file or directory" in at.read(at.panel._notice.text)
    actions["Clear the conversation"].trigger()
    assert host.wishes[-1] == ("clear",) and "Ask about this scan" in at.shown()
    at.button("undo").click()
    assert "The liver." in at.shown()


def _menu_of(button: Any) -> list[Any]:
    menu = QtWidgets.QToolButton.menu(button)
    return list(QtWidgets.QWidget.actions(menu))


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_typed_is_shown_as_it_is(at: Panel, host: TestHost, text: str) -> None:
    at.type(text)
    at.press(KEY.Key_Return, text="\r")
    host.take(TextDelta(text), RegionFound(region(host.volume, 2, Span(0, 3), text)))
    at.settle()
    assert at.shown().count(text) >= 2
    assert {address for address, _, _ in anchors(at.document())} <= {"finding:1.1"}
    assert host.wishes[0] == ("ask", text.strip(), False)


@pytest.mark.parametrize(
    "link", ["https://example.org/x", "file:///etc/passwd", "javascript:alert(1)", "finding:", "", "x"]
)
def test_other_links_do_nothing(at: Panel, host: TestHost, link: str) -> None:
    at.panel._clicked(QtCore.QUrl(link))
    at.panel._hovered(QtCore.QUrl(link))
    at.panel._hovered(link)
    assert host.wishes == []


def test_broken_text_of_a_model_is_shown_in_one_piece(at: Panel, host: TestHost) -> None:
    host.ask("x")
    for piece in ("smile \ud83d", "\ude00 nul\0 ", "\ufdd0 end"):
        host.take(TextDelta(piece))
        at.settle(60)
    assert "smile \U0001f600 nul  end" in at.shown()


def test_a_very_long_answer_does_not_hold_up_the_window(at: Panel, host: TestHost) -> None:
    host.ask("Everything?")
    words = [f"word{n}{'.' if n % 11 == 0 else ''} " for n in range(10_000)]
    longest, began = 0.0, time.monotonic()
    for start in range(0, len(words), 50):
        host.take(TextDelta("".join(words[start : start + 50])))
        before = time.monotonic()
        at.panel.refresh()
        longest = max(longest, time.monotonic() - before)
    text = "".join(words).strip()
    host.take(Done(answer(host.volume, 2, text, words=("word5 ", "word9000 "))))
    before = time.monotonic()
    at.panel.refresh()
    final = time.monotonic() - before
    assert " ".join(at.shown().split()).count("word9999") == 1 and "word0." in at.shown()
    bar = at.browser.verticalScrollBar()
    assert at.read(bar.value) == at.read(bar.maximum), "who looks at the end follows it"
    assert longest < 0.1 * _slow(), f"one refresh took {longest:.3f} s"
    assert final < 1.0 * _slow() and time.monotonic() - began < 30 * _slow()


def _slow() -> float:
    """Machines that others use at the same time are slower."""
    return 3.0


def test_who_reads_further_up_is_left_there(at: Panel, host: TestHost) -> None:
    host.say(" ".join(["liver"] * 2000), "liver")
    at.settle()
    bar = at.browser.verticalScrollBar()
    bar.setValue(40)
    host.conversation.ask("And?", slice_index=2)
    host.take(TextDelta("more"))
    at.settle()
    assert at.read(bar.value) == 40
    cursor = at.browser.textCursor()
    cursor.setPosition(30)
    cursor.setPosition(60, QtGui.QTextCursor.KeepAnchor)
    at.browser.setTextCursor(cursor)
    host.take(TextDelta(" and more"))
    at.settle()
    assert at.browser.textCursor().selectedText() == cursor.selectedText() != ""
    host.stop()
    at.type("Next?")
    at.press(KEY.Key_Return, text="\r")
    assert at.read(bar.value) == at.read(bar.maximum), "who asks wants to see the answer"


def test_who_looks_at_the_end_still_does_when_the_page_gets_less_room(at: Panel, host: TestHost) -> None:
    host.say(" ".join(["liver"] * 2000), "liver")
    at.settle()
    bar = at.browser.verticalScrollBar()
    before = at.read(bar.maximum)
    host.notice = "The server is not reachable. " * 5
    host.tell()
    at.type("a\nb\nc\nd\ne")
    at.settle()
    assert at.read(bar.value) == at.read(bar.maximum) > before
    bar.setValue(30)
    at.widget.resize(420, 500)
    at.settle()
    assert at.read(bar.value) == 30


def test_the_page_is_the_same_however_it_grew(at: Panel, host: TestHost) -> None:
    from qtpy.QtGui import QTextDocument

    host.say("The liver.\nTwo lines.", "liver")
    host.ask("<b>And?</b>")
    for event in events_of(answer(host.volume, 2, "أ left\nthe spleen.", words=("spleen",))):
        host.take(event)
        at.panel.refresh()
    whole = QTextDocument()
    whole.setDefaultFont(at.document().defaultFont())
    whole.setHtml("".join(at.panel._page._shown))
    grown, wanted = at.document().begin(), whole.begin()
    assert at.document().blockCount() == whole.blockCount()
    while wanted.isValid():
        for attribute in ("topMargin", "bottomMargin", "leftMargin", "lineHeight", "layoutDirection"):
            assert getattr(grown.blockFormat(), attribute)() == getattr(wanted.blockFormat(), attribute)()
        assert grown.text() == wanted.text()
        grown, wanted = grown.next(), wanted.next()
    assert sorted(anchors(at.document())) == sorted(anchors(whole))


def test_the_scene_is_closed_while_an_answer_is_written(at: Panel, host: TestHost) -> None:
    host.ask("Where?")
    host.take(TextDelta("The liver"), RegionFound(region(host.volume, 2, Span(4, 9), "liver")))
    at.settle()
    host.conversation = Conversation()
    host.tell()
    at.settle()
    assert "The liver" not in at.shown() and "Ask about this scan" in at.shown()
    assert at.button("ask").isVisible() and not at.button("stop").isVisible()
    at.type("Again?")
    at.press(KEY.Key_Return, text="\r")
    assert "Again?" in at.shown()


def test_a_closed_panel_and_a_deleted_one_hear_nothing(lib: Any, host: TestHost) -> None:
    panel = lib.chatpanel.ChatPanel(host)
    table = lib.findings.FindingsTable(host)
    lib._qt.dispose(panel.widget)
    lib._qt.dispose(table.widget)
    for _ in range(5):
        lib.settle(10)
    assert not lib._qt.alive(panel.widget)
    host.say("The liver.", "liver")
    for one in (panel, table):
        one.changed()
        one.refresh()
        one.close()
        one.changed()


def test_everything_is_reached_by_the_keyboard(at: Panel, host: TestHost) -> None:
    host.say("The liver.", "liver")
    host.hide("1.1", False)
    host.undo()
    at.type("x")
    at.settle()
    QtWidgets.QWidget.activateWindow(at.widget)
    at.edit.setFocus()
    at.settle(30)
    reached, current = [], at.edit
    for _ in range(30):
        current = QtWidgets.QWidget.nextInFocusChain(current)
        if current.isVisible() and current.isEnabled() and at.read(current.focusPolicy) & KEY.TabFocus:
            reached.append(current)
    for name in ("ask", "whole", "suggest", "undo", "redo", "more"):
        assert any(one == at.button(name) for one in reached), name
    assert any(one == at.browser for one in reached)
    texts = [at.read(at.button(name).text) for name in ("ask", "stop", "whole", "suggest", "undo", "redo", "more")]
    letters = [text[text.index("&") + 1].lower() for text in texts]
    assert len(set(letters)) == len(letters) and not set(letters) & set("fevh"), "Slicer's own menus have those"
    assert at.read(at.edit.tabChangesFocus)


def test_links_are_reached_by_the_keyboard(at: Panel, host: TestHost) -> None:
    host.say("The liver and the spleen.", "liver", "spleen")
    at.settle()
    at.browser.setFocus()
    for _ in range(2):
        at.press(KEY.Key_Tab, text="\t", where=at.browser)
    at.press(KEY.Key_Return, text="\r", where=at.browser)
    assert ("go_to", "1.2") in host.wishes


def test_colours_follow_the_palette(at: Panel, host: TestHost) -> None:
    host.say("The liver.", "liver")
    at.settle()
    light = {link[1]: link[2] for link in anchors(at.document())}
    palette = QtGui.QPalette(at.read(at.widget.palette))
    for role, colour in ((QtGui.QPalette.Base, "#202020"), (QtGui.QPalette.Text, "#eeeeee")):
        palette.setColor(role, QtGui.QColor(colour))
    at.widget.setPalette(palette)
    at.settle()
    dark = {link[1]: link[2] for link in anchors(at.document())}
    theme = at.lib.theme
    assert light["liver"] != dark["liver"]
    assert theme.contrast(dark["liver"], theme.Theme(base="#202020", text="#eeeeee").tint(host.colour("1.1"))) >= 4.5


def test_the_field_grows_with_the_question_and_stays_small(at: Panel) -> None:
    small = at.read(at.edit.height)
    at.type("a\nb\nc\nd")
    at.settle()
    larger = at.read(at.edit.height)
    at.type("\n" * 40)
    at.settle()
    assert small < larger < at.read(at.edit.height) < 300


def test_a_whole_conversation_through_a_worker(at: Panel, host: TestHost) -> None:
    """Thread, queue, timer, conversation, panel: as the module puts them together."""
    backend = Scripted(says("The liver and the spleen.", "liver", "spleen"))
    workers: list[Any] = []

    def pump() -> None:
        for event in workers[-1].drain() if workers else ():
            if host.conversation.running:
                host.take(event)

    poll = at.lib.worker.Poll(at.widget, pump)

    def ask(text: str, whole: bool = False) -> None:
        asked: Asked = host.conversation.ask(text, slice_index=2)
        work: Callable[..., Any] = lambda cancel: put(asked, backend, host.volume, cancel=cancel)  # noqa: E731
        workers.append(at.lib.worker.Worker(work))
        poll.watch(workers[-1])
        host.tell()

    host.ask = ask  # type: ignore[method-assign]
    at.type("What is shown?")
    at.press(KEY.Key_Return, text="\r")
    for _ in range(50):
        at.settle(20)
        if not poll.running and not host.busy:
            break
    at.settle()
    assert "The liver and the spleen." in at.shown() and "certain (0.87)" in at.shown()
    assert [finding.name for finding in host.conversation.findings] == ["liver", "spleen"]
    assert at.button("ask").isVisible()


def test_progress_is_shown_in_passing(at: Panel, host: TestHost) -> None:
    host.ask("Where?")
    for n in range(5):
        host.take(Progress(n, 5, "Reading the slices"))
        at.settle(70)
        assert f"Reading the slices ({n} of 5)" in at.shown() and at.shown().count("Reading the slices") == 1
