"""The table of findings: what it shows, what a person does in it, and that it is left alone while a name is edited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from qtpy import QtCore, QtGui, QtWidgets

from medsight_core.chat import Conversation
from medsight_core.events import RegionFound, TextDelta
from medsight_core.regions import Span
from tests.chat.scripted import region
from tests.slicer.panel_host import TestHost


class Table:
    """A table on the screen, and hands."""

    def __init__(self, lib: Any, host: TestHost) -> None:
        self.lib, self.said = lib, []
        self.window = QtWidgets.QWidget()
        layout = QtWidgets.QVBoxLayout(self.window)
        self.table = lib.findings.FindingsTable(host, self.said.append)
        self.widget = self.table.widget
        layout.addWidget(self.widget)
        self.window.resize(460, 240)
        self.window.show()
        self.settle()

    def settle(self, milliseconds: int = 30) -> None:
        self.lib.settle(milliseconds)

    def rows(self) -> list[list[str]]:
        count = self.lib._qt.val(self.widget.rowCount)
        return [[self.widget.item(row, column).text() for column in range(5)] for row in range(count)]

    def current(self, row: int) -> None:
        self.widget.setCurrentCell(row, 0)

    def trigger(self, words: str) -> None:
        (action,) = (
            one for one in QtWidgets.QWidget.actions(self.widget) if QtGui.QAction.text(one).replace("&", "") == words
        )
        action.trigger()
        self.settle()

    def key(self, key: Any, text: str = "") -> None:
        for kind in (QtCore.QEvent.KeyPress, QtCore.QEvent.KeyRelease):
            QtWidgets.QApplication.sendEvent(self.widget, QtGui.QKeyEvent(kind, key, QtCore.Qt.NoModifier, text))
        self.settle()


@pytest.fixture
def host() -> TestHost:
    return TestHost()


@pytest.fixture
def at(lib: Any, host: TestHost) -> Iterator[Table]:
    table = Table(lib, host)
    yield table
    table.table.close()
    lib._qt.dispose(table.window)
    table.settle()


def test_findings_with_their_measures(at: Table, host: TestHost) -> None:
    assert at.rows() == [] and not at.widget.isVisible(), "nothing to show"
    host.say("The liver and the spleen.", "liver", "spleen")
    at.settle()
    assert at.widget.isVisible()
    measured = host.measured("1.1")
    assert measured is not None and measured.volume_mm3 is not None and measured.mean is not None
    assert at.rows()[0] == [
        "liver", "certain (0.87)", f"{measured.volume_mm3:.0f} mm³", f"{measured.diameter.length_mm:.1f} mm",
        f"{measured.mean:,.1f}",
    ]  # fmt: skip
    assert [row[0] for row in at.rows()] == ["liver", "spleen"]


def test_colours_are_those_of_the_segments(at: Table, host: TestHost) -> None:
    host.say("The liver.", "liver")
    at.settle()
    picture = at.widget.item(0, 0).icon().pixmap(12, 12).toImage()
    assert picture.pixelColor(6, 6).name() == host.colour("1.1")


def test_what_has_no_measures_yet_has_a_dash(at: Table, host: TestHost) -> None:
    host.measured = lambda key: None  # type: ignore[method-assign]
    host.say("The liver.", "liver")
    at.settle()
    assert at.rows()[0][2:] == ["–", "–", "–"]


def test_go_there_by_double_click_and_by_enter(at: Table, host: TestHost) -> None:
    host.say("The liver and the spleen.", "liver", "spleen")
    at.settle()
    at.widget.cellDoubleClicked.emit(1, 2)
    assert host.wishes == [], "a double click makes the row the current one first"
    at.current(1)
    at.widget.cellDoubleClicked.emit(1, 2)
    at.trigger("Go there")
    assert host.wishes == [("go_to", "1.2"), ("go_to", "1.2")]


def test_show_and_hide_by_tick_and_by_menu(at: Table, host: TestHost) -> None:
    host.say("The liver and the spleen.", "liver", "spleen")
    at.settle()
    at.widget.item(0, 0).setCheckState(QtCore.Qt.Unchecked)
    at.settle()
    assert host.wishes == [("hide", "1.1", True)] and host.conversation.finding("1.1").hidden
    at.current(0)
    at.key(QtCore.Qt.Key_Space, " ")
    assert host.wishes[-1] == ("hide", "1.1", False)
    at.trigger("Show or hide")
    assert host.wishes[-1] == ("hide", "1.1", True)
    host.undo()
    at.settle()
    assert at.widget.item(0, 0).checkState() == QtCore.Qt.Checked


def test_rename_and_a_name_that_is_none(at: Table, host: TestHost) -> None:
    host.say("The liver.", "liver")
    at.settle()
    at.widget.item(0, 0).setText(" Liver,\u202e segment 4 ")
    at.settle()
    assert host.conversation.finding("1.1").name == "Liver, segment 4" and at.rows()[0][0] == "Liver, segment 4"
    at.widget.item(0, 0).setText("  ")
    at.settle()
    assert at.rows()[0][0] == "Liver, segment 4" and at.said == ["A finding needs a name."]


def test_delete_and_undo(at: Table, host: TestHost) -> None:
    host.say("The liver and the spleen.", "liver", "spleen")
    at.settle()
    at.current(0)
    at.trigger("Delete")
    assert [row[0] for row in at.rows()] == ["spleen"]
    host.undo()
    at.settle()
    assert [row[0] for row in at.rows()] == ["liver", "spleen"]


def test_nothing_selected_does_nothing(at: Table, host: TestHost) -> None:
    for words in ("Go there", "Show or hide", "Rename", "Delete"):
        at.table._with_current(lambda key: host.delete(key))
        at.trigger(words)
    assert host.wishes == []


def test_pointing_lets_a_segment_stand_out(at: Table, host: TestHost) -> None:
    host.say("The liver and the spleen.", "liver", "spleen")
    at.settle()
    at.widget.cellEntered.emit(1, 3)
    at.widget.cellEntered.emit(1, 2)
    assert host.wishes == [("emphasise", "1.2")]
    viewport = QtWidgets.QAbstractScrollArea.viewport(at.widget)
    QtWidgets.QApplication.sendEvent(viewport, QtCore.QEvent(QtCore.QEvent.Leave))
    assert host.wishes[-1] == ("emphasise", None)


def test_a_name_stays_in_its_editor_while_more_is_found(at: Table, host: TestHost) -> None:
    host.ask("What?")
    host.take(TextDelta("The liver and"), RegionFound(region(host.volume, 2, Span(4, 9), "liver")))
    at.settle()
    at.current(0)
    at.trigger("Rename")
    editor = next(one for one in QtWidgets.QWidget.findChildren(at.widget, QtWidgets.QLineEdit))
    editor.setText("My liv")
    host.take(TextDelta(" the spleen."), RegionFound(region(host.volume, 2, Span(18, 24), "spleen", column=15)))
    at.settle()
    assert editor.isVisible() and editor.text() == "My liv" and len(at.rows()) == 2
    QtWidgets.QApplication.sendEvent(
        editor, QtGui.QKeyEvent(QtCore.QEvent.KeyPress, QtCore.Qt.Key_Return, QtCore.Qt.NoModifier, "\r")
    )
    at.settle()
    assert host.conversation.finding("1.1").name == "My liv"


def test_names_are_text_and_long_or_wide_ones_fit(at: Table, host: TestHost) -> None:
    name = "<img src=x> " + "很长的名字" * 30
    host.say("The liver.", "liver")
    host.rename("1.1", name)
    at.settle()
    assert at.rows()[0][0] == name
    assert "<img" not in at.widget.item(0, 0).toolTip(), "a tool tip would be taken for markup"


def test_names_have_the_room_that_the_numbers_leave(at: Table, host: TestHost) -> None:
    host.say("The liver.", "liver")
    at.settle()
    for width in (300, 700):
        at.window.resize(width, 240)
        at.settle()
        name, rest = at.widget.columnWidth(0), sum(at.widget.columnWidth(column) for column in range(1, 5))
        room = at.lib._qt.val(at.widget.viewport().width)
        assert name >= 130 and (name == 130 or name + rest == room)
    assert name > 130


def test_the_scene_is_closed(at: Table, host: TestHost) -> None:
    host.say("The liver.", "liver")
    at.settle()
    at.current(0)
    host.conversation = Conversation()
    host.tell()
    at.settle()
    assert at.rows() == [] and not at.widget.isVisible()
    at.table._changed(0, 0)
    at.trigger("Delete")
    assert host.wishes == []


def test_without_a_place_it_does_not_become_a_window(lib: Any, host: TestHost) -> None:
    table = lib.findings.FindingsTable(host)
    host.say("The liver.", "liver")
    lib.settle(30)
    assert not table.widget.isVisible()
    lib._qt.dispose(table.widget)
    lib.settle(10)


def test_hounsfield_units_are_named(at: Table, host: TestHost) -> None:
    host.say("The liver.", "liver")
    at.settle()
    bare = at.rows()[0][4]
    float(bare.replace(",", ""))
    host.unit = "HU"
    host.tell()
    at.settle()
    assert at.rows()[0][4] == f"{bare} HU"
