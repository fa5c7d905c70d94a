"""What was found, as a table: what it is called, how sure the model is, how large it is; shown, renamed, thrown away.

Double click or Enter goes there, Space shows or hides, F2 renames, Delete throws away; pointing at a row lets its
segment stand out. No item of the table is kept: rows are found by the keys of their findings.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable
from typing import Any, Final

from medsight_core.chat.turns import Finding
from medsight_core.errors import MedSightError
from medsight_core.measure import Measurements

from ._qt import EventFilter, alive, clean, qt, val, written
from .host import Host
from .theme import theme_of
from .transcript import one_line, score_text
from .words import _

COLUMNS: Final = (_("Finding"), _("Score"), _("Volume"), _("Diameter"), _("Mean"))
NAME: Final = 0
SQUARE: Final = 12
LEAST_NAME: Final = 130
"""Pixels that a name has at least; a window that is too narrow for the rest scrolls."""
NO_VALUE: Final = "–"


class FindingsTable:
    """The widget of a conversation's findings.

    Args:
        host: Who holds the conversation.
        say: Shows a sentence to the person, such as `ChatPanel.say`.

    Attributes:
        widget: To be put into a window.
    """

    def __init__(self, host: Host, say: Callable[[str], Any] = str) -> None:
        self._host = host
        self._say = say
        self._keys: tuple[str, ...] = ()
        self._colours: dict[str, str] = {}
        self._emphasised = ""
        self._closed = False
        self.widget = qt.QTableWidget()
        self._set_up()
        self.widget.setVisible(False)
        self._actions = [
            self._action(_("&Go there"), "Return", self._go_to),
            self._action(_("&Show or hide"), "", self._turn_over),
            self._action(_("&Rename"), "F2", self._rename),
            self._action(_("&Delete"), "Delete", self._delete),
        ]
        self._soon = qt.QTimer(self.widget)
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self.refresh)
        self.refresh()
        host.on_change(self.changed)

    def close(self) -> None:
        """Lets go of the host; the table shows nothing new any more."""
        self._closed = True

    def changed(self) -> None:
        """Shows what is new, as soon as the window has time for it."""
        if not self._closed and alive(self.widget) and not self._soon.isActive():
            self._soon.start()

    def refresh(self) -> None:
        """Shows what is new, now; a name that is being edited stays so."""
        if self._closed or not alive(self.widget):
            return
        table, findings = self.widget, self._host.conversation.findings
        selected = self._key_at(table.currentRow())
        before = table.blockSignals(True)
        try:
            self._fit(tuple(finding.key for finding in findings))
            if self._key_at(table.currentRow()) != selected:
                self._select(selected)
            for row, finding in enumerate(findings):
                self._show(row, finding)
        finally:
            table.blockSignals(before)
        for action in self._actions:
            action.setEnabled(bool(findings))
        if table.parent() is not None:  # else it would become a window of its own
            table.setVisible(bool(findings))

    def _fit(self, keys: tuple[str, ...]) -> None:
        """Gives each key its row; rows that stay are not touched, for one of them may be in an editor."""
        for row in reversed(range(len(self._keys))):
            if self._keys[row] not in keys:
                self.widget.removeRow(row)
        stay = tuple(key for key in self._keys if key in keys)
        if keys[: len(stay)] != stay:
            self.widget.setRowCount(0)
            stay = ()
        self._colours = {key: colour for key, colour in self._colours.items() if key in stay}
        self._keys = keys
        self.widget.setRowCount(len(keys))
        for row in range(len(stay), len(keys)):
            self._make_row(row)

    def _show(self, row: int, finding: Finding) -> None:
        """Writes only what is not there yet, so that nothing flickers and no editor is closed."""
        measured = self._host.measured(finding.key)
        texts = (clean(finding.name), score_text(finding), *_measures(measured, self._host.unit))
        for column, text in enumerate(texts):
            item = self.widget.item(row, column)
            if written(item) != text:
                item.setText(text)
                item.setToolTip(f"<p>{html.escape(text)}</p>")  # else a name could be taken for markup
        item = self.widget.item(row, NAME)
        state = qt.Qt.Unchecked if finding.hidden else qt.Qt.Checked
        if item.checkState() != state:
            item.setCheckState(state)
        colour = theme_of(self.widget).mark(self._host.colour(finding.key))
        if self._colours.get(finding.key) != colour:
            self._colours[finding.key] = colour
            item.setIcon(_square(colour))

    def _make_row(self, row: int) -> None:
        for column in range(len(COLUMNS)):
            item = qt.QTableWidgetItem("")
            flags = qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable
            if column == NAME:
                item.setFlags(flags | qt.Qt.ItemIsEditable | qt.Qt.ItemIsUserCheckable)
                item.setCheckState(qt.Qt.Checked)
            else:
                item.setFlags(flags)
                if column > 1:
                    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            self.widget.setItem(row, column, item)

    def _select(self, key: str) -> None:
        if key in self._keys:
            self.widget.setCurrentCell(self._keys.index(key), NAME)

    def _key_at(self, row: int) -> str:
        return self._keys[row] if 0 <= row < len(self._keys) else ""

    def _changed(self, row: int, column: int) -> None:
        """The person edited a name or ticked a box."""
        key = self._key_at(row)
        if not key or column != NAME:
            return
        item = self.widget.item(row, NAME)
        name, hidden = written(item), item.checkState() == qt.Qt.Unchecked
        for finding in self._host.conversation.findings:
            if finding.key == key and finding.hidden != hidden:
                self._do(lambda: self._host.hide(key, hidden))
            elif finding.key == key and clean(finding.name) != name:
                self._do(lambda: self._host.rename(key, name))

    def _do(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except MedSightError as error:
            self._say(one_line(error))
        self.refresh()

    def _with_current(self, action: Callable[[str], Any]) -> None:
        key = self._key_at(self.widget.currentRow())
        if key:
            self._do(lambda: action(key))

    def _go_to(self) -> None:
        self._with_current(self._host.go_to)

    def _turn_over(self) -> None:
        hidden = {finding.key: finding.hidden for finding in self._host.conversation.findings}
        self._with_current(lambda key: self._host.hide(key, not hidden.get(key, False)))

    def _rename(self) -> None:
        row = self.widget.currentRow()
        if self._key_at(row):
            self.widget.editItem(self.widget.item(row, NAME))

    def _delete(self) -> None:
        self._with_current(self._host.delete)

    def _emphasise(self, key: str) -> None:
        if key != self._emphasised:
            self._emphasised = key
            with contextlib.suppress(MedSightError):  # it is gone: there is nothing to point at
                self._host.emphasise(key or None)

    def _seen(self, event: Any) -> bool:
        """Events of the table's inside: the pointer left, or there is more or less room."""
        if event.type() == qt.QEvent.Leave:
            self._emphasise("")
        elif event.type() == qt.QEvent.Resize:
            self._share()
        return False

    def _share(self, column: int = -1) -> None:
        """Gives the names what room the numbers leave."""
        if column != NAME:
            rest = sum(self.widget.columnWidth(other) for other in range(len(COLUMNS)) if other != NAME)
            self.widget.setColumnWidth(NAME, max(LEAST_NAME, val(self.widget.viewport().width) - rest))

    def _set_up(self) -> None:
        table = self.widget
        table.setObjectName("MedSIGHTFindings")
        table.setAccessibleName(_("Findings"))
        table.setColumnCount(len(COLUMNS))
        table.setHorizontalHeaderLabels(list(COLUMNS))
        header = table.horizontalHeader()
        header.setHighlightSections(False)
        header.setDefaultAlignment(qt.Qt.AlignLeft | qt.Qt.AlignVCenter)
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(NAME, qt.QHeaderView.Fixed)
        header.setMinimumSectionSize(48)
        header.sectionResized.connect(lambda column, *a: self._share(column))
        for column in range(2, len(COLUMNS)):
            table.horizontalHeaderItem(column).setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(qt.QFontMetrics(val(table.font)).height() + 8)
        table.setShowGrid(False)
        table.setWordWrap(False)
        table.setTabKeyNavigation(False)
        table.setIconSize(qt.QSize(SQUARE, SQUARE))
        table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        table.setSelectionMode(qt.QAbstractItemView.SingleSelection)
        table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        table.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAsNeeded)
        table.setContextMenuPolicy(qt.Qt.ActionsContextMenu)
        table.setMouseTracking(True)
        table.setMinimumHeight(72)
        table.cellChanged.connect(self._changed)
        table.cellDoubleClicked.connect(lambda *a: self._go_to())
        table.cellEntered.connect(lambda row, *a: self._emphasise(self._key_at(row)))
        seen = EventFilter(table, self._seen)
        table.viewport().installEventFilter(seen)

    def _action(self, words: str, key: str, action: Callable[[], None]) -> Any:
        made = qt.QAction(words, self.widget)
        if key:
            made.setShortcut(qt.QKeySequence(key))
            made.setShortcutContext(qt.Qt.WidgetShortcut)
        made.triggered.connect(lambda *a: action())
        self.widget.addAction(made)
        return made


def _measures(measured: Measurements | None, unit: str) -> tuple[str, str, str]:
    """Volume, diameter and mean, as a person reads them."""
    if measured is None:
        return NO_VALUE, NO_VALUE, NO_VALUE
    diameter = f"{measured.diameter.length_mm:,.1f} {'mm' if measured.physical else 'px'}"
    mean = NO_VALUE if measured.mean is None else f"{measured.mean:,.1f} {unit}".rstrip()
    return _volume(measured), diameter, mean


def _volume(measured: Measurements) -> str:
    if measured.volume_mm3 is None:
        return _("{count} voxels").format(count=f"{measured.voxels:,}")
    ml = measured.volume_mm3 / 1000
    return f"{ml:,.1f} ml" if ml >= 1 else f"{measured.volume_mm3:,.0f} mm³"


def _square(colour: str) -> Any:
    picture = qt.QPixmap(SQUARE, SQUARE)
    picture.fill(qt.QColor(colour))
    return qt.QIcon(picture)
